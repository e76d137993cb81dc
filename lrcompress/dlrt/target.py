"""What drives the budget of a training: an annealing down to what was asked for, or a largest drop of accuracy."""

from dataclasses import dataclass

from lrcompress.plan import Budget

SHRINK, GROW = 0.85, 1.1


@dataclass(frozen=True)
class Annealing:
    """A budget that starts at a multiple of what was asked for and comes down to it, fast at first.

    Which directions a network needs shows while it is trained with more of them than it will keep. The cubic is that
    of gradual pruning.

    Args:
        budget: what was asked for.
        factor: what the training starts with, as a multiple of it; at least 1.
        steps: after which the budget is what was asked for.

    Source: Zhu, Gupta 2017, To prune, or not to prune (arXiv 1710.01878).
    """

    budget: Budget
    factor: float
    steps: float

    def policy(self, position: float) -> Budget:
        """Returns the budget at a position of the run, in steps."""
        left = 1 - min(1.0, position / max(self.steps, 1.0))
        return self.budget.times(1 + (self.factor - 1) * left**3)


@dataclass
class DropTarget:
    """Drives the budget of a training after each of its epochs.

    While the held-out accuracy stays within half of the drop the budget shrinks, beyond the whole of it the budget
    grows again; the frozen phase that follows usually wins some accuracy back.

    Attributes:
        reference: held-out accuracy of the uncompressed network, in [0, 1].
        points: the largest drop, in points.
        smallest: share of the dense network's parameters below which no budget can go.
        fraction: of these parameters that may be kept now; None before the first epoch.
    """

    reference: float
    points: float
    smallest: float
    fraction: float | None = None

    def after(self, accuracy: float, kept: float) -> Budget:
        """Returns the budget for the next epoch.

        Args:
            accuracy: on the held-out images, in [0, 1].
            kept: share of the parameters that the network has now.
        """
        drop = 100 * (self.reference - accuracy)
        now = min(self.fraction or kept, kept) if drop <= self.points else max(self.fraction or kept, kept)
        factor = SHRINK if drop <= self.points / 2 else 1.0 if drop <= self.points else GROW
        self.fraction = min(max(now * factor, 1.05 * self.smallest), 0.999)
        return self.policy()

    def policy(self) -> Budget:
        """Returns the budget of now."""
        return Budget(fraction=self.fraction)

    def reached(self, accuracy: float) -> bool:
        """Whether an accuracy is within the drop."""
        return 100 * (self.reference - accuracy) <= self.points + 1e-9
