"""What the result of a fine-tuning depends on, by the names of the options, so that only the same run is resumed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet, fingerprint
from lrcompress.dlrt import TrainingOptions
from lrcompress.pipeline.planning import LayerOptions
from lrcompress.plan import Calibration

Settings = dict[str, Any]
# How the policies are asked for: by their name and a value they have.
POLICIES = {
    ("tolerance", "tol"): "--tol",
    ("energy", "energy"): "--energy",
    ("uniform rank", "rank"): "--rank",
    ("budget", "fraction"): "--budget",
    ("budget", "parameters"): "--max-params",
    ("budget", "macs"): "--max-macs",
    ("max drop", "points"): "--max-drop",
}
# Where an option's name is not that of the setting, and where its absence has a name.
NAMES = {"layer_ranks": "--layer-rank", "layer_schemes": "--layer-scheme"}
NEGATED = {"flip": "--no-flip", "every_gradient": "--no-every-gradient", "calibrate": "--no-calibration"}


def option_settings(
    training: TrainingOptions, layers: LayerOptions, calibration: Calibration | None, *, data: str
) -> Settings:
    """Returns the settings that are known from the options alone, as JSON types."""
    method = training.describe()
    augmentation = method.pop("augmentation")
    method.pop("max_drop")  # the policy says it
    calibrated = {} if calibration is None else asdict(calibration)
    return _as_json(
        {
            **asdict(layers),
            **method,
            **augmentation,
            "data": resolve_source(data),
            "calibrate": resolve_source(calibrated["data"]) if calibrated else None,
            "calibration_images": calibrated.get("images"),
        }
    )


def found_settings(loaded: LoadedModel, images: ImageSet) -> Settings:
    """Returns the settings that are known once checkpoint and images are open, as JSON types."""
    architecture, preprocessing = loaded.architecture, loaded.preprocessing.to_json()
    del preprocessing["origin"]  # the same values may be found in the file or given
    name = architecture.label
    if architecture.framework == "custom":
        file, colon, factory = architecture.name.rpartition(":")
        name = f"{resolve_source(file)}{colon}{factory}"
    return _as_json(
        {
            "checkpoint": loaded.source.sha256,
            "arch": name,
            "arch_arg": dict(architecture.arguments),
            **preprocessing,
            "images": len(images),
            "images_sha256": fingerprint(images),
        }
    )


def explain_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs from the settings of a run, as it stands on the command line: "--lr 0.5, was 0.001"."""
    differing = [key for key, value in now.items() if then.get(key) != value]
    if "images" in differing and "images_sha256" in differing:  # another number of images says it all
        differing.remove("images_sha256")
    return [_explain(key, then.get(key), now[key]) for key in differing]


def resolve_source(source: str) -> str:
    """Returns a source of images or code in the one spelling that all spellings of its path have."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _explain(key: str, then: Any, now: Any) -> str:
    was, spelled = _spell(key, then), _spell(key, now)
    option, space, _ = spelled.partition(" ")
    return f"{spelled}, was {was.removeprefix(option + space) if option.startswith('--') else was}"


def _spell(key: str, value: Any) -> str:
    """Returns a setting as it is written on the command line.

    >>> _spell("lr", 0.1), _spell("max_rank", None), _spell("flip", False), _spell("mean", [0.5, 0.4])
    ('--lr 0.1', 'no --max-rank', '--no-flip', '--mean 0.5,0.4')
    """
    option = NAMES.get(key, f"--{key.replace('_', '-')}")
    if key in SPELLINGS:
        return SPELLINGS[key](value)
    if value is True:
        return option
    if value in (None, False, [], {}):
        return NEGATED.get(key, f"no {option}")
    if isinstance(value, Mapping):
        return " ".join(f"{option} {name}={one}" for name, one in value.items())
    if isinstance(value, list):
        return (
            " ".join(f"{option} {one}" for one in value)
            if key == "exclude"
            else f"{option} {','.join(map(str, value))}"
        )
    return f"{option} {value}"


def _spell_policy(policy: Mapping[str, Any]) -> str:
    return next(
        f"{option} {policy[key]}"
        for (name, key), option in POLICIES.items()
        if policy["name"] == name and key in policy
    )


# What is no option of its own name.
SPELLINGS: dict[str, Callable[[Any], str]] = {
    "policy": _spell_policy,
    "images": lambda count: f"{count} training images",
    "images_sha256": lambda digest: f"images with SHA-256 {digest[:12]}…",
    "checkpoint": lambda digest: f"a checkpoint with SHA-256 {digest[:12]}…",
}


def _as_json(settings: Mapping[str, Any]) -> Settings:
    return json.loads(json.dumps(settings))
