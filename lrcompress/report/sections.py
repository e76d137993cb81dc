"""The outline of a report: what every rendering shows, in which order."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrcompress.report.evaluation_parts import evaluation_section, figure, percent, settings_text
from lrcompress.report.operator_norms import operator_norm_section
from lrcompress.report.parts import Command, Note, Part, Section, SpectrumChart, Table
from lrcompress.report.tuning import augmentation_settings, effective_settings
from lrcompress.report.words import points

SPECTRUM_KEYS = {"baseline": "dense_spectrum", "compressed": "spectrum"}
# Channels that are dead have singular values next to zero: a scale that reached them would show little else.
MOST_DECADES = 4
LEGEND = (
    "The curves are the singular values σ_i against i, on logarithmic scales, of the uncompressed matrix (dashed, its "
    "last value marked by a square) and of the shipped one (its last value marked by a dot). The lines are powers of "
    "ten below the layer's σ₁, {decades} in every drawing; what is smaller lies on the lowest."
)


def title(report: Mapping[str, Any]) -> str:
    """Returns one line on what was made of what."""
    architecture = report["architecture"]
    arguments = ", ".join(f"{key}={value}" for key, value in architecture["arguments"].items())
    return (
        f"{architecture['label']}{f' ({arguments})' if arguments else ''}, compressed from {report['source']['path']}"
    )


def report_sections(report: Mapping[str, Any]) -> list[Section]:
    """Returns all sections after the verdict: gates, size, evaluations, layers, norms, training, how it was made."""
    sections = [Section("Gates", [gate_table(report["gates"])])] if report["gates"] else []
    sections.append(Section("Size and speed", _size(report)))
    sections += [evaluation_section(evaluation) for evaluation in report["evaluations"]]
    sections.append(Section("Factorised layers", [_factorised(report)]))
    sections.append(Section("Layers left dense", [_dense(report)]))
    if "operator_norms" in report:
        sections.append(operator_norm_section(report["operator_norms"]))
    if report["training_log"]:
        sections.append(Section("Fine-tuning", [_training(report)]))
    return [*sections, Section("How it was made", [_recipe(report)])]


def gate_table(outcomes: list[Mapping[str, Any]]) -> Table:
    """Returns the gates and what came of them."""
    confidence = 100 * outcomes[0]["confidence"]
    caption = (
        f"A gate fails if its condition holds with {confidence:g} % confidence, passes if it does not hold with the "
        "same confidence, and is inconclusive otherwise. A missing figure fails."
    )
    rows = [[outcome["outcome"], f"fail if {outcome['gate']}", outcome["message"]] for outcome in outcomes]
    return Table(caption, ["outcome", "gate", "found"], rows, texts=(1, 2))


def _size(report: Mapping[str, Any]) -> list[Part]:
    size, latency = report["size"], report["latency"]
    titles = {"bytes": "file, bytes", "parameters": "parameters", "macs": "multiply-accumulates per image"}
    rows = [
        [name, f"{size['baseline'][key]:,}", f"{size['compressed'][key]:,}", percent(size["removed"][key])]
        for key, name in titles.items()
    ]
    notes = []
    if latency is not None:
        low, high = latency["ratio_quartiles"]
        name = f"ms per batch of {latency['batch_size']}, median"
        times = [f"{latency[key]:.2f}" for key in ("baseline_ms", "compressed_ms")]
        # Not what the medians say: the ratio is that of each round, in which both were timed in turn.
        rows.append([name, *times, f"ratio {latency['ratio']:.2f}"])
        notes.append(
            Note(
                f"Latency on {latency['device']}, both models in turn for {latency['rounds']} rounds; the middle half "
                f"of the ratios lies between {low:.2f} and {high:.2f}."
            )
        )
    table = Table("Of the whole model.", ["whole model", "uncompressed", "compressed", "removed"], rows)
    commands = [Command(report["command"])] if report["command"] else []
    return [table, *notes, *commands]


def _factorised(report: Mapping[str, Any]) -> Part:
    layers = [layer for layer in report["layers"] if layer["scheme"] != "dense"]
    if not layers:
        return Note("None.")
    trained = any("start_kappa" in layer for layer in layers)
    kept = [layer["parameters"] / math.prod(layer["dense_shape"]) for layer in layers]
    rows = [
        [
            layer["name"],
            "×".join(map(str, layer["dense_shape"])),
            layer["scheme"],
            ", ".join(map(str, layer["ranks"])),
            percent(share),
            f"{layer['relative_error']:.4f}",
            f"{figure(layer['sigma_min'])} to {figure(layer['sigma_max'])}",
            figure(layer["kappa"]) if "kappa" in layer else "∞",
            *([figure(layer.get("start_kappa"))] if trained else []),
            figure(layer["stable_rank"]),
            f"{figure(layer['dense_norm'])} → {figure(layer['norm'])}",
        ]
        for layer, share in zip(layers, kept, strict=True)
    ]
    caption = (
        "“kept” is the share of the weights' number. The singular values and κ = σ₁/σ_r belong to the shipped matrix "
        "that the scheme truncates (for a convolution an unfolded kernel, not the operator). They are diagnostics, not "
        "certificates of robustness."
    )
    if "fine_tuning" in report["recipe"]:
        caption += (
            " Fine-tuning has moved the weights on: the relative error is their distance from the original ones, and "
            "the tolerance bounds each truncation on the way, not this distance."
        )
    columns = ["layer", "weight", "scheme", "ranks", "kept", "relative error", "σ_r to σ₁", "κ"]
    columns += [*(["κ before training"] if trained else []), "stable rank", "‖W‖"]
    charts = spectrum_charts(layers)
    decades = next((chart.decades for chart in charts if chart is not None), None)
    return Table(
        caption,
        columns,
        rows,
        spans={4: [(0.0, min(1.0, share)) for share in kept]},
        drawings={6: charts},
        legend="" if decades is None else LEGEND.format(decades=decades),
    )


def spectrum_charts(layers: Sequence[Mapping[str, Any]]) -> list[SpectrumChart | None]:
    """Returns the singular values of each layer in both models as charts of one scale, which begins at the layer's σ₁.

    None for a layer whose values are not known, as in reports of older versions, or all zero.
    """
    spectra = [
        {role: layer[key] for role, key in SPECTRUM_KEYS.items() if key in layer} if "spectrum" in layer else {}
        for layer in layers
    ]
    depths = []
    for spectrum in spectra:
        positive = [sigma for values in spectrum.values() for _, sigma in values if sigma > 0]
        depths.append(math.log10(max(positive)) - math.log10(min(positive)) if positive else None)
    deepest = max((depth for depth in depths if depth is not None), default=0.0)
    decades = min(MOST_DECADES, max(1, math.ceil(deepest)))
    return [
        None if depth is None else SpectrumChart(layer["name"], spectrum, decades)
        for layer, spectrum, depth in zip(layers, spectra, depths, strict=True)
    ]


def _dense(report: Mapping[str, Any]) -> Part:
    rows = [
        [layer["name"], layer["kind"], "×".join(map(str, layer["dense_shape"])), layer.get("reason", "")]
        for layer in report["layers"]
        if layer["scheme"] == "dense"
    ]
    return Table("", ["layer", "kind", "weight", "why"], rows, texts=(1, 2, 3)) if rows else Note("None.")


def _training(report: Mapping[str, Any]) -> Table:
    robust = isinstance(report["training_log"][0].get("held_out_robust_accuracy"), float)
    columns = ["epoch", "loss", "held-out accuracy", *(["of perturbed images"] if robust else [])]
    rows = [
        [
            str(entry["epoch"]),
            "–" if entry["loss"] is None else f"{entry['loss']:.4f}",
            percent(entry["held_out_accuracy"], 2),
            *([percent(entry["held_out_robust_accuracy"], 2)] if robust else []),
            f"{entry['parameters']:,}",
            _largest_kappa(entry.get("cores")),
            "yes" if entry["frozen"] else "no",
        ]
        for entry in report["training_log"]
    ]
    caption = (
        "Held-out accuracy on images kept from training; ranks and bases are final where marked. The state of epoch "
        f"{report['recipe']['fine_tuning']['chosen_epoch']} is the one in the file."
    )
    return Table(caption, [*columns, "parameters", "largest κ", "ranks final"], rows)


def _largest_kappa(cores: Any) -> str:
    """Returns the largest condition number of an epoch's cores; reports of older versions do not know them."""
    kappas = [core["kappa"] for core in cores.values()] if cores else []
    if not kappas:
        return "–"
    return "∞" if None in kappas else figure(max(kappas))


