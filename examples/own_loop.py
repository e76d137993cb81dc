"""DLRT in a training loop of one's own, on scikit-learn's digits. Runs in some seconds.

pip install scikit-learn
python examples/own_loop.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lrcompress.dlrt import Dlrt, DlrtOptions
from lrcompress.factorize import factorize_for_training, fold_
from lrcompress.measure import count_parameters
from lrcompress.plan import Budget, make_plan


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns images and labels to train on, and to test on."""
    data = load_digits()
    images, labels = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def train(model: nn.Module, optimizer: Dlrt | torch.optim.Optimizer, images, labels, epochs: int) -> None:
    """An ordinary training loop: with `Dlrt` the only difference is the penalty, if one is wanted."""
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            if isinstance(optimizer, Dlrt):
                loss = loss + optimizer.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of right answers."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


torch.manual_seed(0)
images, labels, test_images, test_labels = digits()
dense = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
)  # fmt: skip
train(dense, torch.optim.AdamW(dense.parameters()), images, labels, epochs=8)
print(f"dense: {count_parameters(dense):,} parameters, {accuracy(dense, test_images, test_labels):.1%} right")

plan = make_plan(dense, Budget(fraction=0.1), input_size=(1, 8, 8))
model = factorize_for_training(dense, plan).train()
optimizer = Dlrt(model, DlrtOptions(Budget(fraction=0.1), lr=2e-3, beta=0.01))
train(model, optimizer, images, labels, epochs=8)
optimizer.freeze_()  # bases and ranks are final from here on
train(model, optimizer, images, labels, epochs=2)
small = fold_(model)
print(f"small: {count_parameters(small):,} parameters, {accuracy(small, test_images, test_labels):.1%} right")
