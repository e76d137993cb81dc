"""`lrcompress attack`."""

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from lrcompress.cli.console import explain_errors
from lrcompress.cli.evaluate import run_evaluation
from lrcompress.cli.gates import GivenGates, gate_options
from lrcompress.cli.options import ArtifactArgument, JsonOption, evaluate_options, with_options
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.pipeline import EvaluateOptions

DEFAULT_STEPS = {"linf": 20, "l2": 20, "l1": 100}  # in ℓ1 attacks converge slowly


class Suite(str, Enum):
    """What `--suite` takes."""

    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"
    PAPER = "paper"


@explain_errors
@with_options(options=evaluate_options, gates=gate_options)
def attack(
    file: ArtifactArgument,
    pgd: Annotated[
        bool,
        typer.Option("--pgd", help="PGD, also if none is named; noise and FGSM go with it to check its strength."),
    ] = False,
    fgsm: Annotated[bool, typer.Option("--fgsm", help="The fast gradient (sign) method.")] = False,
    noise: Annotated[bool, typer.Option("--noise", help="Random noise: not an attack, a floor for attacks.")] = False,
    autoattack: Annotated[
        bool,
        typer.Option("--autoattack", help="AutoAttack by its own package: pip install 'lrcompress[autoattack]'."),
    ] = False,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            metavar="NAME",
            help="An attack by name: noise, fgsm, pgd, apgd-ce, apgd-dlr, apgd-t, square, deepfool, fmn, ddn, cw, "
            "autoattack, paper-l2fgsm, paper-l1fgsm, paper-jitter, paper-mixup, or a class of foolbox, "
            "L2FMNAttack:steps=200 for example; may be repeated.",
        ),
    ] = None,
    suite: Annotated[
        Suite | None,
        typer.Option(
            help="Several attacks: quick (noise, FGSM, PGD), standard (APGD-CE and APGD-DLR too), full (targeted APGD, "
            "Square, DeepFool, FMN too); those that do not fit the norm are left out. paper: the four attacks of arXiv "
            "2505.08022, whose ε is their own and not comparable with ε in pixels."
        ),
    ] = None,
    norm: Annotated[str, typer.Option(help="Of the perturbation: linf, l2 or l1.")] = "linf",
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii in pixel units of images in [0, 1], as 8/255,4/255. Without them 1, 2, 4, 8/255 (ℓ2: 0.1 to 1; "
            "ℓ1: 1 to 10), smaller or larger ones where all or none of the images would be lost. The paper's attacks "
            "take them in units of normalised images; alone they have 0.025 to 0.3."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of PGD and APGD (default 20, in ℓ1 100).")] = None,
    restarts: Annotated[int, typer.Option(help="Random restarts; the worst case of all counts.")] = 1,
    queries: Annotated[int, typer.Option(help="Queries of Square.")] = 1000,
    corruptions: Annotated[
        bool,
        typer.Option("--corruptions", help="Accuracy under common corruptions: noise, blur, weather, JPEG and more."),
    ] = False,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Certify the smoothed classifier (not the model itself) in ℓ2; takes long."),
    ] = False,
    sigma: Annotated[float | None, typer.Option(help="Noise of --certify in pixel units (default 0.25).")] = None,
    smoothing_samples: Annotated[
        int | None, typer.Option(help="Noisy copies of each image for --certify (default 1000).")
    ] = None,
    *,
    options: "EvaluateOptions",
    gates: GivenGates,
    as_json: JsonOption = False,
) -> None:
    """Attack a compressed model and its original.

    Both are attacked on the same images, and the result is added to the report.

    Without --data the data set of the fine-tuning is used, else the 20 labelled images that foolbox ships.

    \b
    Examples:
      lrcompress attack out.safetensors --pgd
      lrcompress attack out.safetensors --pgd --eps 8/255,4/255 --steps 50 --restarts 2 --samples 1000 --data DIR
      lrcompress attack out.safetensors --suite standard --data DIR --time-limit 3600
      lrcompress attack out.safetensors --corruptions --data DIR
      lrcompress attack out.safetensors --certify --sigma 0.25 --samples 100 --data DIR
      torchrun --nproc-per-node 2 -m lrcompress attack out.safetensors --suite standard --data DIR --device cuda
      lrcompress attack out.safetensors --fgsm --norm l2 --eps 0.5 --baseline resnet50.pt --json
      lrcompress attack out.safetensors --pgd --eps 4/255 --data DIR --fail-if 'pgd@4/255.drop > 2'
    """
    from lrcompress.robustness import ATTACKS, SUITES, Smoothing, parse_eps, parse_norm

    for option, value in (("--sigma", sigma), ("--smoothing-samples", smoothing_samples)):
        if value is not None and not certify:
            raise OptionError(f"{option} is for --certify", hint=f"--certify {option} {value:g}")
    smoothing = None
    if certify:
        given = {"sigma": sigma, "samples": smoothing_samples}
        smoothing = Smoothing(**{key: value for key, value in given.items() if value is not None})

    flags = (("pgd", pgd), ("fgsm", fgsm), ("noise", noise), ("autoattack", autoattack))
    names = [name for name, wanted in flags if wanted] + list(attacks or ())
    known_norm = parse_norm(norm)
    if suite is not None:
        fitting = [in_norm(name, known_norm) for name in SUITES[suite.value] if known_norm in ATTACKS[name].norms]
        if not fitting:
            raise OptionError(f"no attack of --suite {suite.value} works in {known_norm}", hint="--norm linf")
        names += fitting
    settings = replace(
        options.settings,
        attacks=with_checks(names or ([] if corruptions or certify else [in_norm("pgd", known_norm)])),
        norm=known_norm,
        eps=parse_eps(eps or (), known_norm),
        steps=steps if steps is not None else DEFAULT_STEPS[known_norm],
        restarts=restarts,
        queries=queries,
        corruptions=corruptions,
        smoothing=smoothing,
    )
    policy = gates.policy_of_run(settings)
    run_evaluation(file, replace(options, settings=settings), policy, as_json=as_json)


def in_norm(name: str, norm: str) -> str:
    """Returns the attack that takes the place of another in a norm: in ℓ1 PGD is weak.

    >>> in_norm("pgd", "linf"), in_norm("pgd", "l1"), in_norm("fgsm", "l1")
    ('pgd', 'apgd-ce', 'fgsm')
    """
    return "apgd-ce" if (name, norm) == ("pgd", "l1") else name


def with_checks(names: list[str]) -> tuple[str, ...]:
    """Returns the attacks in order of cost, with noise and FGSM beside iterated ones, whose strength they check.

    >>> with_checks(["pgd"])
    ('noise', 'fgsm', 'pgd')
    >>> with_checks(["square", "fgsm"])
    ('fgsm', 'square')
    """
    iterated = any(name.startswith(("pgd", "apgd")) for name in names)
    order = ("noise", "fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square")
    wanted = dict.fromkeys(("noise", "fgsm", *names) if iterated else names)
    return tuple(sorted(wanted, key=lambda name: order.index(name) if name in order else len(order)))
