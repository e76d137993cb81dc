"""Writes docs/results.md, its plots and the figures in README.md from the committed results.

    pip install -e ".[bench]" && python benchmarks/results_page.py

With `--check` it writes nothing and fails if they are not what the results say.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from results import gained, read_results

from lrcompress.report.words import NORM_SIGNS

ROOT = Path(__file__).parents[1]
TUNED_ROWS = ("dense", "dense_long", "svd_95", "fixed_95", "dlrt_95", "paper_95", "robust_95", "distilled_95",
              "distilled_97", "dense_adversarial", "adversarial_94_labels", "adversarial_94")  # fmt: skip
ADVERSARIAL_ROWS = ("adversarial_94_labels", "adversarial_94")
START, END = "<!-- figures -->", "<!-- /figures -->"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def circumstances(part: dict[str, Any]) -> str:
    where = part["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    text = f"{where['date']}, commit {where['commit']}, {where['machine']}, Python {where['python']}, {versions}."
    return f"{text} {where.get('note', '')}".rstrip()


def measured(rows: Iterable[dict[str, Any]]) -> str:
    """Returns the circumstances of rows, each once."""
    return "\n\n".join(dict.fromkeys(map(circumstances, rows)))


def compression_row(name: str, part: dict[str, Any]) -> list[str]:
    low, high = part["interval_after"]
    return [
        name,
        percent(1 - part["file_ratio"]),
        percent(part["removed"]["parameters"]),
        percent(part["removed"]["macs"]),
        percent(part["clean_before"], 2),
        f"{percent(part['clean_after'], 2)} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{0.0 - part['drop']:+.2f}",  # 0.0 minus: not -0.00
        f"{part['images']:,}",
    ]


def tuned_row(name: str, row: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    return [
        name,
        percent(1 - row["bytes"] / dense["bytes"]),
        percent(1 - row["parameters"] / dense["parameters"]),
        percent(1 - row["macs"] / dense["macs"]),
        percent(row["dense_accuracy"], 2),
        f"{percent(row['accuracy'], 2)} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{gained(row):+.2f}",
        f"{row['images']:,}",
    ]


HEADER = ["network", "file smaller by", "parameters removed", "MACs removed", "clean before", "clean after [95 %]",
          "points", "test images"]  # fmt: skip


def attack_table(part: dict[str, Any]) -> str:
    attack = part["attack"]
    rows = []
    for index, row in enumerate(attack["worst"]["compressed"]):
        cells = [attack["worst"][role][index] for role in ("baseline", "compressed")]
        shown = [
            f"{percent(cell['accuracy'])} [{100 * cell['interval'][0]:.1f}, {100 * cell['interval'][1]:.1f}]"
            for cell in cells
        ]
        rows.append([f"{round(row['eps'] * 255)}/255", *shown])
    settings = attack["settings"]
    names = ", ".join(settings["attacks"])
    strength = f"{settings['engine']}, worst case of {names}; {settings['steps']} steps, {settings['restarts']} restart"
    doubts = "".join(f"\n\n{finding['severity'].upper()}: {finding['message']}." for finding in attack["findings"])
    head = f"`{attack['command']}`: {attack['images']:,} images, ℓ∞, seed {attack['seed']}, {strength}."
    return f"{head}\n\n{table(['ε', 'uncompressed', 'compressed'], rows)}{doubts}"


def results_page() -> str:
    parts = read_results("main_job")
    demo, fashion, exact, start = (parts[name] for name in ("demo", "fashion", "exactness", "start"))
    rows = [
        [label, str(row["layers_factorized"]), f"{row['relative_error']:.1e}", "yes" if row["reloaded_equal"] else "NO"]
        for label, row in exact.items()
        if label != "circumstances"
    ]
    recipe, dense, imagenet = fashion["recipe"]["fine_tuning"], fashion["dense_training"], demo["imagenet"]
    training = f"{dense['parameters']:,} parameters, {dense['recipe']['epochs']} epochs, seed {dense['seed']}"
    low, high = fashion["latency"]["ratio_quartiles"]
    tol = imagenet["recipe"]["guaranteed_tol"]
    demo_rows = [
        compression_row("ResNet, 1.2 M parameters, Fashion-MNIST (7,000 training images), DLRT", demo["fashion"]),
        compression_row(f"EfficientNet-Lite0, ImageNet weights, no data, τ = {tol}", imagenet),
    ]
    return f"""# Results

