"""All models on one block of images: clean, attacked, corrupted, smoothed."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lrcompress.errors import DataError, EvaluationError
from lrcompress.robustness.attacking import BlockAttacker
from lrcompress.robustness.attacks import AttackSettings, find_attack
from lrcompress.robustness.blocks import Block, BlockOutcome, EvaluatedModel, KnownBlock, ModelBlock
from lrcompress.robustness.corruptions import SEVERITIES, corrupt, corruptions_for
from lrcompress.robustness.examples import SHOWN, example
from lrcompress.robustness.gradients import measure_gradients
from lrcompress.robustness.iterated import Passes, check_finite
from lrcompress.robustness.probes import check_radius_of_zero, probe_attack
from lrcompress.robustness.seeds import image_seeds
from lrcompress.robustness.smoothing import certified_radii


class Progress:
    """Counts images of all attacks on all models."""

    def __init__(
        self,
        models: Collection[EvaluatedModel],
        settings: AttackSettings,
        images: int,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.done, self.on_progress = 0, on_progress
        self.total = images * len(models) * max(1, settings.tasks())

    def tell(self, what: str, images: int, share: float) -> None:
        """Tells of a share of some images, which are counted once it is 1."""
        self.on_progress(what, self.done + round(share * images), self.total)
        if share == 1:
            self.done += images


@dataclass
class BlockRun:
    """The evaluation of all models on one block."""

    models: Sequence[EvaluatedModel]
    block: Block
    settings: AttackSettings
    progress: Progress

    def run(self) -> BlockOutcome:
        """Returns what the models did."""
        outcome = BlockOutcome(self.block.number, self.block.labels.tolist(), self.block.hashes())
        standing: dict[str, Tensor] = {}
        for evaluated in self.models:
            started = time.perf_counter()
            outcome.models[evaluated.role] = part = ModelBlock()
            standing[evaluated.role] = self._run_model(evaluated, part, outcome, standing)
            part.seconds += time.perf_counter() - started
        return outcome

    def _run_model(
        self, evaluated: EvaluatedModel, part: ModelBlock, outcome: BlockOutcome, others: dict[str, Tensor]
    ) -> Tensor:
        """Fills in what one model does, and returns where it withstands the worst case (radii × images)."""
        settings, role, passes = self.settings, evaluated.role, Passes()
        known = _know(evaluated, self.block, settings.batch_size, passes)
        part.clean = known.clean.tolist()
        count = len(part.clean)
        rows, of_paper = [known.clean.expand(max(1, len(settings.eps)), -1)], settings.of_paper()
        for name in settings.attacks:
            what = f"{role}: {find_attack(name).title}"
            attacker = BlockAttacker(
                evaluated.model,
                known,
                settings,
                on_moved=lambda attack, radius, moved: self._moved(
                    evaluated, attack, radius, moved, outcome, others, passes
                ),
                on_progress=lambda share, what=what: self.progress.tell(what, count, min(share, 0.999)),
                passes=passes,
            )
            found = attacker.attack(name)
            # The paper's attacks round to 8 bits at ε = 0 too, and their balls are no others' balls.
            if settings.eps[0] == 0 and name not in of_paper:
                check_radius_of_zero(known, role, found.robust[0])
            part.robust[name] = found.robust.tolist()
            if found.distances is not None:
                part.distances[name] = [one if one < float("inf") else None for one in found.distances.tolist()]
            if found.silent:
                part.silent[name] = found.silent
            if name not in of_paper:
                rows.append(found.robust)
            self.progress.tell(what, count, 1)
        worst = torch.stack(rows).all(0)
        if settings.follows_gradients():
            norms, margins = measure_gradients(
                evaluated.model, known, settings.norm, batch_size=settings.batch_size, passes=passes
            )
            part.gradient_norms, part.margins = norms.tolist(), margins.tolist()
            if self.block.number == 0:
                doubts = probe_attack(evaluated.model, role, known, worst, settings, passes)
                outcome.doubts += [asdict(doubt) for doubt in doubts]
        if settings.corruptions:
            part.corrupted = self._corrupt(evaluated, passes)
        if settings.smoothing is not None:
            what = f"{role}: randomised smoothing"
            part.certified = certified_radii(
                evaluated.model,
                self.block.pixels,
                self.block.labels,
                self._seeds("smoothing"),
                settings.smoothing,
                batch_size=settings.batch_size,
                passes=passes,
                on_done=lambda done: self.progress.tell(what, count, min(done / count, 0.999)),
            )
            self.progress.tell(what, count, 1)
        if settings.tasks() == 0:
            self.progress.tell(role, count, 1)
        part.forward_passes, part.backward_passes = passes.forward, passes.backward
        return worst

    def _corrupt(self, evaluated: EvaluatedModel, passes: Passes) -> dict[str, list[list[bool]]]:
        """Returns by corruption, for each severity and image, whether the model is right."""
        block, found = self.block, dict[str, list[list[bool]]]()
        names, what = corruptions_for(block.pixels.shape[1]), f"{evaluated.role}: corruptions"
        count, size = len(block.labels), self.settings.batch_size
        for number, name in enumerate(names):
            found[name] = []
            for severity in SEVERITIES:
                seeds = self._seeds(name, severity)
                parts = zip(block.pixels.split(size), seeds.split(size), strict=True)
                images = torch.cat([corrupt(pixels, name, severity, some) for pixels, some in parts])
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.no_grad():
                    logits = check_finite(torch.cat([evaluated.model(part) for part in images.split(size)]))
                passes.forward += count
                found[name].append((logits.argmax(1) == block.labels).tolist())
            self.progress.tell(what, count, min((number + 1) / len(names), 0.999))
        self.progress.tell(what, count, 1)
        return found

    def _seeds(self, *purpose: int | str) -> Tensor:
        numbers = torch.arange(len(self.block.labels), device=self.block.labels.device) + self.block.first
        return image_seeds(numbers, self.settings.seed, *purpose)

    def _moved(
        self,
        source: EvaluatedModel,
        attack: str,
        radius: int,
        moved: Tensor,
        outcome: BlockOutcome,
        others: dict[str, Tensor],
        passes: Passes,
    ) -> None:
        """Shows what was made against one model to all, and keeps some of it to look at."""
        shows = source.role == "compressed" and self.block.number == 0 and len(outcome.examples) < SHOWN
        if attack != self.settings.transferred() or (len(self.models) == 1 and not shows):
            return
        answers = {}
        for target in self.models:
            with torch.no_grad():
                answers[target.role] = torch.cat(
                    [check_finite(target.model(part)).argmax(1) for part in moved.split(self.settings.batch_size)]
                )
            if len(self.models) > 1:
                right = (answers[target.role] == self.block.labels).tolist()
                outcome.transferred.setdefault(f"{source.role}→{target.role}", []).append(right)
            passes.forward += len(moved)
        if shows:
            self._keep_examples(radius, moved, answers, outcome, others)

    def _keep_examples(
        self,
        radius: int,
        moved: Tensor,
        answers: dict[str, Tensor],
        outcome: BlockOutcome,
        others: dict[str, Tensor],
    ) -> None:
        block, shown = self.block, {one["index"] for one in outcome.examples}
        known = torch.tensor(outcome.models["compressed"].clean, device=block.labels.device)
        lost = known & (answers["compressed"] != block.labels)
        # Those that only the compressed model loses come first.
        first = lost & others["baseline"][radius] if "baseline" in others else lost
        candidates = [*(first).nonzero().flatten().tolist(), *(lost & ~first).nonzero().flatten().tolist()]
        for index in [one for one in candidates if block.first + one not in shown][: SHOWN - len(outcome.examples)]:
            told: dict[str, dict[str, Any]] = {
                role: {"predicted": int(answer[index])} for role, answer in answers.items()
            }
            told["compressed"] |= {"eps": self.settings.eps[radius]}
            label = int(block.labels[index])
            outcome.examples.append(example(block.first + index, label, block.pixels[index], moved[index], told))


def _know(evaluated: EvaluatedModel, block: Block, batch_size: int, passes: Passes) -> KnownBlock:
    """Returns the block with the model's answers to its clean images."""
    with torch.no_grad():
        logits = torch.cat([evaluated.model(part) for part in block.pixels.split(batch_size)])
    passes.forward += len(logits)
    if not torch.isfinite(logits).all():
        raise EvaluationError(
            f"the {evaluated.role} model's logits are not finite", hint="check the weights and the preprocessing"
        )
    lowest, highest = int(block.labels.min()), int(block.labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise DataError(
            f"the images have label {lowest if lowest < 0 else highest}, the model {logits.shape[1]} classes",
            hint="give the data set the model was trained on",
        )
    return KnownBlock(block, logits, logits.argmax(1) == block.labels)
