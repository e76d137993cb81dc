"""A file of layers that are treated differently: what is too long for a command line."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.strict_json import parse_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

# What each key looks like in TOML: a line that can be pasted.
EXAMPLES = {
    "exclude": 'exclude = ["layer4.*"]',
    "layer_ranks": 'layer_ranks = {"layer1.*" = 16}',
    "layer_schemes": 'layer_schemes = {"*.conv2" = "tucker2"}',
}


@dataclass(frozen=True)
class Overrides:
    """What holds for layers whose names match patterns.

    Attributes:
        exclude: patterns of layers that stay dense.
        layer_ranks: ranks by pattern.
        layer_schemes: schemes by pattern.
    """

    exclude: tuple[str, ...] = ()
    layer_ranks: tuple[tuple[str, int], ...] = ()
    layer_schemes: tuple[tuple[str, str], ...] = ()


def read_overrides(path: Path) -> Overrides:
    """Returns what stands in a TOML or JSON file.

    Raises:
        OptionError: if it cannot be read, or holds anything else.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(
            f"no overrides in `{path}`: {reason}", hint="--overrides takes a TOML or JSON file that you have written"
        ) from error
    try:
        values = parse_json(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"no overrides in `{path}`: {error}", hint=_example("layer_ranks", path)) from error
    kinds = {"exclude": list, "layer_ranks": dict, "layer_schemes": dict}
    if not isinstance(values, dict):
        raise OptionError(f"`{path}` has no table of keys", hint=_example("layer_ranks", path))
    if unknown := values.keys() - kinds.keys():
        raise OptionError(f"`{path}` has the key `{min(unknown)}`", hint=f"known are {', '.join(kinds)}")
    for key, kind in kinds.items():
        if not isinstance(values.get(key, kind()), kind):
            raise OptionError(
                f"`{key}` in `{path}` is no {'list' if kind is list else 'table'}", hint=_example(key, path)
            )
    exclude = tuple(values.get("exclude", []))
    if not all(isinstance(pattern, str) for pattern in exclude):
        raise OptionError(f"`exclude` in `{path}` holds something else than patterns", hint=_example("exclude", path))
    ranks, schemes = values.get("layer_ranks", {}), values.get("layer_schemes", {})
    return Overrides(exclude, _typed(ranks, int, "layer_ranks", path), _typed(schemes, str, "layer_schemes", path))


def _typed(values: Mapping[str, Any], kind: type, key: str, path: Path) -> tuple[tuple[str, Any], ...]:
    for pattern, value in values.items():
        if type(value) is not kind:  # True is an int too
            wanted = "a whole number" if kind is int else "the name of a scheme"
            raise OptionError(
                f"`{key}` in `{path}` gives `{pattern}` {value!r}, which is not {wanted}", hint=_example(key, path)
            )
    return tuple(values.items())


def _example(key: str, path: Path) -> str:
    """Returns a key as it may stand in the file, in the file's language."""
    text = EXAMPLES[key]
    return json.dumps(tomllib.loads(text)) if path.suffix == ".json" else text