Made from `benchmarks/results/*.json` by `python benchmarks/results_page.py`. All figures count the whole model: biases,
norms and dense layers included. Intervals are Wilson's at 95 % and cover the choice of images only, not the
training seed: every row is one run with seed 0.

## The demo

`python benchmarks/main_job.py demo`: {demo["seconds"]:.0f} seconds in all.

{table(HEADER, demo_rows)}

The first network is attacked too. {attack_table(demo["fashion"])}

The second row is a poor result, and it stands here as it is: a compact network has hardly any singular values to
spare, and without data a larger tolerance costs accuracy at once. 20 images say little about its accuracy.

{circumstances(demo)}

## Fashion-MNIST, all images

`python benchmarks/train_networks.py vgg11_bn --data DIR` trains the dense network (VGG11 with batch norm, {training}).
`python benchmarks/main_job.py fashion --data DIR` compresses it on the 60,000 training images, of which
{recipe["held_out_images"]:,} are held out, and measures on the 10,000 test images.

{table(HEADER, [compression_row("VGG11-BN, DLRT", fashion)])}

`{fashion["command"]}`

{fashion["paired"]["lost"]} test images were lost and {fashion["paired"]["gained"]} gained (exact McNemar
p = {fashion["paired"]["p_value"]:.2g}). A batch of
{fashion["latency"]["batch_size"]} takes {fashion["latency"]["ratio"]:.2f} of the dense network's time (middle half of
{fashion["latency"]["rounds"]} rounds: {low:.2f} to {high:.2f}).

{attack_table(fashion)}

{circumstances(fashion)}

## Exactness

`python benchmarks/main_job.py exactness`: every layer that may be factorised is, at full rank, with random weights;
relative error of the logits in float32, and whether the logits are the same, bit for bit, after saving and loading.

{table(["architecture", "layers", "relative error", "equal after loading"], rows)}

{circumstances(exact)}

## Start

`python benchmarks/main_job.py start`: `lrcompress --help` takes {
        start["ratio"]:.2f} times as long as `import typer, rich`
(median of {start["rounds"]} pairs; {start["help_seconds"]:.2f} and {start["import_seconds"]:.2f} s).

{circumstances(start)}
"""


def policies_section() -> str:
    """Returns the part of the page on accuracy against size without fine-tuning, sorted by size."""
    part = read_results("policies")["fashion"]
    low, high = part["dense"]["interval"]
    rows = []
    for row in sorted(part["rows"], key=lambda row: row["parameters"], reverse=True):
        value = next(value for key, value in row["settings"].items() if key != "name")
        drop = 100 * (row["accuracy"] - part["dense"]["accuracy"])
        interval = f"[{100 * row['interval'][0]:.1f}, {100 * row['interval'][1]:.1f}]"
        shown = [percent(1 - row["parameters"]), percent(1 - row["macs"]), f"{percent(row['accuracy'], 2)} {interval}"]
        rows.append([f"{row['policy']} {value:g}", *shown, f"{drop:+.2f}"])
    header = ["policy", "parameters removed", "MACs removed", "clean [95 %]", "points"]
    return f"""## Rank policies without fine-tuning

`python benchmarks/policies.py --data DIR`: the same dense VGG11-BN, compressed without fine-tuning, on all
{part["images"]:,} test images; dense {percent(part["dense"]["accuracy"], 2)} [{100 * low:.1f}, {100 * high:.1f}].
Sorted by size. Calibrated rows have seen 256 training images without their labels.

![Accuracy against the share of parameters kept, one line per policy](policies.svg)

{table(header, rows)}

{policies_text(part)}

