"""Attacks of our own against networks whose weakest point is known, and the stream that runs them."""

import pytest
import torch
from torch import nn

from lrcompress.errors import EvaluationError
from lrcompress.perturb import perturbation_sizes
from lrcompress.robustness.apgd import Apgd, ApgdDlr, ApgdTargeted, checkpoints
from lrcompress.robustness.iterated import IteratedAttack, check_within, run_stream
from lrcompress.robustness.pgd import Fgsm, Noise, Pgd
from lrcompress.robustness.square import L2Square, LinfSquare, two_halves

SIZE, CLASSES = (2, 5, 5), 4
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
ATTACKS = {
    "pgd": lambda eps, norm: Pgd(eps, norm, 40),
    "apgd-ce": lambda eps, norm: Apgd(eps, norm, 40),
    "apgd-dlr": lambda eps, norm: ApgdDlr(eps, norm, 40),
    "square": lambda eps, norm: (LinfSquare if norm == "linf" else L2Square)(eps, norm, 1500),
}
IN_NORM = [(name, norm) for name in ATTACKS for norm in ("linf", "l2", "l1")]
IN_NORM = [pair for pair in IN_NORM if pair[0] != "square" or pair[1] != "l1"]


class Linear(nn.Module):
    """Logits that are linear in the pixels, each image computed by itself whatever the batch is."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(CLASSES, *SIZE, generator=generator), requires_grad=False)
        self.shown = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown += len(x)
        return torch.stack([(x * weight).flatten(1).sum(1) for weight in self.weight], 1)


class TwoClasses(nn.Module):
    """Of a linear network, two classes that count and two that are far away."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.direction = nn.Parameter(torch.randn(SIZE, generator=generator), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = ((x - 0.5) * self.direction).flatten(1).sum(1)
        return torch.stack([margin, -margin, margin * 0 - 20, margin * 0 - 30], 1)

    def distance(self, x: torch.Tensor, norm: str) -> torch.Tensor:
        """Returns how far the decision is: the margin over the dual norm of its direction."""
        margin = ((x - 0.5) * self.direction).flatten(1).sum(1)
        return margin.abs() / torch.linalg.vector_norm(self.direction, ord=DUAL[norm])


def some_images(count: int = 40) -> torch.Tensor:
    return 0.4 + 0.2 * torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(0))


def attack(model, one, images, *, batch_size=16, seeds=None):
    with torch.no_grad():
        logits = model(images)
    seeds = torch.arange(len(images)) if seeds is None else seeds
    return run_stream(model, one, images, logits.argmax(1), logits, seeds, batch_size=batch_size)


@pytest.mark.parametrize(("name", "norm"), IN_NORM)
def test_an_attack_breaks_a_linear_network_just_where_it_can_be_broken(name, norm):
    model, images = TwoClasses(), some_images()
    distance = model.distance(images, norm)
    eps = float(distance.median())
    outcome = attack(model, ATTACKS[name](eps, norm), images)
    # What rounding, the last step or the range of pixels do not decide; in l2 squares are of at least nine pixels.
    clear = (distance / eps - 1).abs() > (0.3 if (name, norm) == ("square", "l2") else 0.1)
    assert clear.sum() > 20
    assert torch.equal(outcome.broken[clear], (distance < eps)[clear])


