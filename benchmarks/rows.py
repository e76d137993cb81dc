"""The rows of a table of networks: how each is made from a checkpoint, and what is measured of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrcompress.artifact.tensors import iterate_file
from lrcompress.checkpoint import LoadedModel, LoadOptions, load_checkpoint
from lrcompress.data import open_images, random_subset
from lrcompress.dlrt import DlrtOptions, TrainingOptions, TrainingProgress, fine_tune_, has_bfloat16
from lrcompress.factorize import factorize, factorize_for_training, fold_
from lrcompress.measure import count_macs, count_parameters
from lrcompress.models import PixelModel
from lrcompress.pipeline import LayerOptions, plan_loaded, starting_policy
from lrcompress.plan import Budget, Calibration
from lrcompress.robustness import AttackSettings, EvaluatedModel, evaluate_models, wilson_interval
from lrcompress.schemes import find_scheme


@dataclass(frozen=True)
class Row:
    """A network to make.

    Attributes:
        title: in the table.
        keep: share of the parameters; None leaves the network dense.
        trains: "nothing", "weights" (all of them, of the dense or the folded network) or "dlrt".
        method: settings of DLRT.
        loop: settings of the training.
    """

    title: str
    keep: float | None
    trains: str = "nothing"
    method: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What all rows of a table have in common.

    Attributes:
        checkpoint: that they start from.
        arch: of the checkpoint; None if it says that itself.
        data: folder with the idx files of Fashion-MNIST.
        states: folder for the states of unfinished rows.
        attacked: number of test images under attack.
        eps: radii of the attack.
        restarts: of the attack.
        seed: of the training.
    """

    checkpoint: Path
    arch: str | None
    data: str
    states: Path
    attacked: int
    eps: tuple[float, ...]
    restarts: int
    seed: int = 0

    def load(self) -> LoadedModel:
        return load_checkpoint(self.checkpoint, LoadOptions(arch=self.arch))

    def make(self, name: str, row: Row) -> tuple[nn.Module, dict[str, Any]]:
        """Returns the network of a row, and what its training told; a row that was stopped goes on."""
        loaded = self.load()
        if row.trains == "nothing" and row.keep is None:
            return loaded.model, {}
        policy = Budget(fraction=row.keep or 0.999)
        training = TrainingOptions(
            DlrtOptions(policy, **row.method), **{"precision": fast_precision(), "seed": self.seed} | row.loop
        )
        model = self.load().model
        if row.keep is not None:
            start = starting_policy(training, seed=self.seed) if row.trains == "dlrt" else policy
            calibration = Calibration(self.data, seed=self.seed)
            plan, decomposer = plan_loaded(loaded, start, LayerOptions(), calibration=calibration)
            make_model = factorize_for_training if row.trains == "dlrt" else factorize
            model = make_model(loaded.model, plan, decomposer=decomposer)
        if row.trains == "nothing":
            return model, {}
        self.states.mkdir(parents=True, exist_ok=True)
        path = self.states / f"{name}.unfinished.pt"
        state = torch.load(path, weights_only=True) if path.exists() else None
        if state is not None and state.get("settings") != training.describe():
            state = None  # of a row that has changed since
        images = open_images(self.data, "train", input_size=loaded.preprocessing.input_size)
        started = time.perf_counter()
        tuning = fine_tune_(
            PixelModel(model, loaded.preprocessing),
            images,
            training,
            dense=PixelModel(loaded.model, loaded.preprocessing),
            on_progress=_print_epochs(name),
            save=lambda state: _save(state | {"settings": training.describe()}, path),
            resume=state,
        )
        chosen = next(record for record in tuning.log if record.epoch == tuning.chosen_epoch)
        told = {
            "log": [
                {
                    "epoch": record.epoch,
                    "loss": record.loss,
                    "held_out_accuracy": record.held_out_accuracy,
                    "held_out_robust_accuracy": record.held_out_robust_accuracy,
                    "parameters": record.parameters,
                    "frozen": record.frozen,
                    "kappa": max((core.kappa for core in record.cores.values() if core.kappa), default=None),
                }
                for record in tuning.log
            ],
            "chosen_epoch": tuning.chosen_epoch,
            "ranks": {name.removeprefix("network."): list(ranks) for name, ranks in chosen.ranks.items()},
            "settings": training.describe(),
            "seconds": None if state else time.perf_counter() - started,
        }
        path.unlink(missing_ok=True)
        return fold_(model), told

    def measure(self, model: nn.Module) -> dict[str, Any]:
        """Returns the figures of a network: size, accuracy on all test images, and on some of them under attack."""
        loaded = self.load()
        size = loaded.preprocessing.input_size
        model = model.eval().to(memory_format=torch.contiguous_format)
        test, pixels = open_images(self.data, "test", input_size=size), PixelModel(model, loaded.preprocessing)
        evaluated = [EvaluatedModel("compressed", pixels, "")]
        clean = evaluate_models(evaluated, test, AttackSettings(batch_size=500))
        right, count = sum(clean.models[0].clean), len(test)
        settings = AttackSettings(("pgd",), eps=self.eps, steps=20, restarts=self.restarts, batch_size=250)
        attacked = evaluate_models(evaluated, random_subset(test, self.attacked, seed=0), settings)
        standing = {
            f"{round(255 * eps)}/255": sum(bits) / self.attacked
            for eps, bits in zip(self.eps, attacked.models[0].attacks[-1].robust, strict=True)
        }
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        return {
            "parameters": count_parameters(model),
            "bytes": sum(len(piece) for piece in iterate_file(weights, {"format": "pt"})),
            "macs": count_macs(model, size),
            "accuracy": right / count,
            "interval": list(wilson_interval(right, count)),
            "images": count,
            "pgd": standing,
            "attacked_images": self.attacked,
            "kappas": kappas(model),
        }


def fast_precision() -> str:
    """Returns in what precision the rows are trained on this machine."""
    return "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"


def kappas(model: nn.Module) -> dict[str, float]:
    """Returns σ₁/σ_r of every low-rank layer as it is shipped."""
    kinds = {"LowRankLinear": "matrix", "MatrixConv": "matrix", "SpatialConv": "spatial", "TuckerConv": "tucker2"}
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ in kinds:
            sigma = find_scheme(kinds[type(module).__name__]).spectrum(module)
            found[name] = float(sigma[0] / sigma[-1])
    return found


def _print_epochs(name: str) -> Callable[[TrainingProgress], None]:
    def on_progress(state: TrainingProgress) -> None:
        if state.epoch_ended:
            loss = "" if state.loss is None else f" loss {state.loss:.3f}"
            print(f"{name}: epoch {state.epoch}{loss} held out {state.held_out_accuracy:.4f}", flush=True)

    return on_progress


def _save(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