{circumstances(part)}
"""


def policies_text(part: dict) -> str:
    """Returns what the rows say of budget and calibration, computed from them."""
    by_policy: dict[str, dict[float, dict]] = {}
    for row in part["rows"]:
        if "fraction" in row["settings"]:
            by_policy.setdefault(row["policy"], {})[row["settings"]["fraction"]] = row
    best, plain, dense = by_policy["budget + calibration"], by_policy["budget"], part["dense"]["accuracy"]

    def losses(rows: dict[float, dict]) -> str:
        return ", ".join(f"{100 * (row['accuracy'] - dense):+.2f}" for row in rows.values())

    beaten, most = [], 0.0
    for row in part["rows"]:
        larger = [one["accuracy"] for one in best.values() if one["parameters"] > row["parameters"] - 0.01]
        if row["policy"] != "budget + calibration" and larger and row["accuracy"] > max(larger):
            beaten.append(f"{row['policy']} {next(v for k, v in row['settings'].items() if k != 'name'):g}")
            most = max(most, 100 * (row["accuracy"] - max(larger)))
    shares = ", ".join(f"{100 * (1 - fraction):g}" for fraction in best)
    verdict = "No other row is as small and more accurate than every calibrated budget of its size or larger."
    if beaten:
        verdict = f"""More accurate than every calibrated
budget of their size or larger, by at most {most:.2f} points, which the intervals do not tell apart, are only:
{", ".join(beaten)}."""
    return f"""With {shares} % of the parameters removed, budget + calibration changes the accuracy by
{losses(best)} points, and the budget without images by
{losses(plain)}. {verdict}
The spatial and Tucker forms make the difference to the matrix form alone. A budget counts parameters only, so it leaves
dense what has few of them and costs many operations; `--max-macs` counts the others. The same tolerance in every layer
is a guarantee, and a poor way to spend parameters."""


def factorize_section() -> str:
    """Returns the part of the page on the time that planning and factorising take."""
    parts = read_results("factorize")
    header = [
        "network",
        "layers",
        "loop of SVDs, s",
        "matrix form, s",
        "times as fast",
        "same ranks",
        "errors",
        "auto, s",
        "measured",
    ]
    networks = {name: part for name, part in parts.items() if name != "memory"}
    rows = [
        [
            name,
            str(part["layers_factorized"]),
            f"{median(part['loop_seconds']):.2f}",
            f"{median(part['our_seconds']):.2f}",
            f"{part['speedup']:.2f}",
            "yes" if part["same_ranks"] else "no",
            f"{part['largest_difference_of_errors']:.1e}",
            f"{median(part['auto_seconds']):.2f}",
            f"{part['circumstances']['date']}, {part['circumstances']['machine']}",
        ]
        for name, part in networks.items()
    ]
    notes = "".join(f"{name}: {part['note']}\n" for name, part in networks.items() if "note" in part)
    memory = parts["memory"]
    alone, timed = (f"{memory['peak_bytes'][name] / 1e6:,.0f}" for name in ("without_timing", "with_timing"))
    file, importing = (f"{memory[name] / 1e6:,.0f}" for name in ("file_bytes", "import_bytes"))
    return f"""## Time and memory of factorising

`python benchmarks/factorize.py`: `make_plan` and `factorize` at `--tol 0.1`, probing of the network included, against a
loop of `torch.linalg.svd(full_matrices=False)` over the same layers; random weights with decaying spectra, timed in
turn, median of three rounds. “Errors” is the largest difference of a layer's relative error. The last column is the
time of all schemes together, as `--scheme auto` does it.

{table(header, rows)}

{notes}Three times was the aim; what is reached depends on the machine and its LAPACK: on the AMD machine it is missed.

Compressing a safetensors file of ViT-L/16 ({file} MB) at `--tol 0.1`, which keeps {percent(memory["kept"])} of it,
takes {alone} MB at its peak with `--no-timing`, mapped pages of the file included; importing torch and timm alone takes
{importing} MB. That is {memory["peak_over_bound"]:.2f} of 1.3 times the import plus the file, and
{memory["peak_memory_ratio"]:.2f} of the import plus the file. With the timing of both models, which needs both in
memory at once, it is {timed} MB.

