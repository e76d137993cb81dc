"""A folder as a user has it: a network of one's own, its checkpoint, images, and what `compress` made of them."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from idx_files import write_idx_pair
from networks import matrix_with_spectrum
from torch import nn

from lrcompress.checkpoint import LoadOptions
from lrcompress.data import Augmentation
from lrcompress.dlrt import DlrtOptions, TrainingOptions
from lrcompress.plan import Tolerance

FACTORY = """
from torch import nn

def build(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                         nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes))
"""
INPUT = {"input_size": (1, 6, 5), "mean": (0.5,), "std": (0.25,)}
INPUT_OPTIONS = ("--input-size", "1,6,5", "--mean", "0.5", "--std", "0.25")


def make_network(*, seed: int = 0) -> nn.Sequential:
    """Returns the network of the factory. Its fourth layer has rank four, its sixth a flat spectrum."""
    torch.manual_seed(seed)
    widths = [(30, 32), (32, 32), (32, 32), (32, 3)]
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in widths:
        layers += [nn.Linear(n, m), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        model[3].weight.copy_(matrix_with_spectrum([4, 3, 2, 1], 32, 32, seed=seed))
        model[5].weight.copy_(matrix_with_spectrum([1.0] * 32, 32, 32, seed=seed + 10))
    return model.eval()


def fill(folder: Path) -> None:
    """Writes net.py, w.pt and the folder data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(FACTORY)
    torch.save(make_network().state_dict(), folder / "w.pt")
    write_idx_pair(folder / "data", "train", count=60)
    write_idx_pair(folder / "data", "t10k", count=30, seed=1)


def load_options(folder: Path) -> LoadOptions:
    """Returns how the checkpoint is to be read."""
    return LoadOptions(arch=f"{folder / 'net.py'}:build", preprocessing=INPUT)


def training(**values: Any) -> TrainingOptions:
    """Returns a very short fine-tuning; values are settings of the method or of the loop."""
    known = {field.name for field in fields(DlrtOptions)}
    method = {"policy": Tolerance(0.1), "coefficient_steps": 1} | {k: v for k, v in values.items() if k in known}
    loop = {"epochs": 2, "batch_size": 20, "augmentation": Augmentation(crop=0)}
    return TrainingOptions(DlrtOptions(**method), **loop | {k: v for k, v in values.items() if k not in known})


def listing(folder: Path) -> dict[str, bytes]:
    """Returns every file below the folder with its content; traces of Python are left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def sha256(path: Path) -> str:
    """Returns the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report_of(artifact: Path) -> dict[str, Any]:
    """Returns the report that lies beside an artifact."""
    return json.loads(artifact.with_name(f"{artifact.stem}.report.json").read_text())