def test_targeted_attacks_find_the_class_that_is_their_target():
    class Third(nn.Module):
        """Gives way to class 2 only: the second class in order is far away."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            margin = (x - 0.5).flatten(1).mean(1)
            zero = torch.zeros_like(margin)
            return torch.stack([zero + 1, zero + 0.9, 20 * margin, zero - 3], 1)

    images = torch.full((6, *SIZE), 0.5)
    broken = {rank: attack(Third(), ApgdTargeted(0.1, "linf", 20, rank=rank), images).broken for rank in (1, 2, 3)}
    assert broken[2].all()
    assert not broken[1].any()
    assert not broken[3].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pgd(0.012, "linf", 7),
        lambda: Apgd(0.012, "linf", 7),
        lambda: Apgd(0.25, "l1", 7),
        lambda: LinfSquare(0.012, "linf", 30),
        lambda: L2Square(0.06, "l2", 30),
    ],
)
def test_the_outcome_does_not_depend_on_the_batch(make):
    model, images = Linear(), some_images()
    whole = attack(model, make(), images, batch_size=40)
    small = attack(model, make(), images, batch_size=3)
    assert 0 < whole.broken.sum() < len(images)
    assert torch.equal(whole.broken, small.broken)
    assert torch.equal(whole.moved, small.moved)
    some = torch.tensor([31, 4, 17])
    alone = attack(model, make(), images[some], seeds=some)
    assert torch.equal(alone.moved, whole.moved[some])


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square"])
def test_starts_are_random_and_repeat_with_their_seeds(name):
    images, one = some_images(6), ATTACKS[name](0.01, "linf")
    first, again, other = (
        one.begin(images, torch.zeros(6, CLASSES), seeds)["moved"]
        for seeds in (torch.arange(6), torch.arange(6), torch.arange(6) + 100)
    )
    assert torch.equal(first, again)
    assert not any(torch.equal(left, right) for left, right in zip(first, other, strict=True))


def test_what_is_broken_leaves_and_what_is_counted_is_what_was_shown():
    model, images = Linear(), some_images(10)
    with torch.no_grad():
        logits = model(images)
    wrong = (logits.argmax(1) + 1) % CLASSES
    model.shown = 0
    outcome = run_stream(model, Pgd(0.01, "linf", 9), images, wrong, logits, torch.arange(10), batch_size=4)
    assert outcome.broken.all()
    assert model.shown == outcome.passes.forward == 10  # one look at each
    model.shown = 0
    with torch.no_grad():
        right = logits.argmax(1)
    outcome = run_stream(model, Pgd(1e-6, "linf", 9), images, right, logits, torch.arange(10), batch_size=4)
    assert not outcome.broken.any()
    assert model.shown == outcome.passes.forward == 10 * 10  # nine steps and the last look
    assert 10 * 9 <= outcome.passes.backward < outcome.passes.forward


def test_what_is_broken_on_the_way_counts_unless_the_end_decides():
    class Brighter(IteratedAttack):
        needs_gradient = False

        def begin(self, images, logits, seeds):
            return {"moved": images}

        def advance(self, state, losses, gradient):
            return {"moved": state["moved"] + 0.1}

    class InBetween(nn.Module):
        """Wrong about images of 0.6, but not about darker and lighter ones."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lead = (x.flatten(1).mean(1) - 0.6).abs() - 0.05
            return torch.stack([lead, -lead], 1)

    images = torch.full((3, *SIZE), 0.5)
    for at_end in (False, True):
        one = Brighter(0.3, "linf", 2)
        one.judged_at_end = at_end
        outcome = attack(InBetween(), one, images, batch_size=2)
        assert outcome.broken.tolist() == [not at_end] * 3
        assert outcome.passes.forward == 3 * (3 if at_end else 2)


def test_a_loss_may_depend_on_the_images_too_and_the_gradient_knows_it():
    class Squares(IteratedAttack):
        def begin(self, images, logits, seeds):
            return {"moved": images}

        def loss(self, logits, labels, state):
            return state["moved"].square().flatten(1).sum(1) + 0 * logits.sum(1)

        def advance(self, state, losses, gradient):
            return {"moved": state["moved"] + 0.1 * gradient}

    images = some_images(3)
    outcome = attack(Linear(), Squares(1.0, "linf", 1), images)
    torch.testing.assert_close(outcome.moved, 1.2 * images)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_step_of_every_attack_stays_in_the_ball_and_in_the_range(norm):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(8, *SIZE, generator=generator).round(decimals=1)  # with pixels at both ends
    attacks = [Noise(0.3, norm), Fgsm(0.3, norm), Pgd(0.3, norm, 5)]
    attacks += [] if norm == "l1" else [Apgd(0.3, norm, 12)]
    attacks += [] if norm == "l1" else [(LinfSquare if norm == "linf" else L2Square)(0.3, norm, 20)]
    logits = torch.zeros(8, CLASSES)
    for one in attacks:
        state = one.begin(images, logits, torch.arange(8))
        state |= {"images": images, "step": torch.zeros(8, dtype=torch.long)}
        for step in range(one.steps):
            check_within(state["moved"], images, one.eps, norm, "it")
            gradient = torch.randn(images.shape, generator=generator)
            state = state | one.advance(state, torch.rand(8, generator=generator), gradient)
            state["step"] = torch.full((8,), step + 1)
        check_within(state["moved"], images, one.eps, norm, "it")
        assert float(perturbation_sizes(state["moved"] - images, norm).max()) > 0


def test_what_leaves_its_ball_is_refused():
    images = torch.full((2, *SIZE), 0.5)
    check_within(images + 0.1, images, 0.1, "linf", "it")
    with pytest.raises(EvaluationError, match="it left its ball"):
        check_within(images + 0.1, images, 0.0999, "linf", "it")
    with pytest.raises(EvaluationError, match="range of pixels"):
        check_within(images + 0.6, images, 1.0, "linf", "it")
    with pytest.raises(EvaluationError, match="left its ball"):
        check_within(images + 0.1, images, 0.5, "l2", "it")


