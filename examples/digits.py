"""One's own network and one's own images: train, compress, attack, load. Runs in about a minute.

    pip install scikit-learn
    python examples/digits.py FOLDER

Writes scikit-learn's 1,797 digits as a folder of class folders, trains a small network on them in plain PyTorch,
compresses it with DLRT fine-tuning, attacks it, and uses the result.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import lrcompress
from lrcompress.checkpoint import LoadOptions
from lrcompress.data import Augmentation, iterate_batches, open_images
from lrcompress.dlrt import DlrtOptions, TrainingOptions
from lrcompress.pipeline import CompressOptions, EvaluateOptions, evaluate
from lrcompress.plan import Budget
from lrcompress.robustness import AttackSettings

SIZE = (1, 8, 8)


def digits_network(num_classes: int = 10) -> nn.Module:
    """Returns a network much larger than 8×8 digits need."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, num_classes),
    )  # fmt: skip


def write_images(folder: Path) -> None:
    """Writes the digits as folder/train/CLASS/N.png and folder/test/CLASS/N.png, every fifth one for the test."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("test" if number % 5 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(place / f"{number}.png")


def train(folder: Path, epochs: int = 6) -> Path:
    """Trains the network and returns its checkpoint."""
    torch.manual_seed(0)
    model, images = digits_network(), open_images(str(folder), "train", input_size=SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for pixels, labels in iterate_batches(images, batch_size=64, shuffle_seed=epoch):
            loss = nn.functional.cross_entropy(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    checkpoint = folder / "digits.pt"
    torch.save(model.state_dict(), checkpoint)
    return checkpoint


def main(folder: Path) -> None:
    write_images(folder)
    checkpoint, factory = train(folder), f"{__file__}:digits_network"
    # Written for images that are not normalised; mean 0 and std 1 are the default for one's own network.
    load = LoadOptions(arch=factory, preprocessing={"input_size": SIZE})
    training = TrainingOptions(
        DlrtOptions(Budget(fraction=0.2)),
        epochs=6,
        batch_size=64,
        augmentation=Augmentation(0, flip=False),
        distill=0.5,
    )
    artifact = folder / "small.safetensors"
    options = CompressOptions(load=load, data=str(folder), training=training)
    lrcompress.compress(str(checkpoint), artifact, options)

    attack = AttackSettings(attacks=("noise", "fgsm", "pgd"), eps=(0.05, 0.1), steps=10)
    _, report = evaluate(artifact, EvaluateOptions(attack, data=str(folder), arch=factory))
    print("\n".join(report["verdict"]))

    model = lrcompress.load(artifact, pixels=True, arch=factory)
    pixels, label = open_images(str(folder), "test", input_size=SIZE).dataset[0]
    print(f"a {label} is read as a {int(model(pixels[None]).argmax())}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits.py FOLDER")
    main(Path(sys.argv[1]))
