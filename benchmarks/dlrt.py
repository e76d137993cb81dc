"""What fine-tuning makes of a network, and what it costs: VGG11-BN on Fashion-MNIST.

    python benchmarks/dlrt.py rows --data DIR            # all rows that are missing, in order: hours
    python benchmarks/dlrt.py rows distilled --data DIR  # those whose names contain one of the words, again
    python benchmarks/dlrt.py cost                       # step time and memory against dense training, some minutes
    python benchmarks/dlrt.py profile                    # where the time of a step goes
    python benchmarks/dlrt.py orthonormality             # after 1,000 cycles
    python benchmarks/dlrt.py --summary                  # prints the committed figures and runs nothing

The rows need runs/vgg11_bn.pt of train_networks.py. Every row but the first two starts from that checkpoint and trains
for the same number of epochs, both adversarial ones for fewer, on the same 54,000 images; the best epoch is chosen on
the other 6,000 of the training split, which the checkpoint has not seen. The test split is seen once, at the end of
each row, and nothing is chosen on it. A row that is stopped goes on from runs/dlrt/. Rows keep hash, accuracy and
robust accuracy of the checkpoint that they start from: the same recipe and seed make another one on another machine,
and a difference is always that from a row's own. Rows of another recipe are measured anew, all of them.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from results import circumstances, gained, read_results, write_results
from rows import Bench, Row
from torch import nn

from lrcompress.checkpoint import LoadedModel, file_sha256
from lrcompress.dlrt import Circumstances, Dlrt, DlrtOptions
from lrcompress.factorize import factorize_for_training
from lrcompress.measure import count_macs, count_parameters
from lrcompress.nn import count_shipped_parameters, factored_layers
from lrcompress.plan import Budget, find_layers, make_plan
from lrcompress.schemes import count_positions

CHECKPOINT, ARCH = Path("runs/vgg11_bn.pt"), "benchmarks/networks.py:vgg11_bn"
FOLDER = Path("runs/dlrt")
EPOCHS = 6
ATTACKED, EPS, RADIUS = 1000, (4 / 255, 8 / 255), "8/255"
METHOD: dict[str, Any] = {"lr": 2e-3}
LOOP: dict[str, Any] = {"epochs": EPOCHS}
# What the command line does by default.
DISTILLED: dict[str, Any] = {"distill": 0.9}


# A step of adversarial training costs two.
ADVERSARIAL: dict[str, Any] = {"adversarial": "fgsm-rs", "adversarial_eps": 8 / 255, "epochs": 4}
# The rate of low-rank cores is too high for a network that is dense and trained already: its accuracy falls at first.
DENSE: dict[str, Any] = {"lr": 5e-4}

ROWS = {
    "dense": Row("dense, as it is", None),
    "svd_95": Row("truncated with calibration, not trained", 0.05),
    "distilled_95": Row("DLRT + distillation", 0.05, "dlrt", {}, DISTILLED),
    "dense_long": Row("dense, trained as long", None, "weights", DENSE),
    "distilled_97": Row("DLRT + distillation", 0.03, "dlrt", {}, DISTILLED),
    "adversarial_94": Row("DLRT + distillation + adversarial training", 0.06, "dlrt", {}, DISTILLED | ADVERSARIAL),
    "adversarial_94_labels": Row("DLRT + adversarial training", 0.06, "dlrt", {}, ADVERSARIAL),
    "dense_adversarial": Row("dense, adversarial training", None, "weights", DENSE, ADVERSARIAL),
    "annealed_95": Row("DLRT + distillation, from twice the size", 0.05, "dlrt", {}, DISTILLED | {"anneal": 2.0}),
    "robust_95": Row("RobustDLRT, β = 0.05", 0.05, "dlrt", {"beta": 0.05}),
    "dlrt_95": Row("DLRT, β = 0", 0.05, "dlrt"),
    "fixed_95": Row("fixed ranks, all factors trained", 0.05, "weights"),
    "paper_95": Row("DLRT, cycle of the paper", 0.05, "dlrt", {"every_gradient": False, "moments": "transport"}),
}


def bench(data: str) -> Bench:
    return Bench(CHECKPOINT, ARCH, data, FOLDER, ATTACKED, EPS, restarts=2)


def load() -> LoadedModel:
    return bench("").load()


def rows(data: str, words: list[str]) -> None:
    table, dense = bench(data), dict[str, Any]()
    network = json.loads(CHECKPOINT.with_suffix(".json").read_text())
    done = rows_of(network)
    for name, row in ROWS.items():
        if any(word in name for word in words) if words else name not in done:
            loop = LOOP | row.loop
            model, told = table.make(name, replace(row, method=METHOD | row.method, loop=loop))
            dense = dense or table.measure(load().model)
            start = {"checkpoint": file_sha256(CHECKPOINT)[:8], "dense_accuracy": dense["accuracy"]}
            figures = table.measure(model) | told | start | {"dense_pgd": dense["pgd"]}
            done = rows_of(network) | {name: figures | {"title": row.title, "circumstances": circumstances()}}
            write_results("dlrt", "rows", {"network": network, "epochs": EPOCHS, "rows": done})


def rows_of(network: dict[str, Any]) -> dict[str, Any]:
    """Returns the rows of a recipe that have been measured: those of another do not belong into its table."""
    measured = read_results("dlrt").get("rows", {})
    same = all(measured.get("network", {}).get(key) == network[key] for key in ("recipe", "seed", "parameters"))
    return measured.get("rows", {}) if same else {}


class Steps:
    """One training step after the other of a network, on the same batch of noise."""

    def __init__(self, budget: Budget | None, precision: str, batch_size: int = 128) -> None:
        torch.manual_seed(0)
        self.bfloat16 = precision == "bfloat16"
        model, size = load().model, (1, 28, 28)
        positions = {one.name: count_positions(one.calls) for one in find_layers(model, size) if one.calls}
        known = Circumstances(positions, count_macs(model, size))
        if budget is not None:
            model = factorize_for_training(model, make_plan(model, budget, input_size=size))
        self.model = model.to(memory_format=torch.channels_last).train()
        self.images = torch.rand(batch_size, 1, 28, 28).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (batch_size,))
        self.dlrt = Dlrt(self.model, DlrtOptions(budget or Budget(fraction=0.999)), circumstances=known)

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        self.dlrt.zero_grad()
        loss.backward()
        with torch.profiler.record_function("dlrt.step"):
            self.dlrt.step()

    def cycle(self) -> float:
        """Returns the seconds per step over a whole cycle: the batch that extends the bases, and all that follow."""
        steps = self.dlrt.options.coefficient_steps + 1
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        return (time.perf_counter() - started) / steps


def budgets() -> dict[str, Budget | None]:
    """Returns what the cost of a step is measured at: shares removed of the parameters, or of both measures."""
    macs = count_macs(load().model, (1, 28, 28))
    return {
        "dense": None,
        "90": Budget(fraction=0.1),
        "90_of_both": Budget(macs=macs // 10),  # which takes 90 % of the parameters too
        "75": Budget(fraction=0.25),
        "50": Budget(fraction=0.5),
    }


def cost(precision: str, rounds: int = 8) -> dict[str, Any]:
    """Times dense and DLRT training in turn, and measures the peak memory of each in a process of its own."""
    figures: dict[str, Any] = {"batch_size": 128, "precision": precision, "rounds": rounds}
    measured = budgets()
    peaks = {name: peak_memory(name, precision) for name in measured}
    figures["peak_bytes"] = peaks
    figures["peak_memory_ratio"] = max(peaks[name] for name in measured if name != "dense") / peaks["dense"]
    runners = {name: Steps(budget, precision) for name, budget in measured.items()}
    figures["removed"] = {
        name: 1 - count_shipped_parameters(runner.model) / count_parameters(load().model)
        for name, runner in runners.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds + 1):
        for name, runner in runners.items():
            seconds = runner.cycle()
            if turn > 0:  # the first one allocates
                times[name].append(seconds)
    figures["seconds"] = {name: statistics.median(values) for name, values in times.items()}
    for name in measured.keys() - {"dense"}:
        ratios = [low / dense for low, dense in zip(times[name], times["dense"], strict=True)]
        figures[f"step_ratio_at_{name}"] = statistics.median(ratios)
    return figures


def peak_memory(name: str, precision: str) -> int:
    command = [sys.executable, __file__, "memory", name, "--precision", precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory(name: str, precision: str) -> None:
    """Prints what training takes at most beyond what is there before its first step; on Linux only."""
    runner = Steps(budgets()[name], precision)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = _status("VmRSS")
    for _ in range(12):
        runner.step()
    print(_status("VmHWM") - before)


def _status(key: str) -> int:
    """Returns a figure of this process in bytes. Not `getrusage`, whose peak is inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def profile(precision: str) -> dict[str, Any]:
    """Returns in milliseconds per step where the time of a DLRT cycle goes, and that of as many dense steps."""
    measured = budgets()
    kinds = {name: times_by_kind(Steps(measured[name], precision)) for name in ("dense", "90", "90_of_both")}
    return {"precision": precision, "milliseconds": kinds}


