"""`lrcompress evaluate`, and how any evaluation is run and told."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lrcompress.cli.console import explain_errors, explained_errors, follow_progress, print_json, print_table, stderr
from lrcompress.cli.gates import GivenGates, end_with_gates, gate_options, judge_report
from lrcompress.cli.options import ArtifactArgument, JsonOption, evaluate_options, with_options

if TYPE_CHECKING:
    from lrcompress.pipeline import EvaluateOptions
    from lrcompress.report import GatePolicy


AGAIN = "start the same command again: it goes on with the images that are finished"


@explain_errors
@with_options(options=evaluate_options, gates=gate_options)
def evaluate(
    file: ArtifactArgument, options: "EvaluateOptions", gates: GivenGates, as_json: JsonOption = False
) -> None:
    """Measure clean accuracy beside the original's.

    On the same images; the result is added to the report.

    Without --data the data set of the fine-tuning is used, else the 20 labelled images that foolbox ships.

    \b
    Examples:
      lrcompress evaluate out.safetensors --data DIR
      lrcompress evaluate out.safetensors --data samples/imagenet --json
      lrcompress evaluate out.safetensors --data DIR --fail-if 'clean.drop > 1.0'
    """
    run_evaluation(file, options, gates.policy_of_run(None), as_json=as_json)


def run_evaluation(file: Path, options: "EvaluateOptions", policy: "GatePolicy", *, as_json: bool) -> None:
    """Evaluates an artifact and its original, and prints table, doubts, gates, and where the report lies.

    Gates are judged by this evaluation, not by earlier ones in the report.
    """
    from lrcompress.pipeline import evaluate, joined_processes
    from lrcompress.report import accuracy_sentences, drop_sentences, report_paths, robustness_sentences, tables_beside

    # Of joined processes one has the error, whichever it is.
    with explained_errors(), joined_processes(options.device, hint=AGAIN) as device, follow_progress() as observer:
        _, report = evaluate(file, replace(options, device=device), observer=observer)
    if not report:
        return  # one of several processes, and not the one that writes
    values = {key: value for key, value in report["evaluations"][-1].items() if key != "command"}
    columns, rows = evaluation_rows(values)
    title = f"{values['images']} images of {values['data']}: accuracy [95 % interval]"
    print_table(title, columns, rows, texts=(0, 1) if "paper" in values["settings"] else (0,))
    for table in tables_beside(values):
        print_table(table.caption, table.columns, table.rows, texts=(0, *table.texts))
    sentences = (
        *accuracy_sentences(values),
        *drop_sentences(report["recipe"], values),
        *robustness_sentences(values),
    )
    for sentence in sentences:
        stderr().print(sentence, markup=False)
    for finding in values["findings"]:
        stderr().print(f"{finding['severity'].upper()}: {finding['message']}", markup=False)
    as_json_file, as_html_file = report_paths(file)
    stderr().print(f"report: {as_html_file}", markup=False)
    report = judge_report(report, policy, file, latest=True)
    if as_json:
        print_json({**values, "gates": report["gates"]} if policy.gates else values)
    else:
        typer.echo(str(as_json_file))
    end_with_gates(report["gates"])


def evaluation_rows(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and rows of the table of an evaluation: shares with their intervals, models side by side."""
    from lrcompress.report import ordered_attacks, radius_of, share_cell

    models = values["models"]
    titles = {"baseline": "uncompressed", "compressed": "compressed"}
    columns = ["attack", "ε", *(titles[role] for role in models)]
    rows = [["none (clean)", "0", *(share_cell(model["clean"]) for model in models.values())]]
    for attack in ordered_attacks(values):
        for index, row in enumerate(models["compressed"]["attacks"][attack]):
            cells = [share_cell(model["attacks"][attack][index]) for model in models.values()]
            rows.append(["worst case" if attack == "worst" else attack, radius_of(attack, row["eps"], values), *cells])
    return columns, rows
