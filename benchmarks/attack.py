"""The attacks against other implementations, their cost, and the doubts they raise: the demo's network.

    python benchmarks/attack.py crosscheck          # against pyautoattack on three networks, some ten minutes
    python benchmarks/attack.py speed               # against foolbox as users run it, and bare passes; runs/vgg11_bn.pt
    python benchmarks/attack.py doubts              # what the checks say of five ordinary networks, an hour on one core
    python benchmarks/attack.py full --data DIR     # 10,000 images of Fashion-MNIST, killed and resumed, an hour
    python benchmarks/attack.py --summary           # prints the committed figures and runs nothing

`crosscheck` and `doubts` need nothing but the package and its extra `autoattack`: the demo's ResNet, the same network
trained adversarially for some epochs on the demo's images (kept in runs/attack), and a low-rank one of a quarter of its
parameters.
"""

import argparse
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from results import read_results, write_results
from torch import nn

from lrcompress.checkpoint import LoadedModel, LoadOptions, load_checkpoint
from lrcompress.cli.attack import DEFAULT_STEPS, in_norm, with_checks
from lrcompress.data import ImageSet, iterate_batches, open_images, random_subset
from lrcompress.dlrt import DlrtOptions, TrainingOptions, fine_tune_
from lrcompress.factorize import factorize
from lrcompress.measure import count_macs, count_parameters
from lrcompress.models import PixelModel
from lrcompress.perturb import Norm
from lrcompress.pipeline import LayerOptions, plan_loaded
from lrcompress.plan import Budget, Calibration
from lrcompress.robustness import ATTACKS, SUITES, AttackSettings, EvaluatedModel, evaluate_models
from lrcompress.robustness.apgd import Apgd, ApgdTargeted
from lrcompress.robustness.attacks import NORMS
from lrcompress.robustness.evaluate import ready_for_attack
from lrcompress.robustness.grid import choose_eps
from lrcompress.robustness.iterated import IteratedAttack, run_stream
from lrcompress.robustness.pgd import Pgd
from lrcompress.robustness.square import LinfSquare

COMPARED, STEPS, QUERIES = 200, 100, 1000
DOUBTED = 300  # images
SQUARE_SEEDS = 3  # its count depends on what is drawn, that of the others hardly
ADVERSARIAL: dict[str, Any] = {"adversarial": "fgsm-rs", "adversarial_eps": 8 / 255, "epochs": 4, "lr": 5e-4}
SPEED_EPS = tuple(value / 255 for value in (1, 2, 4, 8))
SPEED_IMAGES, ROUNDS = 256, 3
LARGER = "VGG11-BN, 9.5 M parameters"


@functools.cache
def demo() -> tuple[LoadedModel, str]:
    """Returns the demo's network and the folder of its images."""
    folder = Path(str(resources.files("lrcompress") / "assets" / "fashion_mnist"))
    return load_checkpoint(str(folder / "resnet.pt"), LoadOptions()), str(folder)


def pixels_of(model: nn.Module, loaded: LoadedModel) -> nn.Module:
    return PixelModel(model, loaded.preprocessing).eval()


@functools.cache
def networks() -> dict[str, nn.Module]:
    loaded, data = demo()
    plan, decomposer = plan_loaded(loaded, Budget(fraction=0.25), LayerOptions(), calibration=Calibration(data))
    low_rank = factorize(loaded.model, plan, decomposer=decomposer)
    trained = load_checkpoint(loaded.source.path, LoadOptions()).model
    kept = Path("runs/attack/adversarial.pt")
    if kept.exists():
        trained.load_state_dict(torch.load(kept, weights_only=True))
    else:
        images = open_images(data, "train", input_size=loaded.preprocessing.input_size)
        options = TrainingOptions(
            DlrtOptions(Budget(fraction=0.999), lr=ADVERSARIAL["lr"]),
            **{key: value for key, value in ADVERSARIAL.items() if key != "lr"},
        )
        fine_tune_(pixels_of(trained, loaded), images, options)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(trained.state_dict(), kept)
    return {
        "standard": pixels_of(loaded.model, loaded),
        "adversarially trained": pixels_of(trained, loaded),
        "low-rank": pixels_of(low_rank, loaded),
    }


def test_images(count: int) -> ImageSet:
    loaded, data = demo()
    return random_subset(open_images(data, "test", input_size=loaded.preprocessing.input_size), count, seed=0)