{circumstances(memory)}
"""


def dlrt_section() -> str:
    """Returns the part of the page on fine-tuning: what comes out, and what it costs."""
    parts = read_results("dlrt")
    part, cost, turned = parts["rows"], parts["cost"], parts["orthonormality"]
    made = {name: part["rows"][name] for name in TUNED_ROWS if name in part["rows"]}
    network = part["network"]
    whole = made["dense"]
    rows = []
    for row in made.values():
        low, high = row["interval"]
        kappas = sorted(row["kappas"].values())
        rows.append(
            [
                row["title"],
                percent(1 - row["parameters"] / whole["parameters"]),
                f"{row['bytes']:,}",
                percent(1 - row["macs"] / whole["macs"]),
                f"{percent(row['accuracy'], 2)} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{gained(row):+.2f}",
                f"{median(kappas):.3g} ({kappas[-1]:.3g})" if kappas else "–",
                *(percent(share) for share in row["pgd"].values()),
            ]
        )
    radii = list(whole["pgd"])
    header = ["network", "parameters removed", "bytes", "MACs removed", "clean [95 %]", "points",
              "κ, median (largest)"]  # fmt: skip
    header += [f"PGD-20×2 at {radius}" for radius in radii]
    ratios = "; ".join(f"{cost[f'step_ratio_at_{share}']:.2f} at {share} % removed" for share in ("90", "75", "50"))
    peaks = {name: f"{value / 1e6:,.0f}" for name, value in cost["peak_bytes"].items()}
    profile = parts["profile"]
    columns = {"dense": "dense", "90": "90 % of the parameters removed", "90_of_both": "and of the operations"}
    times = [profile["milliseconds"][name] for name in columns]
    kinds = [[kind, *(f"{one[kind]:.0f}" for one in times)] for kind in times[0]]
    kinds.append(["all", *(f"{sum(one.values()):.0f}" for one in times)])
    step, small = sum(times[0].values()), times[1]
    same = small["batch norm, ReLU, pooling"] / step
    network_alone = (sum(small.values()) - small["AdamW"] - small["bases, SVDs, ranks"]) / step
    verdict = ""
    if network_alone > 0.3:
        verdict = ": with these layers 0.30 is out of reach on this machine, whatever the method itself costs"
    recipe = network["recipe"]
    if recipe.get("held_out"):
        seen = "which nothing has been trained on"
    else:
        seen = "which the checkpoint was trained on too, so that held-out accuracies flatter whatever is near it"
    return f"""## Fine-tuning

`python benchmarks/dlrt.py rows --data DIR`: VGG11 with batch norm ({network["parameters"]:,} parameters), trained for
{recipe["epochs"]} epochs on Fashion-MNIST by `train_networks.py`. All rows but the first two start from it and train
for {part["epochs"]} more epochs (adversarially for 4) on 54,000 images; the best epoch is chosen on the other 6,000 of
the training split, {seen}. The dense networks are
trained without distillation and with the same settings, which were not chosen for them.
Clean accuracy is that of all {whole["images"]:,} test images, under attack that of
{whole["attacked_images"]:,} of them (20 steps, 2 restarts, ℓ∞). “Points” are those of clean accuracy against the
checkpoint that the row started from.{starts(made)} One run each, seed 0.

{table(header, rows)}

{dlrt_text(made)}

![Held-out accuracy after every epoch](dlrt.svg)

{measured(made.values())}

### What a step costs

`python benchmarks/dlrt.py cost`: whole DLRT cycles of the same network, timed in turn with as many dense training steps
(batch {cost["batch_size"]}, {cost["precision"]} autocast, median of {cost["rounds"]} rounds), divided by their steps.
A dense step takes {cost["seconds"]["dense"]:.2f} s; a DLRT step takes, as a part of it, {ratios}.
Where a budget of multiply-accumulates takes 90 % of these too, it is {cost["step_ratio_at_90_of_both"]:.2f}.
Asked were 0.30 at 90 % and 0.75 at 75 %. The peak memory of
training, without a teacher in either case and beyond what is there before the first step, is
{peaks["90"]} MB at 90 % removed, {peaks["75"]} MB at 75 %, and
{peaks["dense"]} MB dense.

{circumstances(cost)}

Where the time goes, in milliseconds per step (`python benchmarks/dlrt.py profile`; the profiler takes some itself):

{table(["kind of work", *columns.values()], kinds)}

Batch norms, ReLU and pooling see tensors of the same shapes in all of them. With 90 % removed they alone take
{same:.2f} of a dense step, and the passes through the network, without AdamW and all work on bases and ranks,
{network_alone:.2f}{verdict}.

{circumstances(profile)}

After {turned["cycles"]:,} cycles with weight decay and autocast ‖UᵀU − I‖ is {turned["orthonormality"]:.1e} at most
(`python benchmarks/dlrt.py orthonormality`).