def test_logits_that_overflow_under_attack_are_refused():
    class Overflows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers = torch.stack([x.flatten(1).mean(1), x.flatten(1).mean(1) * 0], 1)
            return answers if bool((x == 0.5).all()) else answers / 0

    images = torch.full((2, *SIZE), 0.5)
    with pytest.raises(EvaluationError, match="not finite"):
        attack(Overflows(), Pgd(0.1, "linf", 3), images)


def test_apgd_looks_at_its_step_size_where_the_paper_has_it():
    """Of 100 steps: 0.22, 0.41, 0.57, 0.7, 0.8, 0.87, 0.93, 0.99, section 3 of arXiv 2003.01690."""
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_apgd_halves_its_step_where_the_loss_stands_still_and_goes_back_to_its_best_point():
    one, images = Apgd(0.1, "linf", 100), torch.full((2, *SIZE), 0.5)
    state = one.begin(images, torch.zeros(2, CLASSES), torch.arange(2))
    state |= {"images": images, "step": torch.zeros(2, dtype=torch.long)}
    best = state["moved"].clone()
    for step in range(23):
        losses = torch.tensor([1.0 - step, float(step)])  # the first is best at its start, the second always rises
        state = state | one.advance(state, losses, torch.ones_like(images))
        state["step"] = torch.full((2,), step + 1)
    assert state["size"].tolist() == pytest.approx([0.1, 0.2])
    assert torch.equal(state["before"][0], best[0])
    assert state["rises"].tolist() == [0, 0]


def test_the_ratio_of_logits_does_not_change_with_their_scale():
    logits, labels = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(4)), torch.arange(7) % CLASSES
    target = {"target": (labels + 1) % CLASSES}
    for one in (ApgdDlr(0.1, "linf", 5), ApgdTargeted(0.1, "linf", 5, rank=1)):
        small, large = (one.loss(scale * logits, labels, target) for scale in (1.0, 1e4))
        torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)
        assert (small.abs() > 1e-3).all()


@pytest.mark.parametrize("queries", [10_000, 1_000])
def test_squares_become_smaller_with_the_share_of_the_queries_that_is_spent(queries):
    one, images = LinfSquare(0.1, "linf", queries), torch.full((1, 1, 20, 20), 0.5)
    sides = []
    for step in (0, queries * 6 // 1000, queries * 6 // 100, queries * 9 // 10):
        state = one.begin(images, torch.zeros(1, CLASSES), torch.tensor([5]))
        state |= {"images": images, "step": torch.tensor([step])}
        # The whole image was better before, so that the next square is all that differs from it.
        state["moved"] = images
        tried = one.advance(state, torch.zeros(1), None)["moved"]
        sides.append(round(float((tried != images).sum()) ** 0.5))
    assert sides == sorted(sides, reverse=True)
    assert sides == [18, 9, 4, 1]  # √(0.8 · 400 / 2ᵏ), k = 0, 2, 4 and 9


@pytest.mark.parametrize("side", [1, 2, 3, 7, 44])
def test_a_bump_has_two_halves_of_opposite_sign_and_size_one(side):
    bump = two_halves(side)
    assert float(bump.norm()) == pytest.approx(1)
    assert (bump[: side // 2] > 0).all()
    assert (bump[side // 2 :] < 0).all()
    if side == 7:  # rectangles around the middle of the upper 3 rows and of the lower 4, each m-th of height 1/m²
        assert float(bump[1].argmax()) == 3
        assert bump[1, 3] / bump[1, 2] == pytest.approx((1 + 1 / 4 + 1 / 9 + 1 / 16) / (1 / 4 + 1 / 9 + 1 / 16))
        assert bump[5].argmin() == 3


def test_squares_in_l2_use_the_whole_radius_and_move_what_the_second_square_had():
    one, images = L2Square(0.4, "l2", 10_000), torch.full((6, 3, 23, 17), 0.5)
    seeds = torch.arange(6)
    state = one.begin(images, torch.zeros(6, CLASSES), seeds)
    started = state["moved"] - images
    torch.testing.assert_close(perturbation_sizes(started, "l2"), torch.full((6,), 0.4))
    state |= {"images": images, "step": torch.tensor([0, 9, 60, 600, 3_000, 9_000])}
    moved = one.advance(state, torch.zeros(6), None)["moved"] - images
    torch.testing.assert_close(perturbation_sizes(moved, "l2"), torch.full((6,), 0.4))
    # Outside the two squares only the scale may change: the pixels there are a multiple of what they were.
    for before, after in zip(started[3:], moved[3:], strict=True):
        ratio = after[before.abs() > 1e-6] / before[before.abs() > 1e-6]
        kept = (ratio - ratio.median()).abs() < 1e-3
        assert 0.5 < kept.float().mean() < 1
        assert 0.5 < ratio.median() <= 1
