"""Accuracy against size of the rank policies, without any fine-tuning: the full Fashion-MNIST network.

    python benchmarks/policies.py --data DIR       # needs runs/vgg11_bn.pt of train_networks.py, about 5 minutes
    python benchmarks/policies.py --summary        # prints the committed figures and runs nothing

Every row is one compression of the same network without fine-tuning, measured on all test images. The calibrated ones
see 256 training images, without their labels.
"""

import argparse
import json
from collections import Counter

import torch
from results import read_results, write_results

from lrcompress.checkpoint import LoadOptions, load_checkpoint
from lrcompress.data import ImageSet, open_images
from lrcompress.factorize import factorize
from lrcompress.measure import count_macs, count_parameters, predict_correct
from lrcompress.models import PixelModel
from lrcompress.pipeline.planning import calibrate_loaded
from lrcompress.plan import Budget, Calibration, Decomposer, RankPolicy, Tolerance, UniformRank, find_layers, make_plan
from lrcompress.robustness import wilson_interval

ARCH = "benchmarks/networks.py:vgg11_bn"
BUDGETS: list[RankPolicy] = [Budget(fraction=fraction) for fraction in (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05)]
# Name: (scheme, calibrated, policies from mild to strong).
POLICIES: dict[str, tuple[str, bool, list[RankPolicy]]] = {
    "uniform rank": ("matrix", False, [UniformRank(rank) for rank in (160, 96, 64, 48, 32, 24, 16)]),
    "tolerance": ("auto", False, [Tolerance(tol) for tol in (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)]),
    "budget, matrix form": ("matrix", False, BUDGETS),
    "budget": ("auto", False, BUDGETS),
    "budget + calibration, matrix form": ("matrix", True, BUDGETS),
    "budget + calibration": ("auto", True, BUDGETS),
}


def accuracy(model: torch.nn.Module, images: ImageSet) -> dict[str, object]:
    bits = predict_correct(model, images, batch_size=500)
    correct = int(bits.sum())
    return {"accuracy": correct / len(bits), "interval": list(wilson_interval(correct, len(bits)))}


def run(data: str) -> dict[str, object]:
    loaded = load_checkpoint("runs/vgg11_bn.pt", LoadOptions(arch=ARCH))
    size = loaded.preprocessing.input_size
    images = open_images(data, "test", input_size=size)
    parameters, macs = count_parameters(loaded.model), count_macs(loaded.model, size)
    dense = accuracy(PixelModel(loaded.model, loaded.preprocessing), images)
    candidates = [one for one in find_layers(loaded.model, size) if not one.reason]
    metrics = calibrate_loaded(loaded, Calibration(data), candidates)
    rows = []
    for name, (scheme, calibrated, policies) in POLICIES.items():
        decomposer = Decomposer(metrics if calibrated else {}, wanted=scheme)
        for policy in policies:
            plan = make_plan(loaded.model, policy, input_size=size, decomposer=decomposer)
            model = factorize(loaded.model, plan, decomposer=decomposer)
            rows.append(
                {
                    "policy": name,
                    "settings": policy.describe(),
                    "parameters": count_parameters(model) / parameters,
                    "macs": count_macs(model, size) / macs,
                    "schemes": dict(Counter(layer.scheme for layer in plan.factorized().values())),
                    **accuracy(PixelModel(model, loaded.preprocessing), images),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {"network": "VGG11-BN", "parameters": parameters, "images": len(images), "dense": dense, "rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the idx files of Fashion-MNIST")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(json.dumps(read_results("policies"), indent=1))
    elif arguments.data:
        write_results("policies", "fashion", run(arguments.data))
    else:
        parser.error("give --data DIR, or --summary")
