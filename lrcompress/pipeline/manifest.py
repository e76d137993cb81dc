"""What is written into an artifact beside its tensors."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from lrcompress.artifact import Cost, Manifest, installed_versions
from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet
from lrcompress.dlrt import FineTuning
from lrcompress.measure import count_macs, count_parameters, tensor_bytes
from lrcompress.pipeline.options import CompressOptions
from lrcompress.plan import CompressionPlan, LayerRecord, RankPolicy


def describe_result(
    loaded: LoadedModel,
    model: nn.Module,
    layers: tuple[LayerRecord, ...],
    recipe: Mapping[str, Any],
    images: ImageSet | None,
) -> Manifest:
    """Returns the manifest of the folded model; its digest and shared tensors are filled in when it is packed."""
    size = loaded.preprocessing.input_size
    stored_bytes = tensor_bytes(model, getattr(torch, loaded.dtype))
    return Manifest(
        architecture=loaded.architecture,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names=images.class_names if images else (),
        dtype=loaded.dtype,
        layers=layers,
        recipe=recipe,
        source=asdict(loaded.source) | {"candidates": list(loaded.source.candidates)},
        baseline=Cost(count_parameters(loaded.model), loaded.source.bytes, count_macs(loaded.model, size)),
        compressed=Cost(count_parameters(model), stored_bytes, count_macs(model, size)),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )


def describe_recipe(plan: CompressionPlan, options: CompressOptions, tuning: FineTuning | None) -> dict[str, Any]:
    """Returns how the model was made, for the manifest."""
    policy = {"name": "plan", "made_by": dict(plan.policy)} if options.plan is not None else dict(plan.policy)
    guaranteed = options.policy.guaranteed_tol() if isinstance(options.policy, RankPolicy) else None
    # A calibrated truncation promises an error of the outputs for its images, not of the weights.
    if plan.calibration is not None or options.layers.layer_ranks:
        guaranteed = None
    recipe: dict[str, Any] = {"plan": policy, "guaranteed_tol": guaranteed}
    if plan.calibration is not None:
        recipe["calibration"] = asdict(plan.calibration)
    if tuning is not None and options.training is not None:
        recipe["fine_tuning"] = {**options.training.describe(), "data": options.data, **_describe_tuning(tuning)}
    return recipe


def _describe_tuning(tuning: FineTuning) -> dict[str, Any]:
    """Returns what came of a fine-tuning, as JSON types; what does not apply is left out."""
    start, chosen = tuning.log[0], tuning.chosen()
    layer, kappa = chosen.largest_kappa()
    told = {
        "penalty": tuning.penalty,
        "chosen_epoch": tuning.chosen_epoch,
        "held_out_images": tuning.held_out_images,
        "held_out_accuracy": chosen.held_out_accuracy,
        "held_out_accuracy_before": start.held_out_accuracy,
        "largest_kappa": {"layer": layer, "kappa": kappa},
    }
    if tuning.reached is not None:
        told |= {"target_reached": tuning.reached, "held_out_accuracy_uncompressed": tuning.reference}
    if tuning.attacked_images:
        told |= {
            "attacked_images": tuning.attacked_images,
            "held_out_robust_accuracy": chosen.held_out_robust_accuracy,
            "held_out_robust_accuracy_before": start.held_out_robust_accuracy,
        }
    return told | ({"warnings": list(tuning.warnings)} if tuning.warnings else {})