{circumstances(turned)}
"""


def ablation_section() -> str:
    """Returns the part of the page on what each part of the method contributes, over seeds; empty if not measured."""
    parts = read_results("ablation")
    seeds = {name.removeprefix("seed_"): part for name, part in parts.items() if name.startswith("seed_")}
    if not seeds:
        return ""
    whole, plain = parts["checkpoint"], {seed: part["rows"]["dlrt"] for seed, part in seeds.items()}
    rows = []
    for name in dict.fromkeys(name for part in seeds.values() for name in part["rows"]):
        made = {seed: part["rows"][name] for seed, part in seeds.items() if name in part["rows"]}
        against = [100 * (row["accuracy"] - plain[seed]["accuracy"]) for seed, row in made.items()]
        kappas = [sorted(row["kappas"].values()) for row in made.values() if row["kappas"]]
        rows.append(
            [
                next(iter(made.values()))["title"]
                + "; training ruined it, the start was kept"
                * any(row.get("chosen_epoch") == 0 for row in made.values()),
                percent(mean(1 - row["parameters"] / whole["parameters"] for row in made.values())),
                percent(mean(row["accuracy"] for row in made.values()), 2),
                "–" if name == "dlrt" else f"{mean(against):+.2f} ({', '.join(f'{one:+.2f}' for one in against)})",
                f"{mean(map(median, kappas)):.3g} ({mean(one[-1] for one in kappas):.3g})" if kappas else "–",
                *(percent(mean(row["pgd"][radius] for row in made.values())) for radius in whole["pgd"]),
            ]
        )
    checkpoint = [
        "the checkpoint",
        "0.0 %",
        percent(whole["accuracy"], 2),
        "–",
        "–",
        *map(percent, whole["pgd"].values()),
    ]
    rows.sort(key=lambda row: row[2], reverse=True)
    header = ["network", "parameters removed", "clean", "points against DLRT, β = 0 (each seed)",
              "κ, median (largest)", *(f"PGD-20 at {radius}" for radius in whole["pgd"])]  # fmt: skip
    one = next(iter(plain.values()))
    made = [row for part in seeds.values() for row in part["rows"].values()]
    return f"""### What each part contributes

`python benchmarks/ablation.py --data DIR`: the demo's ResNet ({whole["parameters"]:,} parameters), whose checkpoint
lies in the repository, so that these rows can be had on any machine. Each row trains for
{one["settings"]["epochs"]} epochs on 54,000 images, with the settings of the others but for what its title says. Means
over the seeds {", ".join(seeds)}, which decide calibration, split, order and augmentation. Clean accuracy is that of
all {whole["images"]:,} test images, under attack that of {whole["attacked_images"]:,} of them (20 steps, 1 restart,
ℓ∞). The epochs are chosen on images that the checkpoint was trained on, which favours no row.

{table(header, [checkpoint, *rows])}

{ablation_text(seeds)}

