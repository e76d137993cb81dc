"""Searches the smallest model that keeps its accuracy: bisection over one knob, the budget."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from lrcompress.errors import OptionError, SearchError
from lrcompress.plan import Budget, CompressionPlan, RankPolicy, Smallest

EVALUATIONS = 8
ROUNDING = 1e-9  # points; accuracies are counts divided by counts, and 94.45 − 93.95 is not 0.5 to the last bit


@dataclass(frozen=True)
class MaxDrop:
    """The smallest budget whose model loses at most some accuracy on images of the training split.

    Attributes:
        points: the largest loss of clean accuracy in percentage points, in (0, 100).
        images: how many images it is measured on, of the training split, or all if there are fewer: the test split is
            for the report.
        seed: of their choice.

    Raises:
        OptionError: if a value is out of range.
    """

    points: float
    images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.points) and 0 < self.points < 100):
            raise OptionError(
                f"--max-drop must lie strictly between 0 and 100 points, got {self.points}",
                hint="--max-drop 0.5 allows 93.0 % to become 92.5 %",
            )

    def check_data(self, data: str | None) -> str:
        """Returns the source of the images.

        Raises:
            OptionError: if there is none, or one that has too few.
        """
        if data is None or data.startswith("samples/"):
            raise OptionError(
                "--max-drop needs images to measure accuracy on" + (f", `{data}` has too few" if data else ""),
                hint="--data DIR",
            )
        return data


@dataclass(frozen=True)
class Evaluation:
    """One model of the search.

    Attributes:
        budget: share of the dense network's parameters it was allowed.
        kept: share of them it has.
        accuracy: in [0, 1].
        drop: points below the dense network, on the same images.
    """

    budget: float
    kept: float
    accuracy: float
    drop: float


def search_budget(
    target: MaxDrop,
    *,
    parameters: int,
    dense_accuracy: float,
    make: Callable[[RankPolicy], CompressionPlan],
    accuracy_of: Callable[[CompressionPlan], float],
    on_evaluation: Callable[[Evaluation], None],
) -> CompressionPlan:
    """Returns the plan of the smallest budget that was found to keep the accuracy; all evaluations are in its policy.

    Halves the interval between the smallest possible budget and the whole network in the logarithm, eight times, so
    the budget is found to within 2 % of itself where a tenth to all of the network remains. Accuracy need not fall
    evenly with the budget: what is promised is the accuracy that was measured, not that nothing smaller would do.

    Args:
        target: what is asked for, with the number of images that there are.
        parameters: of the dense network.
        dense_accuracy: of the dense network on the same images, in [0, 1].
        make: from a policy to a plan.
        accuracy_of: measures what a plan makes.
        on_evaluation: follows the search.

    Raises:
        SearchError: if no smaller model was found that keeps the accuracy.
        OptionError: if there is none.
    """
    low, high = 1 - make(Smallest()).removed_parameters() / parameters, 1.0
    if low >= high:
        raise OptionError(
            "no layer can be made smaller", hint="`lrcompress plan` names the reasons; see --include-classifier"
        )
    found: CompressionPlan | None = None
    evaluations: list[Evaluation] = []
    for _ in range(EVALUATIONS):
        budget = math.sqrt(low * high)
        plan = make(Budget(fraction=budget))
        accuracy = accuracy_of(plan)
        drop = 100 * (dense_accuracy - accuracy)
        evaluations.append(Evaluation(budget, 1 - plan.removed_parameters() / parameters, accuracy, drop))
        on_evaluation(evaluations[-1])
        if drop <= target.points + ROUNDING:
            found, high = plan, budget
        else:
            low = budget
    if found is None or not found.factorized():
        mildest = max((one for one in evaluations if one.drop > target.points + ROUNDING), key=lambda one: one.kept)
        raise SearchError(
            f"no smaller model was found that loses at most {target.points:g} points: "
            f"with {100 * mildest.kept:.1f} % of the parameters it loses {mildest.drop:.2f}",
            hint="raise --max-drop, add --calibrate DIR, or fine-tune with --data DIR --tol 0.15",
        )
    policy = {
        **found.policy,
        "name": "max drop",
        **asdict(target),
        "fraction": high,
        "dense_accuracy": dense_accuracy,
        "evaluations": [asdict(one) for one in evaluations],
    }
    return replace(found, policy=policy)
