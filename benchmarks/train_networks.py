"""Trains the dense networks that the benchmarks and the demo compress, on Fashion-MNIST.

    python benchmarks/train_networks.py vgg11_bn --data DIR     # 9.5 M parameters → runs/vgg11_bn.pt
    python benchmarks/train_networks.py demo --data DIR         # small ResNet-18 → the checkpoint of `lrcompress demo`

DIR holds the four idx files of Fashion-MNIST (Debian package `dataset-fashion-mnist`, or torchvision's download). The
run is saved after each epoch and goes on from there when it is started again. The result is a checkpoint in the layout
of timm's training script. vgg11_bn does not see the images that fine-tuning holds out by default, so that what is
chosen on them there is chosen on images that nobody was trained on.
"""

import argparse
import json
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from networks import vgg11_bn
from torch import nn

from lrcompress.data import ImageSet, iterate_batches, open_images, random_crop_and_flip, split_held_out
from lrcompress.dlrt import has_bfloat16

MEAN, STD = (0.2860,), (0.3530,)
RECIPES = {
    "vgg11_bn": {
        "model": "benchmarks/networks.py:vgg11_bn",
        "model_kwargs": {},
        "size": 28,
        "epochs": 20,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "batch_size": 128,
        "held_out": 0.1,
    },
    "demo": {
        "model": "resnet18",
        "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "in_chans": 1},
        # Not 28: the last stage would see a single pixel, and eight of nine taps of its kernels would be dead weight.
        "size": 40,
        "epochs": 16,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "batch_size": 128,
        "held_out": 0.0,
    },
}


def build(recipe: dict) -> nn.Module:
    if recipe["model"].endswith(":vgg11_bn"):
        return vgg11_bn(**recipe["model_kwargs"])
    return timm.create_model(recipe["model"], num_classes=10, **recipe["model_kwargs"])


def accuracy(model: nn.Module, images: ImageSet) -> float:
    model.eval()
    hits = 0
    with torch.inference_mode():
        for pixels, labels in iterate_batches(images, batch_size=500):
            pixels = ((pixels - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=has_bfloat16(pixels.device)):
                hits += int((model(pixels).argmax(1) == labels).sum())
    return hits / len(images)


def train(name: str, data: str, folder: Path, epochs: int | None) -> None:
    recipe = RECIPES[name] | ({"epochs": epochs} if epochs else {})
    torch.manual_seed(0)
    model = build(recipe).to(memory_format=torch.channels_last)
    size = (1, recipe["size"], recipe["size"])
    train_set = open_images(data, "train", input_size=size)
    if recipe["held_out"] > 0:
        train_set, _ = split_held_out(train_set, fraction=recipe["held_out"], seed=0)
    test_set = open_images(data, "test", input_size=size)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe["weight_decay"]}, {"params": plain}],
        lr=recipe["lr"],
        momentum=0.9,
        nesterov=True,
    )
    steps = -(-len(train_set) // recipe["batch_size"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe["lr"], total_steps=recipe["epochs"] * steps + 1, pct_start=0.2
    )
    first, state_path = 0, folder / f"{name}.state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
    for epoch in range(first, recipe["epochs"]):
        started = time.perf_counter()
        model.train()
        generator = torch.Generator().manual_seed(epoch)
        for pixels, labels in iterate_batches(train_set, batch_size=recipe["batch_size"], shuffle_seed=epoch):
            pixels = random_crop_and_flip(pixels, padding=2, flip=True, generator=generator)
            pixels = ((pixels - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=has_bfloat16(pixels.device)):
                loss = F.cross_entropy(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        # The test accuracy is printed for the reader of the log; nothing is chosen by it.
        print(f"{name} epoch {epoch + 1} loss {loss.item():.3f} test {accuracy(model, test_set):.4f} "
              f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch + 1,
        }
        torch.save(state, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)
    final = accuracy(model, test_set)
    args = argparse.Namespace(
        model=recipe["model"],
        model_kwargs=recipe["model_kwargs"],
        num_classes=10,
        input_size=list(size),
        mean=list(MEAN),
        std=list(STD),
        crop_pct=1.0,
        interpolation="bilinear",
    )
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    torch.save(
        {"epoch": recipe["epochs"], "arch": recipe["model"], "state_dict": weights, "args": args},
        folder / f"{name}.pt",
    )
    parameters = sum(p.numel() for p in model.parameters())
    figures = {"name": name, "parameters": parameters, "test_accuracy": final, "recipe": recipe, "seed": 0}
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", required=True, help="folder with the idx files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder for checkpoints (default: runs)")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    train(arguments.name, arguments.data, arguments.output, arguments.epochs)
