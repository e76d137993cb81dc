"""`lrcompress attack`."""

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
def attack(
    file: ArtifactArgument,
    pgd: Annotated[
        bool, typer.Option("--pgd", help="PGD; noise and FGSM go with it as a check of its strength.")
    ] = False,
    fgsm: Annotated[bool, typer.Option("--fgsm", help="The fast gradient (sign) method.")] = False,
    noise: Annotated[bool, typer.Option("--noise", help="Random noise: not an attack, a floor for attacks.")] = False,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="An attack by name: noise, fgsm, pgd; may be repeated.")
    ] = None,
    norm: Annotated[str, typer.Option(help="Of the perturbation: linf or l2.")] = "linf",
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii in pixel units of images in [0, 1], as 8/255,4/255 (default 1, 2, 4, 8/255; ℓ2: 0.1 to 1)."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of PGD.")] = 20,
    restarts: Annotated[int, typer.Option(help="Random restarts; the worst case of all counts.")] = 1,
    samples: SamplesOption = None,
    data: DataOption = None,
    baseline: BaselineOption = None,
    arch: FactoryOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 128,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Attack a compressed model and its original.

    Both are attacked on the same images, and the result is added to the report.

    Without --data the data set of the fine-tuning is used, else the 20 labelled images that foolbox ships.

    \b
    Examples:
      lrcompress attack out.safetensors --pgd
      lrcompress attack out.safetensors --pgd --eps 8/255,4/255 --steps 50 --restarts 2 --samples 1000 --data DIR
      lrcompress attack out.safetensors --fgsm --norm l2 --eps 0.5 --baseline resnet50.pt --json
    """
    from lrcompress.pipeline import EvaluateOptions, evaluate
    from lrcompress.report import report_paths
    from lrcompress.robustness import AttackSettings, parse_eps, parse_norm

    flags = (("pgd", pgd), ("fgsm", fgsm), ("noise", noise))
    names = [name for name, wanted in flags if wanted] + list(attacks or ())
    known_norm = parse_norm(norm)
    settings = AttackSettings(
        attacks=with_checks(names or ["pgd"]),
        norm=known_norm,
        eps=parse_eps(eps or (), known_norm),
        steps=steps,
        restarts=restarts,
        batch_size=batch_size,
        seed=seed,
    )
    check_device(device)
    options = EvaluateOptions(
        settings=settings,
        data=data,
        samples=samples,
        baseline=baseline,
        arch=arch,
        device=device,
        command=typed_command(),
    )
    with follow_progress() as observer:
        evaluation, _ = evaluate(file, options, observer=observer)
    columns, rows = evaluation_rows(evaluation)
    print_table(f"{evaluation.images} images of {evaluation.data}: accuracy [95 % interval]", columns, rows)
    for finding in evaluation.findings:
        stderr().print(f"{finding.severity.upper()}: {finding.message}", markup=False)
    stderr().print(f"report: {report_paths(file)[1]}", markup=False)
    if as_json:
        print_json(evaluation.to_json())
    else:
        typer.echo(str(report_paths(file)[0]))


def with_checks(names: list[str]) -> tuple[str, ...]:
    """Returns the attacks in order of cost, noise and FGSM added to PGD: where they beat it, PGD was too weak.

    >>> with_checks(["pgd"])
    ('noise', 'fgsm', 'pgd')
    >>> with_checks(["fgsm"])
    ('fgsm',)
    """
    order = ("noise", "fgsm", "pgd")
    wanted = set(names) | (set(order) if "pgd" in names else set())
    return tuple(sorted(wanted, key=lambda name: order.index(name) if name in order else len(order)))
