"""Two reports side by side: any two models, the second one against the first."""

from collections.abc import Mapping, Sequence
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.report.evaluation_parts import ordered_attacks, share_cell
from lrcompress.report.upgrade import compare_models
from lrcompress.report.words import NORM_SIGNS, counted_attacks, paper_scales, radius_of
from lrcompress.robustness import attack_strength


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a comparison that gates read like a report, the first model in the place of the uncompressed one.

    Flips are counted where both models answered the same images (same data, seed, number and labels), and under
    attack where the attacks were the same. Latencies were timed apart: their ratio is that of both models' ratios to
    the same original on the same device, its bounds the quartiles of both.

    Args:
        first: the report of the model compared with.
        second: the report of the model in question.
    """
    costs = [report["size"]["compressed"] for report in (first, second)]
    return {
        "models": [dict(report["artifact"]) for report in (first, second)],
        "size": {
            "baseline": costs[0],
            "compressed": costs[1],
            "removed": {key: 1 - costs[1][key] / costs[0][key] for key in ("parameters", "bytes", "macs")},
        },
        "latency": _latency(first, second),
        "evaluations": [_evaluation(first, evaluation) for evaluation in second["evaluations"]],
        "only_first": [
            one for one in first["evaluations"] if all(not _same_images(one, other) for other in second["evaluations"])
        ],
        "gates": [],
    }


def comparison_rows(comparison: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the rows of a table: figure, first model, second model, and what lies between them."""
    size, latency = comparison["size"], comparison["latency"]
    rows = [
        (
            key,
            f"{size['baseline'][key]:,}",
            f"{size['compressed'][key]:,}",
            f"{0.0 - 100 * size['removed'][key]:+.1f} %",
        )
        for key in ("bytes", "parameters", "macs")
    ]
    if latency is not None:
        times = [f"{latency[key]:.3g} of the original's" for key in ("baseline_ratio", "compressed_ratio")]
        rows.append(("latency", times[0], times[1], f"ratio {latency['ratio']:.2f}"))
    for evaluation in comparison["evaluations"]:
        rows += _accuracy_rows(evaluation)
    for evaluation in comparison["only_first"]:
        clean = share_cell(evaluation["models"]["compressed"]["clean"])
        rows.append(
            (f"clean, {evaluation['images']:,} images of {evaluation['data']}", clean, "-", "of the first only")
        )
    return list(dict.fromkeys(rows))  # several attacks on the same images share the clean ones


def _evaluation(first: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an evaluation of the second model, with the first one's beside it if it answered the same images.

    Of several of the first one that did, the one with the most attacks in common counts, of equals the latest.
    """
    compressed = evaluation["models"]["compressed"]
    candidates = [other for other in first["evaluations"] if _same_images(other, evaluation)]
    merged = {key: evaluation[key] for key in ("data", "images", "seed", "norm", "settings", "complete", "interval")}
    merged |= {"findings": list(evaluation["findings"]), "models": {"compressed": compressed}}
    if not candidates:
        return merged
    common = [_common_attacks(other, evaluation) for other in candidates]
    best = max(range(len(candidates)), key=lambda index: (len(common[index]), index))
    other, attacks = candidates[best], common[best]
    known = {finding["message"] for finding in merged["findings"]}
    merged["findings"] += [finding for finding in other["findings"] if finding["message"] not in known]
    models = {
        "baseline": {**other["models"]["compressed"], "attacks": {name: rows for name, (rows, _) in attacks.items()}},
        "compressed": {**compressed, "attacks": {name: rows for name, (_, rows) in attacks.items()}},
    }
    return merged | {"models": models, "paired": compare_models(models["baseline"], models["compressed"])}


def _same_images(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("data", "seed", "images")) and (
        one.get("labels", other.get("labels")) == other.get("labels", one.get("labels"))
    )


def _common_attacks(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Returns the outcomes of both models' attacks that were the same, at the radii that both have.

    The worst case is the same attack only where all attacks were the same, and where ε is in units of normalised images
    they must be normalised alike.
    """
    if one["norm"] != other["norm"]:
        return {}
    first, second = (evaluation["models"]["compressed"]["attacks"] for evaluation in (one, other))
    counted = [set(counted_attacks(evaluation["settings"])) for evaluation in (one, other)]
    alike = counted[0] == counted[1] and all(_as_strong(name, one, other) for name in counted[0])
    scales = [
        {name: by_model["compressed"] for name, by_model in paper_scales(settings).items()}
        for settings in (one["settings"], other["settings"])
    ]
    common = {}
    for name in second:
        same = alike if name == "worst" else name in first and _as_strong(name, one, other)
        if same and scales[0].get(name) == scales[1].get(name):
            mine = {row["eps"]: row for row in first[name]}
            shared = [row for row in second[name] if row["eps"] in mine]
            if shared:
                common[name] = ([mine[row["eps"]] for row in shared], shared)
    return common


def _as_strong(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    try:
        return attack_strength(name, one["settings"]) == attack_strength(name, other["settings"])
    except OptionError:  # of a foolbox that this one is not
        return bool(one["settings"] == other["settings"])


def _latency(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    one, other = first["latency"], second["latency"]
    same_original = first["source"]["sha256"] == second["source"]["sha256"]
    if one is None or other is None or not same_original:
        return None
    if (one["device"], one["batch_size"]) != (other["device"], other["batch_size"]) or not min(one["ratio_quartiles"]):
        return None
    (low, high), (other_low, other_high) = one["ratio_quartiles"], other["ratio_quartiles"]
    return {
        "baseline_ratio": one["ratio"],
        "compressed_ratio": other["ratio"],
        "ratio": other["ratio"] / one["ratio"],
        "ratio_quartiles": [other_low / high, other_high / low],
        "batch_size": one["batch_size"],
        "rounds": min(one["rounds"], other["rounds"]),
        "device": one["device"],
    }


def _accuracy_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    models, where = evaluation["models"], f"{evaluation['images']:,} images of {evaluation['data']}"
    paired = evaluation.get("paired")

    def row(name: str, rows: Sequence[Mapping[str, Any]], pair: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
        if pair is None:
            return (name, "-", share_cell(rows[-1]), "not the same images")
        flips = f"{pair['lost']} lost, {pair['gained']} gained, McNemar p = {pair['p_value']:.2g}"
        return (name, share_cell(rows[0]), share_cell(rows[-1]), f"{100 * pair['difference']:+.2f} points ({flips})")

    clean = [model["clean"] for model in models.values()]
    rows = [row(f"clean, {where}", clean, paired["clean"] if paired else None)]
    for attack in ordered_attacks(evaluation):
        for index, point in enumerate(models["compressed"]["attacks"][attack]):
            eps = radius_of(attack, point["eps"], evaluation)
            name = f"{attack}@{eps} {NORM_SIGNS[evaluation['norm']]}, {where}"
            both = [model["attacks"][attack][index] for model in models.values()]
            rows.append(row(name, both, paired["attacks"][attack][index] if paired else None))
    return rows