def _recipe(report: Mapping[str, Any]) -> Table:
    recipe, source, pixels = report["recipe"], report["source"], report["preprocessing"]
    plan = recipe["plan"]
    rows = [["ranks", settings_text(plan)]]
    if "layer_ranks" in plan:
        given = ", ".join(f"{pattern}: {rank}" for pattern, rank in plan["layer_ranks"].items())
        rows.append(["given ranks", given])
    if "evaluations" in plan:
        tried = "; ".join(
            f"{percent(one['kept'])} of the parameters: {percent(one['accuracy'], 2)} ({points(-one['drop'] / 100, 2)})"
            for one in plan["evaluations"]
        )
        rows.append(["models tried", tried])
    if recipe.get("calibration"):
        rows.append(["calibration", settings_text(recipe["calibration"])])
    if tuning := recipe.get("fine_tuning"):
        rows.append(["fine-tuning", settings_text(effective_settings(tuning))])
        rows.append(["augmentation", settings_text(augmentation_settings(tuning)) or "none"])
    others = f", among {', '.join(source['candidates'])}" if len(source["candidates"]) > 1 else ""
    rows += [
        ["artifact SHA-256", report["artifact"]["sha256"]],
        ["source SHA-256", source["sha256"]],
        ["architecture chosen by", f"{source['chosen_by']}{others}; weights matched {source['match']}"],
        [
            "preprocessing",
            f"{'×'.join(map(str, pixels['input_size']))}, mean {', '.join(map(str, pixels['mean']))}, "
            f"std {', '.join(map(str, pixels['std']))}, crop {pixels['crop_pct']}, {pixels['interpolation']} "
            f"({pixels['origin']})",
        ],
        ["versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())],
    ]
    return Table("", ["what", "how"], rows, texts=(1,))