{measured([whole, *made])}
"""


def ablation_text(seeds: dict[str, Any]) -> str:
    """Returns what the rows say, computed from them."""

    def gains(name: str, other: str) -> list[float]:
        both = [part["rows"] for part in seeds.values() if {name, other} <= part["rows"].keys()]
        return [100 * (rows[name]["accuracy"] - rows[other]["accuracy"]) for rows in both]

    sentences = [
        f"{what} {mean(found):+.2f} points of clean accuracy in the mean of {len(found)} seed{'s' * (len(found) != 1)}."
        for what, name, other in (
            ("Against fixed ranks, of which all factors are trained, DLRT has", "dlrt", "fixed"),
            ("Against the cycle of the paper ours has", "dlrt", "paper"),
            ("Distillation adds", "distilled", "dlrt"),
            ("The conditioning penalty adds", "robust", "dlrt"),
        )
        if (found := gains(name, other))
    ]
    fixed = gains("dlrt", "fixed")
    if fixed and mean(fixed) <= 0:
        sentences.append(
            "Where calibration has chosen the ranks for a budget, letting them adapt gains nothing here; what DLRT "
            "gives is a tolerance or a largest drop that ranks follow, and cores whose condition can be controlled."
        )
    return "\n".join(sentences)


def starts(made: dict[str, Any]) -> str:
    """Returns how many checkpoints the rows started from, "" if it is one."""
    told = {}
    for row in made.values():
        of_it = ", ".join(name for name, other in made.items() if other["checkpoint"] == row["checkpoint"])
        clean, robust = percent(row["dense_accuracy"], 2), percent(row["dense_pgd"]["8/255"])
        told[row["checkpoint"]] = f"{clean} correct, {robust} at 8/255 ({of_it})"
    if len(told) == 1:
        return ""
    return f" These are {len(told)}, of the same recipe and seed but of several machines: {'; '.join(told.values())}."


def dlrt_text(made: dict[str, Any]) -> str:
    """Returns what the rows say, computed from them."""
    sentences = []
    if "dense_long" in made:
        better = max(0.0, gained(made["dense_long"]))
        for name in ("distilled_95", "distilled_97"):
            if name in made:
                gone = percent(1 - made[name]["parameters"] / made["dense"]["parameters"])
                points = gained(made[name]) - better
                sentences.append(
                    f"With {gone} removed, {points:+.2f} points against the better of the dense networks, as it is "
                    "and trained as long."
                )
    for small in (made[name] for name in ADVERSARIAL_ROWS if name in made):
        points = 100 * (small["pgd"]["8/255"] - small["dense_pgd"]["8/255"])
        sentence = f"{small['title']} withstands {points:+.1f} points more at 8/255 than the checkpoint it started from"
        if "dense_adversarial" in made:
            other = made["dense_adversarial"]
            robust = 100 * (small["pgd"]["8/255"] - other["pgd"]["8/255"])
            sentence += (
                f", and {robust:+.1f} than the dense network trained adversarially as long, at "
                f"{gained(small) - gained(other):+.2f} points of clean accuracy"
            )
        sentences.append(f"{sentence}.")
    missing = [row for row in TUNED_ROWS if row not in made]
    if missing:
        sentences.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n".join(sentences)


def plot_dlrt(path: Path) -> None:
    """Draws held-out accuracy by epoch of all rows that were trained."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "dlrt"  # the same file for the same figures
    figure, axes = plt.subplots(figsize=(7, 4))
    for row in read_results("dlrt")["rows"]["rows"].values():
        if row.get("log"):
            gone = percent(1 - row["parameters"] / read_results("dlrt")["rows"]["rows"]["dense"]["parameters"])
            xs = [record["epoch"] for record in row["log"]]
            ys = [100 * record["held_out_accuracy"] for record in row["log"]]
            axes.plot(xs, ys, marker="o", markersize=3, label=f"{row['title']}, {gone} removed")
    axes.set(xlabel="epoch", ylabel="held-out accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def plot_policies(path: Path) -> None:
    """Draws the rows of that part; needs matplotlib, of the extra `bench`."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    part = read_results("policies")["fashion"]
    mpl.rcParams["svg.hashsalt"] = "policies"  # the same file for the same figures
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.axhline(100 * part["dense"]["accuracy"], color="gray", linestyle=":", label="dense")
    for name, marker in zip(dict.fromkeys(row["policy"] for row in part["rows"]), "osDv^*", strict=True):
        rows = [row for row in part["rows"] if row["policy"] == name]
        xs, ys = [100 * row["parameters"] for row in rows], [100 * row["accuracy"] for row in rows]
        below, above = ([abs(100 * row["interval"][k] - y) for row, y in zip(rows, ys, strict=True)] for k in (0, 1))
        axes.errorbar(xs, ys, yerr=[below, above], marker=marker, markersize=4, capsize=2, label=name)
    axes.set(xlabel="parameters kept, %", ylabel="test accuracy, % (95 % interval)", xlim=(0, 52), ylim=(82, 94))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def attack_section() -> str:
    """Returns the part of the page on the attacks themselves: against others, their cost, and false alarms."""
    parts = read_results("attack")
    cross, speed, doubts = (parts[name] for name in ("crosscheck", "speed", "doubts"))
    rows = [
        [
            name,
            radius(one["eps"]),
            str(one["images"]),
            *(" / ".join(", ".join(map(str, found)) for found in by_package.values()) for by_package in counts),
        ]
        for name, one in cross["networks"].items()
        for counts in [[one["withstand"][attack] for attack in ("apgd-ce", "apgd-t", "square")]]
    ]
    squares = [one["withstand"]["square"] for one in cross["networks"].values()]
    differences = {
        "apgd": max(
            abs(one["withstand"][attack]["ours"][0] - one["withstand"][attack]["pyautoattack"][0])
            for one in cross["networks"].values()
            for attack in ("apgd-ce", "apgd-t")
        ),
        "square": max(abs(mean(one["ours"]) - mean(one["pyautoattack"])) for one in squares),
        "edge": max(abs(mean(one["ours"]) - mean(one["pyautoattack to the edge"])) for one in squares),
    }
    in_l1 = doubts["l1"] | {"withstand": dict(sorted(doubts["l1"]["withstand"].items(), key=lambda one: int(one[0])))}
    found = [
        [
            name,
            NORM_SIGNS[norm],
            percent(one["clean"]),
            ", ".join(f"{radius(float(eps)) if norm == 'linf' else eps}: {percent(share)}" for eps, share in worst),
            "; ".join(finding["check"] for finding in one["findings"]) or "none",
        ]
        for norm, by_name in doubts["norms"].items()
        for name, one in by_name.items()
        for worst in [sorted(one["worst"].items(), key=lambda point: float(point[0]))]
    ]
    by_norm = {norm: [one["message"] for row in rows.values() for one in row["findings"]]
               for norm, rows in doubts["norms"].items()}  # fmt: skip
    of_l1 = told_of_l1 = ""
    if by_norm["l1"] and not by_norm["l2"] and not by_norm["linf"]:
        of_l1 = ", all in ℓ1"
        told = "".join(f"\n- {message}" for message in dict.fromkeys(by_norm["l1"]))
        told_of_l1 = f" From one start it misses images in this norm, and the doubts are right:\n{told}"
    timed = [
        [
            name,
            ", ".join(percent(share) for share in one["robust_accuracy"]["ours"]),
            ", ".join(percent(share) for share in one["robust_accuracy"]["foolbox"]),
            *(
                f"{one[ratio]:.2f} ({one['ranges'][ratio][0]:.2f} to {one['ranges'][ratio][1]:.2f})"
                for ratio in ("speedup_vs_foolbox", "overhead_vs_bare")
            ),
        ]
        for name, one in speed["networks"].items()
    ]
    return f"""## The attacks

`python benchmarks/attack.py crosscheck`: images that withstand, ours / those of the package `pyautoattack`, with as
many steps ({cross["steps"]}) and queries ({cross["queries"]:,}), of the given number of images that the network knows;
Square, which draws at random, with three seeds. The package's squares never cover the last row or column of an image:
the third figures of Square are those of the package with that mended.

{table(["network", "ε", "images", "APGD-CE", "targeted APGD", "Square"], rows)}

Of both APGD the largest difference is {differences["apgd"]}. Of Square the means over the seeds differ by up to
{differences["square"]:.2g} images, {differences["edge"]:.2g} with the package's edge mended: more than one image,
within what other seeds change.

{circumstances(cross)}

`python benchmarks/attack.py speed`: PGD with 20 steps at {", ".join(radius(eps) for eps in speed["eps"])} on
{speed["images"]} images, timed in turn, median of {speed["rounds"]} rounds (range): how many times as fast the engine
is as foolbox used as its documentation has it, the parameters not frozen and every image attacked at every radius; and
how long it takes against nothing but the forward and backward passes that it needs. The gain depends on how many images
leave early, and on what the gradients of the weights cost. Where a range is wide, other work was in the way.

{table(["network", "robust, ours", "robust, foolbox", "times as fast", "of the bare passes"], timed)}

{circumstances(speed)}

`python benchmarks/attack.py doubts`: five ordinary networks under `--suite standard`, {doubts["images"]:,} images, each
beside all others, {doubts["steps"]["linf"]} steps, in ℓ1 {doubts["steps"]["l1"]}. What the checks find is a false
alarm, or the attack is too weak: {doubts["false_alarms"]} doubts in all{of_l1}.
In ℓ1, of {in_l1["images"]} images that the standard network knows,
{", ".join(map(str, in_l1["withstand"].values()))} withstand {", ".join(in_l1["withstand"])} steps of APGD at
ε = {in_l1["eps"]:g}.{told_of_l1}

{table(["network", "norm", "clean", "worst case at ε", "doubts"], found)}

{circumstances(doubts)}
{full_text(parts.get("full"))}"""


def full_text(part: dict[str, Any] | None) -> str:
    """Returns what a whole test split took; nothing if it was not measured."""
    if part is None:
        return ""
    same = "the same" if part["same_after_kill"] else "NOT the same"
    return f"""
`python benchmarks/attack.py full --data DIR`: {part["images"]:,} images, `--suite standard` at ε = 4/255 on both models
({part["macs"] / 1e6:,.0f} million multiply-accumulates per image uncompressed) takes
{part["seconds"] / 60:.0f} minutes with {part["threads"]} thread{"s" * (part["threads"] > 1)}. Killed (`kill -9`) on its
way and started again it ends with {same} figures.

{circumstances(part)}
"""


def radius(eps: float) -> str:
    return f"{255 * eps:.3g}/255"


def readme_figures() -> str:
    demo, made = read_results("main_job")["demo"], read_results("dlrt")["rows"]["rows"]
    rows = [
        tuned_row("VGG11-BN, 9.5 M parameters, all of Fashion-MNIST", made[name], made["dense"])
        for name in ("distilled_95", "distilled_97")
        if name in made
    ]
    rows += [
        compression_row("ResNet, 1.2 M parameters, the demo's 7,000 images", demo["fashion"]),
        compression_row("EfficientNet-Lite0, ImageNet, without data", demo["imagenet"]),
    ]
    part = read_results("policies")["fashion"]
    best = [row for row in part["rows"] if row["policy"] == "budget + calibration"]
    dense = part["dense"]["accuracy"]
    losses = ", ".join(
        f"{100 * (row['accuracy'] - dense):+.2f} with {percent(1 - row['parameters'], 0)} removed"
        for row in best
        if row["settings"]["fraction"] in (0.2, 0.1, 0.05)
    )
    text = f"""Without any training, from 256 unlabelled images (`--budget 0.1 --calibrate DIR`), the accuracy of a
VGG11-BN that answered {percent(dense, 2)} of the test images rightly changes by, in points: {losses}."""
    if "dense_long" in made:
        text = (
            f"The points are against the checkpoint. The dense VGG11-BN, trained for as many epochs more, gains "
            f"{gained(made['dense_long']):+.2f}.\n\n{text}"
        )
    return f"{START}\n\n{table(HEADER, rows)}\n\n{text}\n{adversarial_text(made)}\n{END}"


def adversarial_text(made: dict[str, Any]) -> str:
    """Returns what adversarial training makes of an ordinary checkpoint, empty if it was not measured."""
    if "adversarial_94" not in made:
        return ""
    small = made["adversarial_94"]
    rows = [
        ["the checkpoint", "0.0 %", percent(small["dense_accuracy"], 2), *map(percent, small["dense_pgd"].values())]
    ]
    for name in (*ADVERSARIAL_ROWS, "dense_adversarial"):
        if name in made:
            row = made[name]
            gone = percent(1 - row["parameters"] / made["dense"]["parameters"])
            rows.append([row["title"], gone, percent(row["accuracy"], 2), *map(percent, row["pgd"].values())])
    header = ["network", "parameters removed", "clean", *(f"PGD-20×2 at {radius}" for radius in small["pgd"])]
    return f"""
From an ordinary checkpoint, `--adversarial fgsm-rs` makes a VGG11-BN that is small and withstands attacks, in four
epochs (clean accuracy of 10,000 test images, the attack on {small["attacked_images"]:,} of them, ℓ∞):

{table(header, rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = (ROOT / "README.md").read_text()
    before, rest = readme.split(START)
    pages = {
        ROOT / "docs" / "results.md": "\n".join(
            [
                results_page(),
                dlrt_section(),
                ablation_section(),
                policies_section(),
                factorize_section(),
                attack_section(),
            ]
        ),
        ROOT / "README.md": before + readme_figures() + rest.split(END)[1],
    }
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        sys.exit(f"not what the results say: {', '.join(stale)}; run python benchmarks/results_page.py")
    if not check:
        for path, text in pages.items():
            path.write_text(text)
        plot_policies(ROOT / "docs" / "policies.svg")
        plot_dlrt(ROOT / "docs" / "dlrt.svg")


if __name__ == "__main__":
    main()
