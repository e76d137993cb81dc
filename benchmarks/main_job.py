"""The figures of the main job: the demo, the full Fashion-MNIST network, exactness, and the start of the program.

    python benchmarks/main_job.py demo                  # lrcompress demo in a new folder, about 4 minutes
    python benchmarks/main_job.py fashion --data DIR    # needs runs/vgg11_bn.pt of train_networks.py, about 20 minutes
    python benchmarks/main_job.py exactness             # full rank and save/load on four architectures
    python benchmarks/main_job.py start                 # lrcompress --help against importing typer and rich
    python benchmarks/main_job.py --summary             # prints the committed figures and runs nothing

Each part replaces its own entry of benchmarks/results/main_job.json, so that a stopped run loses one part at most.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import read_results, write_results

ROOT = Path(__file__).parents[1]
LRCOMPRESS = [sys.executable, "-m", "lrcompress"]
FASHION = ["--tol", "0.12", "--max-rank", "48", "--epochs", "6", "--lr", "0.002", "--beta", "0.01"]
STARTS = 15


def run_json(arguments: list[str], folder: Path = ROOT) -> dict:
    """Returns what the command prints with --json; its progress goes to this program's stderr."""
    done = subprocess.run([*LRCOMPRESS, *arguments, "--json"], cwd=folder, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def figures_of(report: dict) -> dict:
    """Returns the figures of one report; differences of accuracy in points."""
    clean = report["evaluations"][0]
    before, after = (clean["models"][role]["clean"] for role in ("baseline", "compressed"))
    return {
        "file_ratio": report["size"]["compressed"]["bytes"] / report["size"]["baseline"]["bytes"],
        "removed": report["size"]["removed"],
        "size": {role: report["size"][role] for role in ("baseline", "compressed")},
        "images": clean["images"],
        "clean_before": before["accuracy"],
        "clean_after": after["accuracy"],
        "interval_after": after["interval"],
        "drop": 100 * (before["accuracy"] - after["accuracy"]),
        "paired": clean["paired"]["clean"],
        "recipe": report["recipe"],
        "command": clean["command"],
    }


def attack_of(report: dict) -> dict | None:
    """Returns the worst-case accuracies of the report's attack, for both models."""
    attacked = [evaluation for evaluation in report["evaluations"] if evaluation["settings"]["attacks"]]
    if not attacked:
        return None
    evaluation = attacked[-1]
    return {
        "images": evaluation["images"],
        "settings": evaluation["settings"],
        "seed": evaluation["seed"],
        "command": evaluation["command"],
        "findings": evaluation["findings"],
        "worst": {
            role: [{key: row[key] for key in ("eps", "accuracy", "interval")} for row in model["attacks"]["worst"]]
            for role, model in evaluation["models"].items()
        },
    }


def demo() -> dict:
    """Runs the demo in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        reports = run_json(["demo", "-o", "demo-out"], Path(folder))
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "fashion": figures_of(reports["fashion"]) | {"attack": attack_of(reports["fashion"])},
        "imagenet": figures_of(reports["imagenet"]),
    }


def fashion(data: str) -> dict:
    """Compresses the full Fashion-MNIST network and attacks both on 500 images."""
    arch = ["--arch", "benchmarks/networks.py:vgg11_bn"]
    output = Path("runs/vgg11_bn.small.safetensors")
    start = time.perf_counter()
    report = run_json(
        [
            "compress",
            "runs/vgg11_bn.pt",
            *arch,
            *FASHION,
            "--precision",
            "bfloat16",
            "--data",
            data,
            "-o",
            str(output),
            "--overwrite",
        ]
    )
    seconds = time.perf_counter() - start
    run_json(["attack", str(output), *arch, "--pgd", "--samples", "500", "--data", data])
    report = json.loads((ROOT / output.with_suffix(".report.json")).read_text())
    return fashion_figures(report, data) | {"seconds": seconds}


def fashion_figures(report: dict, data: str) -> dict:
    """Returns what is kept of the report of the full Fashion-MNIST network; DIR stands for the reader's own folder."""
    figures, attack = figures_of(report), attack_of(report)
    for part in (figures, figures["recipe"]["fine_tuning"], attack):
        part |= {key: value.replace(data, "DIR") for key, value in part.items() if isinstance(value, str)}
    return figures | {
        "attack": attack,
        "latency": report["latency"],
        "dense_training": json.loads((ROOT / "runs" / "vgg11_bn.json").read_text()),
        "layers": [{key: x.get(key) for key in ("name", "scheme", "rank", "dense_shape")} for x in report["layers"]],
    }


def exactness() -> dict:
    """Factorises four architectures at full rank, saves and loads them, and compares logits."""
    import torch

    from lrcompress.artifact import Cost, Manifest, installed_versions, load_artifact, pack_artifact, save_artifact
    from lrcompress.factorize import describe_layers, factorize
    from lrcompress.models import Architecture, build_model, default_preprocessing
    from lrcompress.plan import FullRank, make_plan

    cases = {
        "timm/resnet50": Architecture("timm", "resnet50"),
        "torchvision/vgg11_bn": Architecture("torchvision", "vgg11_bn"),
        "timm/vit_small_patch16_224": Architecture("timm", "vit_small_patch16_224"),
        "timm/tf_efficientnet_lite0": Architecture("timm", "tf_efficientnet_lite0"),
    }
    rows = {}
    for label, architecture in cases.items():
        torch.manual_seed(0)
        model = build_model(architecture)
        preprocessing = default_preprocessing(architecture, model)
        images = torch.rand(2, *preprocessing.input_size)
        plan = make_plan(model, FullRank(), input_size=preprocessing.input_size, include_classifier=True)
        low_rank = factorize(model, plan)
        zero = Cost(1, 1, 1)
        manifest = Manifest(
            architecture=architecture,
            preprocessing=preprocessing,
            num_classes=1000,
            class_names=(),
            dtype="float32",
            layers=describe_layers(model, low_rank, plan),
            recipe={},
            source={},
            baseline=zero,
            compressed=zero,
            shared={},
            tensors_sha256="",
            versions=installed_versions(),
        )
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            path = Path(folder) / "full.safetensors"
            save_artifact(path, pack_artifact(low_rank, manifest))
            dense, factored, loaded = model(images), low_rank(images), load_artifact(path).model(images)
        rows[label] = {
            "layers_factorized": len(plan.factorized()),
            "relative_error": float((factored - dense).norm() / dense.norm()),
            "reloaded_equal": bool(torch.equal(factored, loaded)),
        }
    return rows


def start() -> dict:
    """Times `lrcompress --help` and the import of typer and rich in turn, each in a new process."""
    rounds = []
    commands = (["-m", "lrcompress", "--help"], ["-c", "import typer, rich"])
    for _ in range(STARTS + 1):
        times = []
        for command in commands:
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begin)
        rounds.append(times)
    counted = rounds[1:]  # the first one reads the disk
    return {
        "ratio": statistics.median(ours / theirs for ours, theirs in counted),
        "help_seconds": statistics.median(ours for ours, _ in counted),
        "import_seconds": statistics.median(theirs for _, theirs in counted),
        "rounds": len(counted),
    }


