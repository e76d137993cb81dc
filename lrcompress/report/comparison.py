"""Two reports side by side: any two models, the second one against the first."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.report.evaluation_parts import ordered_attacks, share_cell
from lrcompress.report.upgrade import compare_models
from lrcompress.report.verdict import strength
from lrcompress.report.words import NORM_SIGNS, counted_attacks, paper_scales, radius_of
from lrcompress.robustness import attack_strength


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a comparison that gates read like a report, the first model in the place of the uncompressed one.

    Flips are counted where both models answered the same images, and under attack where the attacks were the same,
    smaller radii among them. The same images are those of one hash; where models take images of other sizes, or an
    older report has no hash, those of the same data, seed, number and labels. Latencies were timed apart: their ratio
    is that of both models' ratios to the same original on the same device, its bounds the quartiles of both.

    Args:
        first: the report of the model compared with.
        second: the report of the model in question.
    """
    costs = [report["size"]["compressed"] for report in (first, second)]
    matching = _Matching(_fit(first) == _fit(second))
    return {
        "models": [dict(report["artifact"]) for report in (first, second)],
        "size": {
            "baseline": costs[0],
            "compressed": costs[1],
            "removed": {key: 1 - costs[1][key] / costs[0][key] for key in ("parameters", "bytes", "macs")},
        },
        "latency": _latency(first, second),
        "evaluations": [_evaluation(first, evaluation, matching) for evaluation in second["evaluations"]],
        "only_first": [
            one
            for one in first["evaluations"]
            if not any(matching.same_images(one, other) for other in second["evaluations"])
        ],
        "gates": [],
    }


def comparison_rows(comparison: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the rows of a table: figure, first model, second model, and what lies between them.

    Rows that tell of some images follow one that names these, and how they were attacked.
    """
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
        low, high = latency["ratio_quartiles"]
        rows.append(("latency", times[0], times[1], f"ratio {latency['ratio']:.2f} ({low:.2f} to {high:.2f})"))
    groups: dict[str, list[tuple[str, str, str, str]]] = {}
    for evaluation in comparison["evaluations"]:
        groups.setdefault(_images_of(evaluation), []).extend(_accuracy_rows(evaluation))
    for evaluation in comparison["only_first"]:
        alone = evaluation | {"models": {"compressed": evaluation["models"]["compressed"]}, "paired": None}
        told = [(name, share, "-", "of the first only") for name, _, share, _ in _accuracy_rows(alone | {"apart": ""})]
        groups.setdefault(_images_of(evaluation), []).extend(told)
    for images, told in groups.items():
        rows += [(images, "", "", ""), *dict.fromkeys(told)]  # several attacks on the same images share the clean ones
    return rows


def _images_of(evaluation: Mapping[str, Any]) -> str:
    attacked = f": {strength(evaluation['settings'])}" * bool(evaluation["models"]["compressed"]["attacks"])
    return f"{evaluation['images']:,} images of {evaluation['data']}{attacked}"


def _fit(report: Mapping[str, Any]) -> list[Any]:
    """Returns how pictures are brought to a model's size: fitted otherwise, the same pictures are other images."""
    return [report["preprocessing"][key] for key in ("input_size", "crop_pct", "interpolation")]


@dataclass(frozen=True)
class _Matching:
    """Finds out whether evaluations of two models were made on the same images.

    Attributes:
        fitted_alike: whether the images of both are those that came of the pictures.
    """

    fitted_alike: bool

    def same_images(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        hashes = [evaluation.get("images_sha256") for evaluation in (one, other)]
        return hashes[0] == hashes[1] if self.fitted_alike and all(hashes) else _same_description(one, other)

    def why_apart(self, first: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
        """Returns why an evaluation has no counterpart among the first model's."""
        others = [other for other in first["evaluations"] if other["data"] == evaluation["data"]]
        if any(all(other[key] == evaluation[key] for key in ("seed", "images")) for other in others):
            return "not the same images: other pixels or labels under the same name"
        return "not the same images" + ": another number or seed" * bool(others)


def _same_description(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("data", "seed", "images")) and (
        one.get("labels", other.get("labels")) == other.get("labels", one.get("labels"))
    )


def _evaluation(first: Mapping[str, Any], evaluation: Mapping[str, Any], matching: _Matching) -> dict[str, Any]:
    """Returns an evaluation of the second model, with the first one's beside it if it answered the same images.

    Of several of the first one that did, the one with the most attacks in common counts, of equals the latest.
    """
    compressed = evaluation["models"]["compressed"]
    candidates = [other for other in first["evaluations"] if matching.same_images(other, evaluation)]
    merged = {key: evaluation[key] for key in ("data", "images", "seed", "norm", "settings", "complete", "interval")}
    merged |= {"findings": list(evaluation["findings"]), "models": {"compressed": compressed}}
    if not candidates:
        return merged | {"apart": matching.why_apart(first, evaluation)}
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


def _common_attacks(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Returns the outcomes of both models' attacks that were the same, at the radii that both have.

    What an attack finds within a radius counts at all larger ones, so the smaller radii must be the same too, but for
    attacks that look for the smallest perturbation whatever the radii. The worst case is the same attack only where all
    attacks were the same, and where ε is in units of normalised images they must be normalised alike.
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
            nearest = all(name in both["models"]["compressed"].get("distances", {}) for both in (one, other))
            pairs = _with_radii_of_both(first[name], second[name], nearest=nearest)
            if pairs:
                common[name] = ([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
    return common


def _with_radii_of_both(
    mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], *, nearest: bool
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Returns the outcomes at equal radii, up to the first that only one of the models has, or all."""
    if nearest:
        by_radius = {row["eps"]: row for row in mine}
        return [(by_radius[row["eps"]], row) for row in theirs if row["eps"] in by_radius]
    pairs = zip(mine, theirs, strict=False)
    return list(itertools.takewhile(lambda pair: pair[0]["eps"] == pair[1]["eps"], pairs))


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
    models, paired = evaluation["models"], evaluation.get("paired")

    def row(name: str, rows: Sequence[Mapping[str, Any]], pair: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
        if pair is None:
            return (name, "-", share_cell(rows[-1]), evaluation["apart"])
        flips = f"{pair['lost']} lost, {pair['gained']} gained, McNemar p = {pair['p_value']:.2g}"
        return (name, share_cell(rows[0]), share_cell(rows[-1]), f"{100 * pair['difference']:+.2f} points ({flips})")

    clean = [model["clean"] for model in models.values()]
    rows = [row("clean", clean, paired["clean"] if paired else None)]
    for attack in ordered_attacks(evaluation):
        for index, point in enumerate(models["compressed"]["attacks"][attack]):
            eps = radius_of(attack, point["eps"], evaluation)
            name = f"{attack}@{eps} {NORM_SIGNS[evaluation['norm']]}"
            both = [model["attacks"][attack][index] for model in models.values()]
            rows.append(row(name, both, paired["attacks"][attack][index] if paired else None))
    return rows
