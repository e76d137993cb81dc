"""Attacks that move images step by step, and the stream that runs them.

# Note [Streaming]
An attack keeps what it knows of an image in rows of tensors, the number of its step among them, so that images in one
batch may be at different steps. Whatever is broken, or at its end, leaves at once, and the next image takes its place:
the batch stays full, no pass is spent on an image whose answer is known, and as all random numbers belong to the image
(`perturb.draws`) the outcome does not depend on who else is in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrcompress.errors import EvaluationError
from lrcompress.perturb import Norm, perturbation_sizes

Images = Float[Tensor, "n c h w"]
State = dict[str, Tensor]  # rows of images under attack; `moved` is what the model sees next, `step` counts its answers
# Rounding of x + δ − x in float32, relative and absolute per entry.
BALL_SLACK = 1e-6


@dataclass
class Passes:
    """Counts images that were put through a model.

    Attributes:
        forward: passes without gradients.
        backward: passes with the gradient of the pixels; their forward half is counted in `forward`.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def count_passes(model: nn.Module, passes: Passes) -> Iterator[None]:
    """Counts what others put through a model within the context."""

    def count_backward(gradient: Tensor) -> None:
        passes.backward += len(gradient)

    def count_forward(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        passes.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(count_backward)

    handle = model.register_forward_hook(count_forward)
    try:
        yield
    finally:
        handle.remove()


class IteratedAttack(ABC):
    """One attack in one ball. Its methods are functions of the rows they are given.

    Args:
        eps: radius of the ball in pixel units of [0, 1] images.
        norm: of the ball.
        steps: after which an image has withstood.

    Attributes:
        needs_gradient: of the losses.
        judged_at_end: whether only the last step counts, so that an image which is broken on the way does not leave.
        looks_before: how often `begin` shows the model an image.
    """

    needs_gradient = True
    judged_at_end = False
    looks_before = 0

    def __init__(self, eps: float, norm: Norm, steps: int) -> None:
        self.norm: Norm = norm
        self.eps, self.steps = eps, steps

    @abstractmethod
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        """Returns the first rows: `moved`, and what else the attack remembers.

        Args:
            images: the clean images.
            logits: the model's answers to them.
            seeds: one per image.
        """

    def loss(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"], state: State) -> Float[Tensor, "n"]:
        """Returns what the attack raises, image by image.

        Args:
            logits: the model's answers to `moved`.
            labels: the right ones.
            state: the rows; the gradient follows `moved` here too.
        """
        del state
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    @abstractmethod
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        """Returns the rows with `moved` one step further.

        Args:
            state: the rows; `step` is the number of the answer that the losses are of, from 0.
            losses: of `moved`.
            gradient: of the losses; None if the attack needs none.
        """


@dataclass
class Outcome:
    """What an attack did to some images.

    Attributes:
        broken: whether the model was misled.
        moved: the adversarial images where it was, the last tries elsewhere.
        predicted: the model's class for them.
        silent: whether the gradient was zero in every entry at some step, so that there was nothing to follow.
    """

    broken: Bool[Tensor, "n"]
    moved: Images
    predicted: Int[Tensor, "n"]
    silent: Bool[Tensor, "n"]
    passes: Passes = field(default_factory=Passes)


def run_stream(
    model: nn.Module,
    attack: IteratedAttack,
    images: Images,
    labels: Int[Tensor, "n"],
    logits: Float[Tensor, "n k"],
    seeds: Int[Tensor, "n"],
    *,
    batch_size: int,
    on_finished: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Returns what an attack does to images that the model knows. See Note [Streaming].

    Args:
        model: takes images in [0, 1]; in eval mode with frozen parameters.
        attack: in one ball.
        images: the clean images, on the model's device.
        labels: their classes.
        logits: the model's answers to them.
        seeds: of everything random, one per image.
        batch_size: images at a time.
        on_finished: told how many images have left since the last call.

    Raises:
        EvaluationError: if logits are not finite, or the attack left its ball or the range of pixels.
    """
    count = len(images)
    device = images.device
    none = torch.zeros(count, dtype=torch.bool, device=device)
    outcome = Outcome(none, images.clone(), labels.clone(), none.clone())
    state: State = {}
    next_image, active = 0, 0
    while active > 0 or next_image < count:
        if active < batch_size and next_image < count:
            chosen = slice(next_image, min(count, next_image + batch_size - active))
            fresh = attack.begin(images[chosen], logits[chosen], seeds[chosen])
            outcome.passes.forward += attack.looks_before * (chosen.stop - chosen.start)
            index = torch.arange(chosen.start, chosen.stop, device=device)
            fresh |= {"index": index, "images": images[chosen], "step": torch.zeros_like(index)}
            state = fresh if active == 0 else {name: torch.cat([state[name], fresh[name]]) for name in state}
            next_image = chosen.stop
        wanted, last = labels[state["index"]], state["step"] >= attack.steps
        answers, losses, gradient = _answer(model, attack, state, wanted, passes=outcome.passes, ends=bool(last.all()))
        predicted = answers.argmax(1)
        broken = predicted != wanted
        if gradient is not None:
            outcome.silent[state["index"]] |= gradient.flatten(1).abs().amax(1) == 0
        leaving = last if attack.judged_at_end else broken | last
        if bool(leaving.any()):
            gone = state["index"][leaving]
            moved = state["moved"][leaving]
            check_within(moved, state["images"][leaving], attack.eps, attack.norm, type(attack).__name__)
            outcome.broken[gone], outcome.moved[gone] = broken[leaving], moved
            outcome.predicted[gone] = predicted[leaving]
            on_finished(len(gone))
            state = {name: rows[~leaving] for name, rows in state.items()}
            losses, gradient = losses[~leaving], None if gradient is None else gradient[~leaving]
        active = len(state["index"])
        if active > 0:
            state = state | attack.advance(state, losses, gradient)
            state["step"] = state["step"] + 1
    return outcome


def _answer(
    model: nn.Module, attack: IteratedAttack, state: State, labels: Int[Tensor, "n"], *, passes: Passes, ends: bool
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n"], Images | None]:
    """Returns the model's answers to the rows, the losses, and their gradient where one is needed."""
    moved = state["moved"].contiguous(memory_format=torch.channels_last)  # twice as fast in convolutions
    passes.forward += len(moved)
    if ends or not attack.needs_gradient:
        with torch.no_grad():
            answers = check_finite(model(moved))
            return answers, attack.loss(answers, labels, state | {"moved": moved}), None
    passes.backward += len(moved)
    with torch.enable_grad():
        moved = moved.detach().requires_grad_(True)
        answers = check_finite(model(moved))
        losses = attack.loss(answers, labels, state | {"moved": moved})
        # The pixels' gradient only: those of the weights, a third of the cost, are not computed.
        (gradient,) = torch.autograd.grad(losses.sum(), moved)
    return answers.detach(), losses.detach(), gradient


def check_finite(logits: Tensor) -> Tensor:
    """Returns logits of perturbed images.

    Raises:
        EvaluationError: if some are not finite: their class would be the first that comes.
    """
    if not bool(torch.isfinite(logits.detach()).all()):
        raise EvaluationError("logits of perturbed images are not finite", hint="the model overflows in float32")
    return logits


def check_within(
    moved: Images,
    images: Images,
    eps: float,
    norm: Norm,
    name: str,
    *,
    hint: str = "please report this with your versions",
) -> None:
    """Raises `EvaluationError` if an attack has left its ball or the range of pixels: the figures would be void."""
    entries = images[0].numel()
    slack = BALL_SLACK * {"linf": 1.0, "l2": entries**0.5, "l1": entries}[norm]
    size = float(perturbation_sizes(moved - images, norm).max())
    if size > eps * (1 + BALL_SLACK) + slack or float(moved.min()) < 0 or float(moved.max()) > 1:
        raise EvaluationError(f"{name} left its ball or the range of pixels: {size:g} > {eps:g}", hint=hint)
