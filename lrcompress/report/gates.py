"""Gates: conditions on the figures of a report under which a build fails."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.report.figures import FigureName, Missing, find_figure, parse_figure

CONFIDENCE = 0.95
CONDITION = re.compile(r"\s*(?P<figure>[^<>=]*?)\s*(?P<operator>>=|<=|>|<)\s*(?P<threshold>[^<>=\s]+)\s*")
EXAMPLE = "--fail-if 'clean.drop > 1.0'"


@dataclass(frozen=True)
class Gate:
    """A condition that must not hold.

    Attributes:
        figure: what it is about.
        operator: ">", ">=", "<" or "<=".
        threshold: in the figure's unit.
    """

    figure: FigureName
    operator: str
    threshold: float

    @property
    def text(self) -> str:
        """The condition as it may be written again."""
        return f"{self.figure.text} {self.operator} {self.threshold:.12g}"


@dataclass(frozen=True)
class GatePolicy:
    """All gates of a run.

    Attributes:
        gates: the conditions; none lets everything through.
        confidence: with which a figure must be on one side of the threshold.
    """

    gates: tuple[Gate, ...] = ()
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise OptionError(
                f"the confidence of gates must be above 0.5 and below 1, got {self.confidence:g}",
                hint=f"confidence = {CONFIDENCE}",
            )


def parse_gate(text: str, *, attacks: Collection[str]) -> Gate:
    """Returns the gate that a user wrote: `clean.drop > 1.0`.

    Args:
        text: figure, operator and number.
        attacks: names of attacks that are known.

    Raises:
        OptionError: if it is no condition, or no figure can have that name.
    """
    found = CONDITION.fullmatch(text)
    if found is None:
        raise OptionError(f"a gate is a figure, one of > >= < <=, and a number, got `{text}`", hint=EXAMPLE)
    figure = parse_figure(found["figure"], attacks=attacks)
    try:
        threshold = float(found["threshold"])
    except ValueError:
        threshold = float("nan")
    if not abs(threshold) < float("inf"):
        raise OptionError(f"the gate `{text}` compares with `{found['threshold']}`, which is no number", hint=EXAMPLE)
    return Gate(figure, found["operator"], threshold)


def judge(report: Mapping[str, Any], policy: GatePolicy) -> list[dict[str, Any]]:
    """Returns the outcome of each gate as JSON types.

    FAIL if the condition holds, PASS if it does not, each with the policy's confidence; INCONCLUSIVE if the images (for
    latencies the rounds) decide neither, or if there is a reason to doubt what would pass. A figure that is missing
    fails.

    Args:
        report: a report or a comparison.
        policy: the gates.
    """
    return [_judge(report, gate, policy.confidence) for gate in policy.gates]


def exit_code(outcomes: Sequence[Mapping[str, Any]]) -> int:
    """Returns 3 if any gate failed, else 4 if any was inconclusive, else 0."""
    found = {outcome["outcome"] for outcome in outcomes}
    return 3 if "FAIL" in found else 4 if "INCONCLUSIVE" in found else 0


def outcome_sentence(outcome: Mapping[str, Any]) -> str:
    """Returns one gate's outcome as one line."""
    return f"{outcome['outcome']}: fail if {outcome['gate']}: {outcome['message']}"


def _judge(report: Mapping[str, Any], gate: Gate, confidence: float) -> dict[str, Any]:
    asked = {"gate": gate.text, "figure": gate.figure.text, "operator": gate.operator, "threshold": gate.threshold}
    asked["confidence"] = confidence
    figure = find_figure(report, gate.figure, confidence=confidence)
    if isinstance(figure, Missing):
        return asked | {"outcome": "FAIL", "message": f"the figure is missing: {figure.reason}"}
    outcome = _outcome(gate, figure.low, figure.high)
    unit = f" {figure.unit}" if figure.unit else ""
    bounds = f", bounds {figure.low:.2f} to {figure.high:.2f}" if figure.low < figure.high else ""
    message = f"{figure.value:.2f}{unit}{bounds} ({figure.evidence})"
    if outcome == "PASS" and figure.doubt:
        outcome, message = "INCONCLUSIVE", f"{message}; {figure.doubt}"
    elif outcome == "INCONCLUSIVE":
        message = f"{message}; too few to decide"
    found = {"value": figure.value, "bounds": [figure.low, figure.high], "unit": figure.unit}
    return asked | found | {"outcome": outcome, "message": message}


def _outcome(gate: Gate, low: float, high: float) -> str:
    """Returns what is known of a value between two bounds."""
    holds = {
        ">": lambda value: value > gate.threshold,
        ">=": lambda value: value >= gate.threshold,
        "<": lambda value: value < gate.threshold,
        "<=": lambda value: value <= gate.threshold,
    }[gate.operator]
    if holds(low) and holds(high):
        return "FAIL"
    return "INCONCLUSIVE" if holds(low) or holds(high) else "PASS"
