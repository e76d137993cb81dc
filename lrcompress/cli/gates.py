"""Gates on the command line: their options, and how their outcome ends a command."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.cli.console import stderr
from lrcompress.cli.options import in_panel
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.report import GatePolicy
    from lrcompress.robustness import AttackSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

POLICY_KEYS = ("fail_if", "confidence")
POLICY_EXAMPLE = 'fail_if = ["clean.drop > 1.0", "pgd@4/255.drop > 2"]'


class GivenGates:
    """The gates as they were typed; `policy` reads them."""

    def __init__(self, fail_if: Sequence[str], file: Path | None) -> None:
        self.fail_if, self.file = fail_if, file

    def policy_of_run(self, settings: "AttackSettings | None") -> "GatePolicy":
        """Returns all gates for a run whose figures do not exist yet.

        Args:
            settings: of its attacks; None if it has none.

        Raises:
            OptionError: if a gate or the file cannot be understood, or a gate is about what the run does not measure.
        """
        from lrcompress.perturb import format_radius
        from lrcompress.report import same_radius

        attacks = settings.attacks if settings is not None else ()
        policy = self.policy(attacks=attacks)
        counted = set(attacks) - set(settings.of_paper() if settings is not None else ())
        measured = {*attacks, *(["worst"] if counted else [])}
        for gate in policy.gates:
            name, eps = gate.figure.attack, gate.figure.eps
            if not name:
                continue
            if settings is None or name not in measured:
                hint = f"it attacks with {', '.join(attacks)}" if attacks else "lrcompress attack takes such gates"
                raise OptionError(f"the gate `{gate.text}` needs {name}, which this run does not measure", hint=hint)
            if settings.eps and not any(same_radius(eps, one) for one in settings.eps):
                radii = ",".join(format_radius(one, settings.norm) for one in settings.eps)
                raise OptionError(
                    f"the gate `{gate.text}` is about a radius that this run does not measure",
                    hint=f"--eps {radii} was given",
                )
        return policy

    def policy(self, *, attacks: Sequence[str] = ()) -> "GatePolicy":
        """Returns all gates of the options and of the file.

        Args:
            attacks: names that are known besides those of this program.

        Raises:
            OptionError: if a gate or the file cannot be understood.
        """
        from lrcompress.report import GatePolicy, parse_gate
        from lrcompress.robustness import ATTACKS

        values = {} if self.file is None else read_policy(self.file)
        known = [*ATTACKS, *(name for name in attacks if name not in ATTACKS)]
        gates = tuple(parse_gate(text, attacks=known) for text in (*values.pop("fail_if", []), *self.fail_if))
        return GatePolicy(gates, **values)


@in_panel("Gates")
def gate_options(
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Fail if this is so, 'clean.drop > 1.0' for example (docs: In CI); may be repeated. "
            "Exit code 3 if a gate fails, 4 if the images are too few to decide.",
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file of such conditions.")] = None,
) -> GivenGates:
    """Returns the gates as they were typed."""
    return GivenGates(fail_if or (), policy)


def read_policy(path: Path) -> dict[str, Any]:
    """Returns what stands in a policy file: `fail_if`, a list of conditions, and `confidence`, a number.

    Raises:
        OptionError: if it cannot be read, or holds anything else.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise OptionError(f"no policy in `{path}`: {error.strerror}", hint="--policy takes a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"no policy in `{path}`: {error}", hint=POLICY_EXAMPLE) from error
    for key in values:
        if key not in POLICY_KEYS:
            near = difflib.get_close_matches(key, POLICY_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(POLICY_KEYS)}"
            raise OptionError(f"`{path}` has the key `{key}`", hint=hint)
    conditions = values.get("fail_if", [])
    if not isinstance(conditions, list) or not all(isinstance(one, str) for one in conditions):
        raise OptionError(f"`fail_if` in `{path}` is no list of conditions", hint=POLICY_EXAMPLE)
    if not conditions:
        raise OptionError(f"`{path}` has no gates", hint=POLICY_EXAMPLE)
    if type(values.get("confidence", 0.95)) is not float:
        raise OptionError(f"`confidence` in `{path}` is no number below 1", hint="confidence = 0.95")
    return values


def judge_report(
    report: Mapping[str, Any], policy: "GatePolicy", artifact: Path, *, latest: bool = False
) -> dict[str, Any]:
    """Returns the report with the outcomes of the gates, which are told and written into JSON and HTML.

    Args:
        report: to be judged; returned as it is if there are no gates.
        policy: the gates.
        artifact: beside which the report lies.
        latest: whether of all evaluations only the last one counts.
    """
    from lrcompress.artifact import write_atomically
    from lrcompress.report import judge, render_documents, with_gates

    if not policy.gates:
        return dict(report)
    judged = {**report, "evaluations": report["evaluations"][-1:]} if latest else report
    outcomes = judge(judged, policy)
    updated = with_gates(report, outcomes)
    for document, content in render_documents(updated, artifact).items():
        write_atomically(document, content)
    tell_outcomes(outcomes)
    return updated


def tell_outcomes(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Prints the outcome of each gate to stderr."""
    from lrcompress.report import outcome_sentence

    for outcome in outcomes:
        stderr().print(outcome_sentence(outcome), markup=False)


def end_with_gates(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Ends the command with exit code 3 if a gate failed, 4 if one was inconclusive."""
    from lrcompress.report import exit_code

    if code := exit_code(outcomes):
        raise typer.Exit(code)
