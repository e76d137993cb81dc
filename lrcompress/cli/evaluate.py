"""`lrcompress evaluate`."""

from typing import Annotated

import typer

from lrcompress.cli.console import explain_errors, follow_progress, print_json, print_table, stderr, typed_command
from lrcompress.cli.options import (
    ArtifactArgument,
    BaselineOption,
    DataOption,
    DeviceOption,
    FactoryOption,
    JsonOption,
    SamplesOption,
    SeedOption,
    check_device,
    evaluation_rows,
)


@explain_errors
def evaluate(
    file: ArtifactArgument,
    data: DataOption = None,
    samples: SamplesOption = None,
    baseline: BaselineOption = None,
    arch: FactoryOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 128,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure clean accuracy beside the original's.

    On the same images; the result is added to the report.

    \b
    Examples:
      lrcompress evaluate out.safetensors --data DIR
      lrcompress evaluate out.safetensors --data samples/imagenet --json
    """
    from lrcompress.pipeline import EvaluateOptions
    from lrcompress.pipeline import evaluate as run
    from lrcompress.report import accuracy_sentences, report_paths
    from lrcompress.robustness import AttackSettings

    check_device(device)
    options = EvaluateOptions(
        settings=AttackSettings(batch_size=batch_size, seed=seed),
        data=data,
        samples=samples,
        baseline=baseline,
        arch=arch,
        device=device,
        command=typed_command(),
    )
    with follow_progress() as observer:
        evaluation, _ = run(file, options, observer=observer)
    columns, rows = evaluation_rows(evaluation)
    print_table(f"{evaluation.images} images of {evaluation.data}: accuracy [95 % interval]", columns, rows)
    for sentence in accuracy_sentences(evaluation.to_json()):
        stderr().print(sentence, markup=False)
    for finding in evaluation.findings:
        stderr().print(f"{finding.severity.upper()}: {finding.message}", markup=False)
    if as_json:
        print_json(evaluation.to_json())
    else:
        typer.echo(str(report_paths(file)[0]))