def summary() -> dict:
    """Returns the figures of the committed results; a missing part is null."""
    parts = read_results("main_job")
    demo_part, fashion_part = parts.get("demo", {}), parts.get("fashion", {})
    exact = {
        label: row
        for label, row in parts.get("exactness", {}).items()
        if isinstance(row, dict) and "layers_factorized" in row
    }
    return {
        "demo_file_ratio": demo_part.get("fashion", {}).get("file_ratio"),
        "demo_drop": demo_part.get("fashion", {}).get("drop"),
        "demo_seconds": demo_part.get("seconds"),
        "fashion_dense_accuracy": fashion_part.get("clean_before"),
        "fashion_removed": fashion_part.get("removed", {}).get("parameters"),
        "fashion_drop": fashion_part.get("drop"),
        "full_rank_error": max((row["relative_error"] for row in exact.values()), default=None),
        "reloaded_equal": all(row["reloaded_equal"] for row in exact.values()) if exact else None,
        "help_ratio": parts.get("start", {}).get("ratio"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["demo", "fashion", "exactness", "start"])
    parser.add_argument("--data", help="folder with the idx files of Fashion-MNIST")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(json.dumps(summary(), indent=1))
    elif arguments.part == "fashion" and not arguments.data:
        parser.error("fashion needs --data DIR")
    elif arguments.part:
        run = {"demo": demo, "exactness": exactness, "start": start}
        part = fashion(arguments.data) if arguments.part == "fashion" else run[arguments.part]()
        write_results("main_job", arguments.part, part)
    else:
        parser.error("name a part, or --summary")
