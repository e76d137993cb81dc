"""Time of planning and factorising against a plain loop of singular value decompositions, timed in turn.

    python benchmarks/factorize.py              # ResNet-50, ViT-B/16 and VGG16 with random weights, about 10 minutes
    python benchmarks/factorize.py --summary    # prints the committed figures and runs nothing

The loop is `torch.linalg.svd(full_matrices=False)` of every layer that may be factorised, then the same truncation.
Ours is the whole of `make_plan` and `factorize`, probing and copying of the network included. Random weights have flat
spectra, so each layer is given a decaying one; otherwise no layer would be factorised at this tolerance.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from results import read_results, write_results
from torch import nn

from lrcompress.factorize import factorize
from lrcompress.linalg import truncation_rank
from lrcompress.nn import dense_matrix, factored_layers, is_matrix_layer
from lrcompress.plan import CompressionPlan, Tolerance, find_layers, make_plan

NETWORKS = {
    "resnet50": torchvision.models.resnet50,
    "vit_b_16": torchvision.models.vit_b_16,
    "vgg16": torchvision.models.vgg16,
}
SIZE, TOL, ROUNDS, SEED = (3, 224, 224), 0.1, 3, 0


def make_network(build: Callable[[], nn.Module]) -> nn.Module:
    """Returns a network whose singular values fall as those of trained ones do: σ_i ∝ exp(−6 i/k) + 0.005."""
    torch.manual_seed(SEED)
    model = build().eval()
    with torch.no_grad():
        for layer in model.modules():
            if is_matrix_layer(layer):
                matrix = dense_matrix(layer)
                k = min(matrix.shape)
                sigma = torch.exp(-6 * torch.arange(k) / k) + 0.005
                left = torch.linalg.qr(torch.randn(matrix.shape[0], k)).Q
                right = torch.linalg.qr(torch.randn(matrix.shape[1], k)).Q
                layer.weight.copy_(((left * sigma) @ right.T).reshape(layer.weight.shape))
    return model


def candidates(model: nn.Module) -> dict[str, torch.Tensor]:
    found = [layer for layer in find_layers(model, SIZE) if not layer.reason]
    return {layer.name: dense_matrix(layer.module) for layer in found if is_matrix_layer(layer.module)}


def plain_loop(matrices: dict[str, torch.Tensor]) -> dict[str, tuple[int, float]]:
    """Returns rank and relative error of each layer from a full decomposition in float32."""
    found = {}
    for name, matrix in matrices.items():
        U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
        rank = truncation_rank(sigma, TOL)
        low_rank = (U[:, :rank] * sigma[:rank]) @ Vt[:rank]
        found[name] = rank, float((matrix - low_rank).double().norm() / matrix.double().norm())
    return found


def ours(model: nn.Module) -> tuple[CompressionPlan, nn.Module]:
    plan = make_plan(model, Tolerance(TOL), input_size=SIZE)
    return plan, factorize(model, plan)


def measure(name: str) -> dict[str, object]:
    model = make_network(NETWORKS[name])
    matrices = candidates(model)
    seconds: dict[str, list[float]] = {"loop": [], "ours": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        expected = plain_loop(matrices)
        seconds["loop"].append(time.perf_counter() - started)
        started = time.perf_counter()
        plan, low_rank = ours(model)
        seconds["ours"].append(time.perf_counter() - started)
        print(name, {key: round(values[-1], 2) for key, values in seconds.items()}, flush=True)
    layers = factored_layers(low_rank)
    differences = []
    for layer, values in plan.factorized().items():
        U, S, V = layers[layer].factors()
        matrix = matrices[layer].double()
        error = float((matrix - U.double() @ S.double() @ V.double().T).norm() / matrix.norm())
        differences.append(abs(error - expected[layer][1]))
        assert values.rank is not None
    ranks = {layer: values.rank for layer, values in plan.factorized().items()}
    return {
        "layers": len(matrices),
        "layers_factorized": len(ranks),
        "loop_seconds": seconds["loop"],
        "our_seconds": seconds["ours"],
        "speedup": median(a / b for a, b in zip(seconds["loop"], seconds["ours"], strict=True)),
        "same_ranks": all(expected[layer][0] == rank for layer, rank in ranks.items()),
        "largest_difference_of_errors": max(differences, default=0.0),
    }


def summary() -> dict[str, object]:
    results = read_results("factorize")
    return {f"speedup_{name}": results[name]["speedup"] for name in NETWORKS if name in results}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(json.dumps(summary(), indent=1))
    else:
        for network in arguments.networks or NETWORKS:
            write_results("factorize", network, {"tol": TOL, "seed": SEED, "rounds": ROUNDS, **measure(network)})