def times_by_kind(runner: Steps) -> dict[str, float]:
    """Returns the milliseconds per step that a cycle spends on each kind of work."""
    runner.cycle()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        runner.cycle()
    events = {event.key: event for event in recorded.key_averages()}
    steps = events["dlrt.step"].count

    def own(*words: str) -> float:
        return sum(one.self_cpu_time_total for key, one in events.items() if any(word in key for word in words))

    whole, stepping = own(""), events["dlrt.step"].cpu_time_total
    optimiser = sum(one.cpu_time_total for key, one in events.items() if key.startswith("Optimizer.step"))
    found = {
        "convolutions": own("convolution"),
        "batch norm, ReLU, pooling": own("batch_norm", "threshold_backward", "clamp_min", "max_pool"),
        "AdamW": optimiser,
        "bases, SVDs, ranks": stepping - optimiser,
    }
    found["loss, casts, memory"] = whole - sum(found.values())
    return {kind: microseconds / 1000 / steps for kind, microseconds in found.items()}


def orthonormality(cycles: int = 1000) -> dict[str, Any]:
    """Returns the largest ‖UᵀU − I‖ after many cycles, weight decay and autocast on."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10),
    )  # fmt: skip
    plan = make_plan(model, Budget(fraction=0.4), input_size=(1, 8, 8), include_classifier=True)
    model = factorize_for_training(model, plan)
    dlrt = Dlrt(model, DlrtOptions(Budget(fraction=0.4), coefficient_steps=1, weight_decay=0.1, beta=0.01))
    images, labels = torch.rand(32, 1, 8, 8), torch.randint(0, 10, (32,))
    for _ in range(2 * cycles):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        dlrt.zero_grad()
        (loss + dlrt.penalty()).backward()
        dlrt.step()
    worst = 0.0
    for layer in factored_layers(model).values():
        for basis in (layer.U.detach()[0].double(), layer.V.detach()[0].double()):
            worst = max(worst, float(torch.linalg.matrix_norm(basis.T @ basis - torch.eye(basis.shape[1]), 2)))
    return {
        "cycles": cycles,
        "orthonormality": worst,
        "schemes": sorted({layer.scheme for layer in factored_layers(model).values()}),
    }


def summary() -> dict[str, Any]:
    """Returns the figures of the committed results; what has not been measured is null."""
    parts = read_results("dlrt")
    made = parts.get("rows", {}).get("rows", {})

    def dropped(small: str) -> float | None:
        """Returns the points lost against the better of the dense network as it is and trained as long."""
        if "dense" not in made or "dense_long" not in made or small not in made:
            return None
        return max(0.0, gained(made["dense_long"])) - gained(made[small])

    def removed(name: str) -> float | None:
        return 1 - made[name]["parameters"] / made["dense"]["parameters"] if name in made and "dense" in made else None

    small, large = made.get("adversarial_94"), made.get("dense_adversarial")
    return {
        "drop_at_95": dropped("distilled_95"),
        "removed_at_95": removed("distilled_95"),
        "drop_at_97": dropped("distilled_97"),
        "removed_at_97": removed("distilled_97"),
        "step_ratio_at_90": parts.get("cost", {}).get("step_ratio_at_90"),
        "step_ratio_at_90_of_both": parts.get("cost", {}).get("step_ratio_at_90_of_both"),
        "step_ratio_at_75": parts.get("cost", {}).get("step_ratio_at_75"),
        "peak_memory_ratio": parts.get("cost", {}).get("peak_memory_ratio"),
        "adversarial_removed": removed("adversarial_94"),
        "adversarial_pgd_gain": small and 100 * (small["pgd"][RADIUS] - small["dense_pgd"][RADIUS]),
        "adversarial_pgd_minus_dense": small and large and 100 * (small["pgd"][RADIUS] - large["pgd"][RADIUS]),
        "adversarial_clean_minus_dense": small and large and gained(small) - gained(large),
        "orthonormality": parts.get("orthonormality", {}).get("orthonormality"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["rows", "cost", "profile", "orthonormality", "memory"])
    parser.add_argument("words", nargs="*", help="parts of rows' names")
    parser.add_argument("--data", help="folder with the idx files of Fashion-MNIST")
    parser.add_argument(
        "--precision",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of cost and profile (default bfloat16)",
    )
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(json.dumps(summary(), indent=1))
    elif arguments.part == "rows" and arguments.data:
        rows(arguments.data, arguments.words)
    elif arguments.part == "memory":
        memory(arguments.words[0], arguments.precision)
    elif arguments.part in ("cost", "profile"):
        part = {"cost": cost, "profile": profile}[arguments.part]
        of = "" if arguments.precision == "bfloat16" else f"_{arguments.precision}"
        write_results("dlrt", arguments.part + of, part(arguments.precision))
    elif arguments.part == "orthonormality":
        write_results("dlrt", "orthonormality", orthonormality())
    else:
        parser.error("name a part (rows needs --data DIR), or --summary")
