"""Accuracy against size of the rank policies, without any fine-tuning: the full Fashion-MNIST network.

    python benchmarks/policies.py --data DIR       # needs runs/vgg11_bn.pt of train_networks.py, about 5 minutes
    python benchmarks/policies.py --summary        # prints the committed figures and runs nothing

Every row is one compression of the same network without fine-tuning, measured on all test images. The calibrated ones
see 256 training images, without their labels.
"""

import argparse
import json

import torch
from results import read_results, write_results

from lrcompress.checkpoint import LoadOptions, load_checkpoint
from lrcompress.data import ImageSet, iterate_batches, open_images, random_subset
from lrcompress.factorize import factorize, fold_
from lrcompress.measure import count_macs, count_parameters, predict_correct
from lrcompress.models import PixelModel
from lrcompress.plan import Budget, RankPolicy, Tolerance, UniformRank, find_layers, make_plan, output_grams
from lrcompress.robustness import wilson_interval

ARCH = "benchmarks/networks.py:vgg11_bn"
BUDGETS: list[RankPolicy] = [Budget(fraction=fraction) for fraction in (0.5, 0.4, 0.3, 0.2, 0.15, 0.1)]
# Each policy from mild to strong.
POLICIES: dict[str, list[RankPolicy]] = {
    "uniform rank": [UniformRank(rank) for rank in (160, 128, 96, 64, 48, 32)],
    "tolerance": [Tolerance(tol) for tol in (0.4, 0.5, 0.6, 0.65, 0.7, 0.75)],
    "budget": BUDGETS,
    "budget + calibration": BUDGETS,
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
    pixel_model = PixelModel(loaded.model, loaded.preprocessing)
    sample = random_subset(open_images(data, "train", input_size=size), 256, seed=0)
    names = [f"network.{layer.name}" for layer in find_layers(loaded.model, size) if not layer.reason]
    grams = output_grams(pixel_model, names, (pixels for pixels, _ in iterate_batches(sample, batch_size=32)))
    calibrated = {name.removeprefix("network."): gram for name, gram in grams.items()}
    rows = []
    for name, policies in POLICIES.items():
        metric = calibrated if "calibration" in name else {}
        for policy in policies:
            plan = make_plan(loaded.model, policy, input_size=size, output_grams=metric)
            model = fold_(factorize(loaded.model, plan, output_grams=metric))
            rows.append(
                {
                    "policy": name,
                    "settings": policy.describe(),
                    "parameters": count_parameters(model) / parameters,
                    "macs": count_macs(model, size) / macs,
                    "layers_factorized": len(plan.factorized()),
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
