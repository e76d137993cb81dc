"""Checkpoints as they lie on real disks: formats, training checkpoints of timm and of PyTorch's example, and damage."""

import argparse
import collections
import json
import os
import pathlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def write_zip(content: Any, path: Path) -> Path:
    """Writes what `torch.save` has written since 2020."""
    torch.save(content, path)
    return path


def write_legacy(content: Any, path: Path) -> Path:
    """Writes what `torch.save` wrote before."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


TORCH_FORMATS = {"zip": write_zip, "legacy": write_legacy}


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> Path:
    """Writes the tensors as safetensors users do."""
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path)
    return path


FORMATS = {**TORCH_FORMATS, "safetensors": write_safetensors}


def write_hugging_face_folder(folder: Path, model: nn.Module, config: dict[str, Any], *, safe: bool = True) -> Path:
    """Writes a folder as timm's `save_for_hf` lays it out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if safe:
        write_safetensors(model.state_dict(), folder / "model.safetensors")
    else:
        write_zip(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def timm_training_checkpoint(name: str, model: nn.Module, average: nn.Module | None = None) -> dict[str, Any]:
    """Returns what timm's train.py saves; the arguments are its defaults."""
    optimizer = _stepped(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    args = argparse.Namespace(
        model=name,
        data_dir=pathlib.Path("imagenet"),
        pretrained=False,
        num_classes=None,
        in_chans=None,
        img_size=None,
        input_size=None,
        crop_pct=None,
        mean=None,
        std=None,
        interpolation="",
        model_kwargs={},
        opt_betas=None,
        lr=0.1,
        decay_milestones=[90, 180, 270],
    )
    checkpoint = {
        "epoch": 3,
        "arch": name,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": args,
        "metric": np.float64(71.25),
    }
    if average is not None:
        checkpoint["state_dict_ema"] = average.state_dict()
    return checkpoint


def pytorch_example_checkpoint(name: str, model: nn.Module) -> dict[str, Any]:
    """Returns what examples/imagenet/main.py of PyTorch saves under DataParallel."""
    optimizer = _stepped(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    return {
        "epoch": 3,
        "arch": name,
        "state_dict": collections.OrderedDict((f"module.{key}", v) for key, v in model.state_dict().items()),
        "best_acc1": torch.tensor(71.25),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
    }


def torchvision_reference_checkpoint(name: str, model: nn.Module) -> dict[str, Any]:
    """Returns what references/classification/train.py of torchvision saves with --model-ema."""
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    return {
        "model": {key: value + 1 if value.is_floating_point() else value for key, value in model.state_dict().items()},
        "optimizer": _stepped(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(model=name, data_path="imagenet", lr=0.1, interpolation="bilinear", weights=None),
        "model_ema": average.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


def _stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Gives the optimiser a state, without changing the weights."""
    for group in optimizer.param_groups:
        group["lr"], before = 0.0, group["lr"]
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        group["lr"] = before
    return optimizer


class Marking:
    """A pickle of it runs a command when it is read carelessly, which leaves a file behind."""

    def __init__(self, marker: Path, how: str = "system") -> None:
        self.marker, self.how = marker, how

    def __reduce__(self) -> Any:
        calls = {
            "system": (os.system, (f"touch '{self.marker}'",)),
            "eval": (eval, (f"open({str(self.marker)!r}, 'w').close()",)),
            "open": (open, (str(self.marker), "w")),
            "mkdir": (os.mkdir, (str(self.marker),)),
        }
        return calls[self.how]


def claim_header(content: bytes, length: int) -> bytes:
    """Returns the safetensors file with another length of its header."""
    return struct.pack("<Q", length) + content[8:]
