"""A report with everything in it that an evaluation may hold, made by hand."""

import base64
import copy
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from lrcompress.report import load_report, verdict
from lrcompress.report.upgrade import compare_models
from lrcompress.robustness import wilson_interval

OLD_REPORT = Path(__file__).parent / "report" / "schema1" / "out.report.json"
EPS = (4 / 255, 8 / 255)


def row(bits: str, **more: Any) -> dict[str, Any]:
    """Returns an accuracy with its interval and bits."""
    correct, images = bits.count("1"), len(bits)
    return {
        "correct": correct, "accuracy": correct / images, "interval": list(wilson_interval(correct, images)),
        "bits": bits, **more,
    }  # fmt: skip


def bits(right: int, images: int, *, first: int = 0) -> str:
    """Returns `right` images answered rightly, beginning with `first`, and the others wrongly."""
    return "".join("1" if (index - first) % images < right else "0" for index in range(images))


def png(shade: int) -> str:
    """Returns a small picture in base64."""
    file = io.BytesIO()
    Image.new("L", (4, 4), shade).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def attacked_model(images: int, clean: int, robust: tuple[int, int], *, first: int = 0) -> dict[str, Any]:
    """Returns the outcome of a model under FGSM and PGD, the worst case being PGD."""
    rows = [row(bits(right, images, first=first), eps=eps) for right, eps in zip(robust, EPS, strict=True)]
    weak = [
        row(bits(right + images // 20, images, first=first), eps=eps) for right, eps in zip(robust, EPS, strict=True)
    ]
    return {
        "sha256": "ab", "seconds": 1.0, "forward_passes": 10, "backward_passes": 9,
        "clean": row(bits(clean, images, first=first)), "attacks": {"fgsm": weak, "pgd": rows, "worst": rows},
    }  # fmt: skip


def plain_evaluation(
    images: int = 1000,
    clean: tuple[int, int] = (900, 890),
    robust: tuple[tuple[int, int], tuple[int, int]] = ((600, 300), (590, 280)),
    *,
    first: int = 0,
    data: str = "photos",
    **changes: Any,
) -> dict[str, Any]:
    """Returns an evaluation of both models; pairs are (baseline, compressed)."""
    models = {
        "baseline": attacked_model(images, clean[0], robust[0]),
        "compressed": attacked_model(images, clean[1], robust[1], first=first),
    }
    return {
        "version": 2, "data": data, "images": images, "seed": 0, "norm": "linf",
        "settings": {"attacks": ["fgsm", "pgd"], "eps": list(EPS), "steps": 20, "restarts": 1, "engine": "foolbox 3"},
        "complete": True, "interval": "Wilson, 95 %, covers the sampling of images only", "findings": [],
        "models": models, "paired": compare_models(models["baseline"], models["compressed"]),
        "command": f"lrcompress attack out.safetensors --pgd --data {data}",
    } | changes  # fmt: skip


def paper_evaluation(scale: float = 0.2, **changes: Any) -> dict[str, Any]:
    """Returns an evaluation in which an attack with an ε of its own does more harm than the others."""
    values = plain_evaluation(data="paper's")
    for model in values["models"].values():
        model["attacks"]["paper-jitter"] = [row(bits(100, 1000), eps=eps) for eps in EPS]
    values["settings"]["attacks"].append("paper-jitter")
    scales = {"paper-jitter": {"baseline": scale, "compressed": scale}}
    values["settings"]["paper"] = {"unit": "not comparable", "pixels_per_unit": scales}
    values["paired"] = compare_models(values["models"]["baseline"], values["models"]["compressed"])
    return copy.deepcopy(values | changes)


def rich_evaluation(**changes: Any) -> dict[str, Any]:
    """Returns an evaluation in which nothing is missing."""
    values = plain_evaluation(complete=False, images_asked=2000, seconds=3.5, forward_passes=20, backward_passes=18)
    values["findings"] = [
        {
            "severity": "unreliable",
            "check": "weaker-beats-stronger",
            "model": "compressed",
            "message": "PGD is too weak",
        },
        {"severity": "inconclusive", "check": "floor", "model": None, "message": "all models are at 0 %"},
    ]
    values["labels"] = [index % 3 for index in range(1000)]
    values["class_names"] = ["cat", "dog", "fox"]
    for pair in (values["paired"]["clean"], *(one for rows in values["paired"]["attacks"].values() for one in rows)):
        pair["interval"] = [pair["difference"] - 0.02, pair["difference"] + 0.02]
    for model in values["models"].values():
        found = {"norm": "linf", "median": 0.012, "quartiles": [0.01, None], "found": 990, "values": [0.01, None]}
        model["distances"] = {"fmn": found}
    by_model = {"clean": 0.75, "worst": [0.5, 0.25]}
    values["per_class"] = [
        {"class": index, "images": 333, "baseline": by_model, "compressed": by_model | {"clean": 0.7 - index / 10}}
        for index in range(3)
    ]
    values["transfer"] = {"attack": "pgd", "eps": EPS[0], "accuracy": {"baseline→compressed": 0.625}}
    values["examples"] = [
        {
            "index": 17, "label": 2, "baseline": {"eps": EPS[1], "predicted": 0},
            "compressed": {"eps": EPS[0], "predicted": 1},
            "images": {"original": png(9), "perturbation": png(99), "adversarial": png(199)},
        }
    ]  # fmt: skip
    severities = [{"severity": one, **row(bits(800 - 100 * one, 1000))} for one in (1, 2)]
    fog = {"fog": severities}
    values["corruptions"] = {"severities": [1, 2], "models": {"baseline": fog, "compressed": fog}, "paired": {}}
    certified = [{"radius": 0.25, "correct": 512, "accuracy": 0.512, "interval": [0.48, 0.54]}]
    values["certified"] = {
        "sigma": 0.25, "samples": 1000, "alpha": 0.001, "models": {"baseline": certified, "compressed": certified},
    }  # fmt: skip
    values["gradients"] = {role: {"median_norm": 0.321, "median_margin": None} for role in ("baseline", "compressed")}
    return copy.deepcopy(values | changes)


def norm(value: float, size: list[int], *, converged: bool = True) -> dict[str, Any]:
    """Returns the operator norm of one layer in one model."""
    return {"norm": value, "converged": converged, "iterations": 20, "input_size": size}


NORMS = {
    "seed": 0, "tolerance": 1e-6, "most_iterations": 1000, "vacuous_log10_product_ratio": -0.301,
    "command": "lrcompress inspect out.safetensors --operator-norms",
    "layers": [
        {"name": "stem", "baseline": norm(2.5, [3, 8, 8]), "compressed": norm(1.25, [3, 8, 8], converged=False)},
        {"name": "head", "baseline": norm(0.0, [12]), "compressed": norm(3.0, [12])},
        {"name": "late", "compressed": norm(1.5, [12])}, {"name": "never"},
    ],
}  # fmt: skip


def with_spectra(layer: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a layer with singular values, if it is factorised: three times as many before."""
    if "ranks" not in layer:
        return layer
    first, last, count = layer["sigma_max"], layer["sigma_min"], layer["ranks"][0]
    dense = [[1, 1.25 * first], [count + 1, last], [3 * count, last / 100]]
    return layer | {"spectrum": [[1, first], [count + 1, last]], "dense_spectrum": dense}


def report_with(*evaluations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns the report of a real fine-tuned network with these evaluations instead of its own."""
    old = load_report(OLD_REPORT)
    layers = [with_spectra(layer) for layer in old["layers"]]
    added = {"evaluations": list(evaluations), "command": "lrcompress compress w.pt", "layers": layers}
    values = old | added | changes
    return json.loads(json.dumps(values | {"verdict": verdict(values)}))