def known(model: nn.Module, images: ImageSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (pixels, labels, logits) of the images that a model knows."""
    pixels, labels = next(iterate_batches(images, batch_size=len(images)))
    with torch.no_grad():
        logits = torch.cat([model(part) for part in pixels.split(100)])
    right = logits.argmax(1) == labels
    return pixels[right], labels[right], logits[right]


def withstand(
    model: nn.Module, attacks: list[IteratedAttack], images: tuple[torch.Tensor, ...], *, seed: int = 0
) -> int:
    """Returns how many images withstand all attacks, broken ones leaving."""
    pixels, labels, logits = images
    standing = torch.ones(len(labels), dtype=torch.bool)
    for number, attack in enumerate(attacks):
        active = standing.nonzero().flatten()
        seeds = active + 1_000_000 * (number + 100 * seed)
        outcome = run_stream(
            model, attack, pixels[active], labels[active], logits[active], seeds, batch_size=100
        )  # fmt: skip
        standing[active] = ~outcome.broken
    return int(standing.sum())


def theirs(
    model: nn.Module,
    name: str,
    eps: float,
    images: tuple[torch.Tensor, ...],
    *,
    seed: int = 0,
    to_the_edge: bool = False,
) -> int:
    """Returns how many images withstand an attack of pyautoattack, with the same steps and schedule.

    Its squares never cover the last row or column of an image, as the upper end of a range is left out twice;
    `to_the_edge` mends that.
    """
    from pyautoattack import AutoAttack

    pixels, labels, _ = images
    attack = AutoAttack(model, norm="Linf", eps=eps, seed=seed, version="custom", attacks=[name], device="cpu")
    attack.verbose = False
    attack.apgd.n_restarts, attack.square.n_queries, attack.square.rescale_schedule = 1, QUERIES, True
    if to_the_edge:
        drawn = attack.square.random_int
        attack.square.random_int = lambda low=0, high=1, shape=(1,): drawn(low, high + 1, shape)
    moved, _ = attack.run_standard_evaluation(pixels, labels, batch_size=100)
    with torch.no_grad():
        return int(
            sum(
                (model(part).argmax(1) == wanted).sum()
                for part, wanted in zip(moved.split(100), labels.split(100), strict=True)
            )
        )


def crosscheck() -> dict[str, Any]:
    """Returns the counts of both implementations, each at a radius where some images withstand and some do not.

    Those of Square are of several seeds: the difference that counts is that of their means.
    """
    rows, largest = {}, 0.0
    for name, model in networks().items():
        with ready_for_attack(model):
            images = known(model, test_images(COMPARED))
            eps = middle_eps(model, images)
            ours: dict[str, list[IteratedAttack]] = {
                "apgd-ce": [Apgd(eps, "linf", STEPS)],
                "apgd-t": [ApgdTargeted(eps, "linf", STEPS, rank=rank) for rank in range(1, 10)],
                "square": [LinfSquare(eps, "linf", QUERIES)],
            }
            counts = {}
            for attack, made in ours.items():
                seeds = range(SQUARE_SEEDS if attack == "square" else 1)
                counts[attack] = {
                    "ours": [withstand(model, made, images, seed=seed) for seed in seeds],
                    "pyautoattack": [theirs(model, attack, eps, images, seed=seed) for seed in seeds],
                }
            counts["square"]["pyautoattack to the edge"] = [
                theirs(model, "square", eps, images, seed=seed, to_the_edge=True) for seed in range(SQUARE_SEEDS)
            ]
        means = [{package: statistics.mean(found) for package, found in one.items()} for one in counts.values()]
        largest = max([largest, *(abs(one["ours"] - one["pyautoattack"]) for one in means)])
        rows[name] = {"eps": eps, "images": len(images[1]), "withstand": counts}
        print(name, json.dumps(rows[name]), flush=True)
    return {
        "networks": rows,
        "autoattack_max_difference": largest,
        "compared": COMPARED,
        "steps": STEPS,
        "queries": QUERIES,
    }


def middle_eps(model: nn.Module, images: tuple[torch.Tensor, ...]) -> float:
    """Returns the radius of the usual ones at which about half of the images withstand ten steps of PGD."""
    radii = choose_eps(model, images[0], images[1], AttackSettings(("pgd",), batch_size=100))
    counts = [withstand(model, [Pgd(eps, "linf", 10)], images) for eps in radii]
    return min(zip(radii, counts, strict=True), key=lambda pair: abs(pair[1] - len(images[1]) / 2))[0]


def speed() -> dict[str, Any]:
    """Times PGD-20 at four radii, in turn: ours, foolbox as its users run it, and the bare passes that ours needs."""
    rows = {}
    for name, (model, images) in timed_networks().items():
        rows[name] = speed_of(model, images)
        print(name, json.dumps(rows[name]), flush=True)
    return {"networks": rows, "images": SPEED_IMAGES, "eps": list(SPEED_EPS), "rounds": ROUNDS}


def timed_networks() -> dict[str, tuple[nn.Module, ImageSet]]:
    loaded = load_checkpoint("runs/vgg11_bn.pt", LoadOptions(arch="benchmarks/networks.py:vgg11_bn"))
    _, data = demo()
    images = open_images(data, "test", input_size=loaded.preprocessing.input_size)
    return {
        LARGER: (pixels_of(loaded.model, loaded), random_subset(images, SPEED_IMAGES, seed=0)),
        "ResNet, 1.2 M parameters, adversarially trained": (
            networks()["adversarially trained"],
            test_images(SPEED_IMAGES),
        ),
    }


def speed_of(model: nn.Module, images: ImageSet) -> dict[str, Any]:
    settings = AttackSettings(("pgd",), eps=SPEED_EPS, batch_size=128)
    pixels, labels = next(iterate_batches(images, batch_size=len(images)))
    times: dict[str, list[float]] = {"ours": [], "foolbox": [], "bare": []}
    accuracies: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 1):
        found, seconds = timed(lambda: ours_at_all_radii(model, images, settings))
        accuracies["ours"] = found[0]
        _, bare = timed(lambda passes=found[1:]: bare_passes(model, pixels, *passes))
        accuracies["foolbox"], other = timed(lambda: foolbox_as_used(model, pixels, labels))
        if turn > 0:  # the first one allocates
            for name, value in (("ours", seconds), ("bare", bare), ("foolbox", other)):
                times[name].append(value)
    ratios = {
        "speedup_vs_foolbox": [other / own for other, own in zip(times["foolbox"], times["ours"], strict=True)],
        "overhead_vs_bare": [own / bare for own, bare in zip(times["ours"], times["bare"], strict=True)],
    }
    return {
        "robust_accuracy": accuracies,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        **{name: statistics.median(values) for name, values in ratios.items()},
        "ranges": {name: [min(values), max(values)] for name, values in ratios.items()},
    }


def timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def ours_at_all_radii(model: nn.Module, images: ImageSet, settings: AttackSettings) -> tuple[list[float], int, int]:
    """Returns robust accuracies, and the numbers of passes without and with gradients."""
    from lrcompress.robustness.attacking import BlockAttacker
    from lrcompress.robustness.blocks import Block, KnownBlock

    pixels, labels = next(iterate_batches(images, batch_size=len(images)))
    with ready_for_attack(model), torch.no_grad():
        logits = torch.cat([model(part) for part in pixels.split(settings.batch_size)])
        known_block = KnownBlock(Block(0, 0, pixels, labels), logits, logits.argmax(1) == labels)
        attacker = BlockAttacker(model, known_block, settings)
        robust = attacker.attack("pgd").robust.float().mean(1).tolist()
    return robust, len(pixels) + attacker.passes.forward - attacker.passes.backward, attacker.passes.backward


def bare_passes(model: nn.Module, pixels: torch.Tensor, forward: int, backward: int, batch: int = 128) -> None:
    """Runs so many passes of full batches, parameters frozen, and nothing else."""
    with ready_for_attack(model):
        x = pixels[:batch].contiguous(memory_format=torch.channels_last)
        for count, with_gradient in ((forward, False), (backward, True)):
            for first in range(0, count, batch):
                part = x[: min(batch, count - first)].detach().requires_grad_(with_gradient)
                with torch.set_grad_enabled(with_gradient):
                    logits = model(part)
                    if with_gradient:
                        torch.autograd.grad(logits.logsumexp(1).sum(), part)


def foolbox_as_used(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Returns robust accuracies by foolbox's documentation, with the step size that lets PGD cross the ball."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    model.requires_grad_(True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=20, rel_stepsize=2.5 / 20)
    broken = []
    for part, wanted in zip(pixels.split(128), labels.split(128), strict=True):
        _, _, success = attack(wrapped, part, wanted, epsilons=list(SPEED_EPS))
        broken.append(success)
    return (1 - torch.cat(broken, 1).float().mean(1)).tolist()


def doubts() -> dict[str, Any]:
    """Returns what the checks say of five ordinary networks under the standard suite, each beside all others."""
    loaded, _ = demo()
    made = dict(networks())
    torch.manual_seed(0)
    smaller = load_checkpoint(loaded.source.path, LoadOptions()).model
    with torch.no_grad():
        for parameter in smaller.parameters():
            if parameter.ndim > 1:  # eight bits
                scale = parameter.abs().max() / 127
                parameter.copy_((parameter / scale).round() * scale)
    made["eight-bit weights"] = pixels_of(smaller, loaded)
    plan, decomposer = plan_loaded(loaded, Budget(fraction=0.6), LayerOptions())
    made["low-rank, without data"] = pixels_of(factorize(loaded.model, plan, decomposer=decomposer), loaded)
    original = made.pop("standard")
    rows = {}
    for norm in NORMS:
        rows[norm] = doubts_of({"standard": original, **made}, norm)
        print(norm, json.dumps(rows[norm]), flush=True)
    told = {
        (norm, finding["message"])
        for norm, by_name in rows.items()
        for row in by_name.values()
        for finding in row["findings"]
    }
    return {
        "norms": rows,
        "images": DOUBTED,
        "steps": DEFAULT_STEPS,
        "l1": steps_in_l1(original),
        "false_alarms": len(told),
    }


def doubts_of(models: dict[str, nn.Module], norm: Norm) -> dict[str, dict[str, Any]]:
    """Returns by network what the checks say of it, and its figures."""
    attacks = with_checks([in_norm(name, norm) for name in SUITES["standard"] if norm in ATTACKS[name].norms])
    values = evaluate_models(
        [EvaluatedModel(name, model, name) for name, model in models.items()],
        test_images(DOUBTED),
        AttackSettings(attacks, norm=norm, steps=DEFAULT_STEPS[norm]),
    ).to_json()
    return {
        name: {
            # What is about no network in particular stands with each.
            "findings": [finding for finding in values["findings"] if finding["model"] in (name, None)],
            "clean": found["clean"]["accuracy"],
            "worst": {f"{row['eps']:.4g}": row["accuracy"] for row in found["attacks"]["worst"]},
            "seconds": found["seconds"],
        }
        for name, found in values["models"].items()
    }


def steps_in_l1(model: nn.Module, *, eps: float = 5.0, count: int = 140) -> dict[str, Any]:
    """Returns how many images withstand APGD in ℓ1 with more and more steps."""
    with ready_for_attack(model):
        images = known(model, test_images(count))
        counts = {steps: withstand(model, [Apgd(eps, "l1", steps)], images) for steps in (20, 50, 100)}
    return {"eps": eps, "images": len(images[1]), "withstand": counts}


def full(data: str) -> dict[str, Any]:
    """Returns how long 10,000 images take under the standard suite, and whether a killed run ends the same."""
    loaded, small = demo()
    folder = Path("runs/attack")
    folder.mkdir(parents=True, exist_ok=True)
    artifact = folder / "small.safetensors"
    program = [sys.executable, "-m", "lrcompress"]
    options = ["--budget", "0.2", "--data", small, "--calibrate", small, "--epochs", "0", "--no-timing", "--overwrite"]
    subprocess.run([*program, "compress", loaded.source.path, *options, "-o", str(artifact)], check=True)
    attack = [
        *program,
        "attack",
        str(artifact),
        "--suite",
        "standard",
        "--eps",
        "4/255",
        "--data",
        data,
        "--json",
    ]
    started = time.perf_counter()
    whole = json.loads(subprocess.run(attack, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.perf_counter() - started
    with subprocess.Popen(attack, stdout=subprocess.DEVNULL) as killed:
        time.sleep(0.4 * seconds)
        killed.send_signal(signal.SIGKILL)
    resumed = json.loads(subprocess.run(attack, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "images": whole["images"],
        "same_after_kill": without_times(whole) == without_times(resumed),
        "parameters": count_parameters(loaded.model),
        "macs": count_macs(loaded.model, loaded.preprocessing.input_size),
        "clean": {role: model["clean"]["accuracy"] for role, model in whole["models"].items()},
        "worst": {
            role: {f"{255 * row['eps']:.3g}/255": row["accuracy"] for row in model["attacks"]["worst"]}
            for role, model in whole["models"].items()
        },
        "findings": whole["findings"],
    }


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    models = {
        role: {key: value for key, value in model.items() if key != "seconds"}
        for role, model in values["models"].items()
    }
    return {key: value for key, value in values.items() if key not in ("seconds", "command")} | {"models": models}


def summary() -> dict[str, Any]:
    results = read_results("attack")
    rows = results.get("speed", {}).get("networks", {})
    return {
        "speedup_vs_foolbox": rows.get(LARGER, {}).get("speedup_vs_foolbox"),
        "speedup_vs_foolbox_smallest": min((row["speedup_vs_foolbox"] for row in rows.values()), default=None),
        "overhead_vs_bare": rows.get(LARGER, {}).get("overhead_vs_bare"),
        "autoattack_max_difference": results.get("crosscheck", {}).get("autoattack_max_difference"),
        "false_alarms": results.get("doubts", {}).get("false_alarms"),
        "full_seconds": results.get("full", {}).get("seconds"),
        "same_after_kill": results.get("full", {}).get("same_after_kill"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["crosscheck", "speed", "doubts", "full"])
    parser.add_argument("--data", help="folder of the idx files of Fashion-MNIST, for `full`")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(json.dumps(summary(), indent=1))
    elif arguments.part == "full":
        if arguments.data is None:
            parser.error("full needs --data")
        write_results("attack", "full", full(arguments.data))
    elif arguments.part is not None:
        write_results(
            "attack", arguments.part, {"crosscheck": crosscheck, "speed": speed, "doubts": doubts}[arguments.part]()
        )
    else:
        parser.print_help()
