"""Writes docs/results.md, docs/policies.svg and the figures in README.md from the committed results.

    pip install -e ".[bench]" && python benchmarks/results_page.py

With `--check` it writes nothing and fails if they are not what the results say.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from results import read_results

ROOT = Path(__file__).parents[1]
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
        ]
        for name, part in networks.items()
    ]
    memory = parts["memory"]
    alone, timed = (f"{memory['peak_bytes'][name] / 1e6:,.0f}" for name in ("without_timing", "with_timing"))
    file, importing = (f"{memory[name] / 1e6:,.0f}" for name in ("file_bytes", "import_bytes"))
    return f"""## Time and memory of factorising

`python benchmarks/factorize.py`: `make_plan` and `factorize` at `--tol 0.1`, probing of the network included, against a
loop of `torch.linalg.svd(full_matrices=False)` over the same layers; random weights with decaying spectra, timed in
turn, median of three rounds. “Errors” is the largest difference of a layer's relative error. The last column is the
time of all schemes together, as `--scheme auto` does it.

{table(header, rows)}

Compressing a safetensors file of ViT-L/16 ({file} MB) at `--tol 0.1`, which keeps {percent(memory["kept"])} of it,
takes {alone} MB at its peak with `--no-timing`, mapped pages of the file included; importing torch and timm alone takes
{importing} MB. That is {memory["peak_over_bound"]:.2f} of 1.3 times the import plus the file, and
{memory["peak_memory_ratio"]:.2f} of the import plus the file. With the timing of both models, which needs both in
memory at once, it is {timed} MB.

{circumstances(memory)}
"""


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


def readme_figures() -> str:
    parts = read_results("main_job")
    demo, fashion = parts["demo"], parts["fashion"]
    rows = [
        compression_row("VGG11-BN, 9.5 M parameters, all of Fashion-MNIST", fashion),
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
    text = f"""Without any training, from 256 unlabelled images (`--budget 0.1 --calibrate DIR`), the accuracy of the
VGG11-BN changes by, in points: {losses}."""
    return f"{START}\n\n{table(HEADER, rows)}\n\n{text}\n\n{END}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = (ROOT / "README.md").read_text()
    before, rest = readme.split(START)
    pages = {
        ROOT / "docs" / "results.md": "\n".join([results_page(), policies_section(), factorize_section()]),
        ROOT / "README.md": before + readme_figures() + rest.split(END)[1],
    }
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        sys.exit(f"not what the results say: {', '.join(stale)}; run python benchmarks/results_page.py")
    if not check:
        for path, text in pages.items():
            path.write_text(text)
        plot_policies(ROOT / "docs" / "policies.svg")


if __name__ == "__main__":
    main()
