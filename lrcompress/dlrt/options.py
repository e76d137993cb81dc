"""The settings of a fine-tuning run."""

import math
from dataclasses import dataclass
from typing import Literal

from lrcompress.errors import OptionError


@dataclass(frozen=True)
class DlrtOptions:
    """Settings of DLRT. They are written into the artifact.

    Attributes:
        tol: τ in (0, 1), the relative truncation tolerance of every cycle.
        epochs: passes over the training images.
        beta: β, the weight of the conditioning penalty; 0 switches it off.
        penalty: "scale-free" (R/α², for networks with normalisation layers, which do not feel the scale of S),
            "paper" (R), or "auto" (scale-free where the network has a normalisation layer).
        lr: peak learning rate of AdamW.
        weight_decay: of cores and dense weights; never of bases, biases and norms.
        coefficient_steps: s*, optimiser steps per cycle.
        batch_size: images per step.
        frozen_fraction: the last part of the steps, in which bases and ranks stay as they are.
        min_rank: smallest rank of a layer.
        max_rank: largest rank of a layer; None allows all ranks that remove parameters.
        held_out: share of the training images on which the best state is chosen.
        distill: weight in [0, 1] of the distillation loss towards the uncompressed model; the labels get the rest.
        crop: random shifts of the images in pixels.
        flip: whether images are mirrored at random.
        precision: "float32", or "bfloat16" autocast; the penalty and all decompositions stay in float32 or better.
        seed: of the split, the shuffling and the augmentation.

    Raises:
        OptionError: if a value is out of its range.
    """

    tol: float
    epochs: int
    beta: float = 0.0
    penalty: Literal["auto", "scale-free", "paper"] = "auto"
    lr: float = 1e-3
    weight_decay: float = 0.0
    coefficient_steps: int = 10
    batch_size: int = 128
    frozen_fraction: float = 0.3
    min_rank: int = 1
    max_rank: int | None = None
    held_out: float = 0.1
    distill: float = 0.0
    crop: int = 2
    flip: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.tol < 1, "--tol", "strictly between 0 and 1", self.tol)
        _require(self.epochs >= 1, "--epochs", "at least 1", self.epochs)
        _require(math.isfinite(self.beta) and self.beta >= 0, "--beta", "0 or more", self.beta)
        _require(math.isfinite(self.lr) and self.lr > 0, "--lr", "more than 0", self.lr)
        _require(self.weight_decay >= 0, "--weight-decay", "0 or more", self.weight_decay)
        _require(self.coefficient_steps >= 1, "--coefficient-steps", "at least 1", self.coefficient_steps)
        _require(self.batch_size >= 2, "--batch-size", "at least 2", self.batch_size)
        _require(0 < self.frozen_fraction <= 1, "--frozen-fraction", "in (0, 1]", self.frozen_fraction)
        _require(self.min_rank >= 1, "--min-rank", "at least 1", self.min_rank)
        _require(self.max_rank is None or self.max_rank >= self.min_rank, "--max-rank", ">= --min-rank", self.max_rank)
        _require(0 < self.held_out < 1, "--held-out", "in (0, 1)", self.held_out)
        _require(0 <= self.distill <= 1, "--distill", "in [0, 1]", self.distill)
        _require(self.crop >= 0, "--crop", "0 or more", self.crop)


def _require(condition: bool, option: str, allowed: str, value: object) -> None:
    if not condition:
        raise OptionError(f"{option} must be {allowed}, got {value}", hint="lrcompress compress --help")
