"""Time of planning and factorising against a plain loop of singular value decompositions, and the peak of memory.

    python benchmarks/factorize.py              # ResNet-50, ViT-B/16, VGG16, and the memory; about 15 minutes
    python benchmarks/factorize.py memory       # one part: resnet50, vit_b_16, vgg16 or memory
    python benchmarks/factorize.py --summary    # prints the committed figures and runs nothing

The loop is `torch.linalg.svd(full_matrices=False)` of every layer that may be factorised, then the same truncation.
Ours is the whole of `make_plan` and `factorize` in the matrix form, probing of the network included; the time of all
schemes together (`--scheme auto`, what the command does by default) stands beside it. Random weights have flat
spectra, so each layer is given a decaying one; otherwise no layer would be factorised at this tolerance.

The memory is the largest resident set of `lrcompress compress --no-timing` on a safetensors file of ViT-L/16 (1.2 GB),
mapped pages of the file included, against that of importing torch and timm plus the size of the file.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
import torchvision
from results import read_results, write_results
from safetensors.torch import save_file
from torch import nn

from lrcompress.factorize import factorize
from lrcompress.linalg import tail_energies
from lrcompress.nn import dense_weight, expose_, plain_layer, twin, weight_from_matrices, weight_matrices
from lrcompress.plan import CompressionPlan, Decomposer, Tolerance, find_layers, make_plan

NETWORKS = {
    "resnet50": torchvision.models.resnet50,
    "vit_b_16": torchvision.models.vit_b_16,
    "vgg16": torchvision.models.vgg16,
}
SIZE, TOL, ROUNDS, SEED = (3, 224, 224), 0.1, 3, 0
RUN = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); \
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"


def make_network(build: Callable[[], nn.Module]) -> nn.Module:
    """Returns a network whose singular values fall as those of trained ones do: σ_i ∝ exp(−6 i/k) + 0.005."""
    torch.manual_seed(SEED)
    model = build().eval()
    exposed = expose_(twin(model))  # the same tensors, with the layers that attention modules hide
    with torch.no_grad():
        for module in exposed.modules():
            layer = plain_layer(module)
            if layer is None or layer is not module:
                continue
            matrix = weight_matrices(layer)[0]
            k = min(matrix.shape)
            sigma = torch.exp(-6 * torch.arange(k) / k) + 0.005
            left = torch.linalg.qr(torch.randn(matrix.shape[0], k)).Q
            right = torch.linalg.qr(torch.randn(matrix.shape[1], k)).Q
            layer.weight.copy_(weight_from_matrices(layer, ((left * sigma) @ right.T)[None]))
    return model


def candidates(model: nn.Module) -> dict[str, torch.Tensor]:
    found = [layer for layer in find_layers(model, SIZE) if not layer.reason]
    return {layer.name: weight_matrices(layer.layer)[0] for layer in found if layer.layer is not None}


def plain_loop(matrices: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns the factors of each layer from a full decomposition in float32, and measures nothing."""
    found = {}
    for name, matrix in matrices.items():
        U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
        tails = tail_energies(sigma.double().square())
        rank = int((tails <= TOL**2 * tails[0]).nonzero()[0])
        found[name] = U[:, :rank] * sigma[:rank], Vt[:rank]
    return found


def ours(model: nn.Module, scheme: str) -> tuple[CompressionPlan, nn.Module]:
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, Tolerance(TOL), input_size=SIZE, decomposer=decomposer)
    return plan, factorize(model, plan, decomposer=decomposer)


def measure(name: str) -> dict[str, object]:
    model = make_network(NETWORKS[name])
    matrices = candidates(model)
    seconds: dict[str, list[float]] = {"loop": [], "ours": [], "auto": []}
    for _ in range(ROUNDS):
        for what, run in (
            ("loop", lambda: plain_loop(matrices)),
            ("ours", lambda: ours(model, "matrix")),
            ("auto", lambda: ours(model, "auto")),
        ):
            started = time.perf_counter()
            result: Any = run()
            seconds[what].append(time.perf_counter() - started)
            if what == "loop":
                expected = result
            elif what == "ours":
                plan, low_rank = result
        print(name, {key: round(values[-1], 2) for key, values in seconds.items()}, flush=True)
    differences = []
    for layer in plan.factorized():
        weight = dense_weight(low_rank.get_submodule(layer)).flatten(1)
        matrix, (left, right) = matrices[layer].double(), expected[layer]
        errors = [float((matrix - one).norm() / matrix.norm()) for one in (weight, left.double() @ right.double())]
        differences.append(abs(errors[0] - errors[1]))
    ranks = {layer: values.ranks[0] for layer, values in plan.factorized().items()}
    return {
        "layers": len(matrices),
        "layers_factorized": len(ranks),
        "loop_seconds": seconds["loop"],
        "our_seconds": seconds["ours"],
        "auto_seconds": seconds["auto"],
        "speedup": median(a / b for a, b in zip(seconds["loop"], seconds["ours"], strict=True)),
        "speedup_auto": median(a / b for a, b in zip(seconds["loop"], seconds["auto"], strict=True)),
        "same_ranks": all(expected[layer][0].shape[1] == rank for layer, rank in ranks.items()),
        "largest_difference_of_errors": max(differences, default=0.0),
    }


def peak_bytes(command: list[str]) -> int:
    """Returns the largest resident set of a command."""
    done = subprocess.run([sys.executable, "-c", RUN, *command], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measure_memory() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit_large.safetensors"
        model = make_network(lambda: timm.create_model("vit_large_patch16_224"))
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        del model
        size = path.stat().st_size
        importing = peak_bytes([sys.executable, "-c", "import torch, timm"])
        command = [sys.executable, "-m", "lrcompress", "compress", str(path), "--tol", str(TOL)]
        output = ["-o", str(Path(folder) / "out.safetensors"), "--overwrite"]
        peaks = {
            name: peak_bytes([*command, *options, *output])
            for name, options in (("without_timing", ["--no-timing"]), ("with_timing", []))
        }
        kept = (Path(folder) / "out.safetensors").stat().st_size / size
    return {
        "file_bytes": size,
        "import_bytes": importing,
        "kept": kept,
        "peak_bytes": peaks,
        "peak_memory_ratio": peaks["without_timing"] / (importing + size),
        "peak_over_bound": peaks["without_timing"] / (1.3 * importing + size),
        "peak_memory_ratio_with_timing": peaks["with_timing"] / (importing + size),
    }


def summary() -> dict[str, object]:
    results = read_results("factorize")
    figures = {f"speedup_{name}": results[name]["speedup"] for name in NETWORKS if name in results}
    if "memory" in results:
        names = ("peak_memory_ratio", "peak_over_bound", "peak_memory_ratio_with_timing")
        figures |= {name: results["memory"][name] for name in names}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(NETWORKS)}, memory; default all")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0  # in KiB, as on Linux
    if arguments.summary:
        print(json.dumps(summary(), indent=1))
    else:
        for part in arguments.parts or [*NETWORKS, "memory"]:
            figures = measure_memory() if part == "memory" else measure(part)
            write_results("factorize", part, {"tol": TOL, "seed": SEED, "rounds": ROUNDS, **figures})
