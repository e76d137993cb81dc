"""JSON from users' files: what the language leaves open is refused instead of read in one way or another."""

import json
import math
from typing import Any

LARGEST = 2**63 - 1  # of the whole numbers that a tensor holds


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: if it is none, names a key twice, or holds a number that no double or no 64-bit integer can be, NaN
            and Infinity among them.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_float, parse_int=_int, object_pairs_hook=_table)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is out of range")
    return value


def _int(text: str) -> int:
    if len(text) > len(str(-LARGEST)) or abs(value := int(text)) > LARGEST:
        raise ValueError(f"{text:.24} is out of range")
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key `{next(key for key in keys if keys.count(key) > 1)}` twice")
    return table
