"""All attacks on one model and one block of images."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrcompress.perturb import perturbation_sizes
from lrcompress.robustness.attacks import AttackKind, AttackSettings, find_attack
from lrcompress.robustness.autoattack import run_autoattack
from lrcompress.robustness.blocks import KnownBlock
from lrcompress.robustness.foolbox_adapter import is_minimal, run_foolbox
from lrcompress.robustness.iterated import (
    BALL_SLACK,
    Passes,
    check_finite,
    check_within,
    count_passes,
    run_stream,
)
from lrcompress.robustness.seeds import image_seeds


@dataclass
class Attacked:
    """What one attack did to the images of a block.

    Attributes:
        robust: for each radius, whether the model withstood up to it; what succeeds in a ball does so in larger ones.
        distances: of the smallest perturbations, of attacks that look for them; infinite where nothing was found.
        silent: images that stood while the gradient was zero.
    """

    robust: Bool[Tensor, "e n"]
    distances: Float[Tensor, "n"] | None = None
    silent: int = 0


@dataclass
class BlockAttacker:
    """Attacks a model on a block.

    Attributes:
        model: in eval mode with frozen parameters.
        known: the block, and the model's answers to it.
        settings: of the attacks, radii among them.
        on_moved: called after each radius of an attack in balls with its name, the number of the radius, and all
            images as they were moved: adversarial where the model was misled, the last tries elsewhere.
        on_progress: called with the share of an attack that is done.
        passes: counted here.
    """

    model: nn.Module
    known: KnownBlock
    settings: AttackSettings
    on_moved: Callable[[str, int, Float[Tensor, "n c h w"]], None] = lambda name, radius, moved: None
    on_progress: Callable[[float], None] = lambda share: None
    passes: Passes = field(default_factory=Passes)

    def attack(self, name: str) -> Attacked:
        """Returns what the attack of this name does. Broken images leave, and are not attacked at larger radii."""
        kind = find_attack(name)
        if kind.make is not None or kind.paper is not None:
            return self._in_balls(name, kind)
        if kind.package is None and is_minimal(kind.foolbox[self.settings.norm]):
            return self._nearest(name, kind)
        return self._by_package(name, kind)

    def _in_balls(self, name: str, kind: AttackKind) -> Attacked:
        settings, block = self.settings, self.known.block
        count = len(block.labels)
        standing, moved, rows = self.known.clean.clone(), block.pixels.clone(), []
        silent = torch.zeros_like(standing)
        runs = kind.runs(settings, self.known.logits.shape[1])
        parts, part = len(settings.eps) * runs, 0
        for radius, eps in enumerate(settings.eps):
            for run in range(runs):
                active = standing.nonzero().flatten()
                if len(active) > 0:
                    finished = count - len(active)

                    def tell(images: int, part: int = part) -> None:
                        nonlocal finished
                        finished += images
                        self.on_progress((part + finished / count) / parts)

                    attack = kind.build(settings, eps, run, self.model)
                    assert attack is not None  # as the caller knows
                    outcome = run_stream(
                        self.model,
                        attack,
                        block.pixels[active],
                        block.labels[active],
                        self.known.logits[active],
                        # The same for all models, different for everything else.
                        image_seeds(active + block.first, settings.seed, name, radius, run),
                        batch_size=settings.batch_size,
                        on_finished=tell,
                    )
                    standing[active], moved[active] = ~outcome.broken, outcome.moved
                    silent[active] |= outcome.silent
                    self.passes.forward += outcome.passes.forward
                    self.passes.backward += outcome.passes.backward
                part += 1
            rows.append(standing.clone())
            self.on_moved(name, radius, moved)
        stood = torch.stack(rows)[int(settings.eps[0] == 0) :].any(0)  # at ε = 0 nothing is to be followed
        return Attacked(torch.stack(rows), silent=int((silent & stood).sum()))

    def _by_package(self, name: str, kind: AttackKind) -> Attacked:
        block, standing, rows = self.known.block, self.known.clean.clone(), []
        for radius, eps in enumerate(self.settings.eps):
            for active in standing.nonzero().flatten().split(self.settings.batch_size):
                if kind.package is None:
                    moved = self._foolbox(name, kind, active, radius, eps=eps)
                else:
                    moved = self._autoattack(name, active, radius, eps=eps)
                check_within(moved, block.pixels[active], eps, self.settings.norm, name, hint="leave it out")
                standing[active] = self._is_right(moved, block.labels[active])
            rows.append(standing.clone())
        return Attacked(torch.stack(rows))

    def _nearest(self, name: str, kind: AttackKind) -> Attacked:
        block, clean = self.known.block, self.known.clean
        distances = torch.where(clean, torch.inf, 0.0)
        for active in clean.nonzero().flatten().split(self.settings.batch_size):
            moved = self._foolbox(name, kind, active, 0, eps=None)
            sizes = perturbation_sizes(moved - block.pixels[active], self.settings.norm)
            distances[active] = torch.where(self._is_right(moved, block.labels[active]), torch.inf, sizes)
        radii = torch.tensor(self.settings.eps, device=distances.device)[:, None]
        return Attacked((distances > radii * (1 + BALL_SLACK)) & clean, distances)

    def _autoattack(self, name: str, active: Int[Tensor, "k"], radius: int, *, eps: float) -> Float[Tensor, "k c h w"]:
        with count_passes(self.model, self.passes):
            return run_autoattack(
                self.model,
                self.known.block.pixels[active],
                self.known.block.labels[active],
                eps=eps,
                norm=self.settings.norm,
                seed=self._batch_seed(name, active, radius),
                batch_size=self.settings.batch_size,
            )

    def _batch_seed(self, name: str, active: Int[Tensor, "k"], radius: int) -> int:
        """Returns the seed of packages, which know none per image."""
        first = self.known.block.first + int(active[0])
        return zlib.crc32(repr((self.settings.seed, name, radius, first)).encode())

    def _foolbox(
        self, name: str, kind: AttackKind, active: Int[Tensor, "k"], radius: int, *, eps: float | None
    ) -> Float[Tensor, "k c h w"]:
        block = self.known.block
        with count_passes(self.model, self.passes):
            return run_foolbox(
                kind.foolbox[self.settings.norm],
                kind.options,
                self.model,
                block.pixels[active],
                block.labels[active],
                eps=eps,
                seed=self._batch_seed(name, active, radius),
            )

    def _is_right(self, moved: Tensor, labels: Tensor) -> Bool[Tensor, "k"]:
        self.passes.forward += len(moved)
        with torch.no_grad():
            return check_finite(self.model(moved)).argmax(1) == labels
