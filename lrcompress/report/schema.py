"""The published JSON Schema of reports, and whether a report follows it."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

Schema = Mapping[str, Any]
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": (list, tuple),  # JSON has no tuples, reports that were not written yet have
    "string": str,
    "boolean": bool,
    "number": (int, float),
    "integer": int,
    "null": type(None),
}


@functools.cache
def report_schema() -> Schema:
    """Returns the JSON Schema (draft 2020-12) that every report follows."""
    return json.loads((resources.files("lrcompress") / "report" / "report.schema.json").read_text())


def find_fault(report: Any) -> str:
    """Returns where a value does not follow the schema of reports and what stands there, "" if it does.

    Knows the words of JSON Schema that `report.schema.json` uses, and no others.
    """
    return _fault(report, report_schema(), "the report")


def _fault(value: Any, schema: Schema, place: str) -> str:
    if "$ref" in schema:
        schema = report_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if allowed := _not_allowed(value, schema):
        return f"{place} must be {allowed}, got {_short(value)}"
    if isinstance(value, dict):
        return _fault_in_object(value, schema, place)
    return _fault_in_array(value, schema, place) if isinstance(value, list | tuple) else ""


def _not_allowed(value: Any, schema: Schema) -> str:
    """Returns what a value must be that it is not, "" if it is all of it."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if kinds and not any(_is_a(value, kind) for kind in kinds):
        return " or ".join(kinds)
    if choices is not None and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    if _is_a(value, "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"a number from {schema.get('minimum', '-∞')} to {schema.get('maximum', '∞')}"
    if isinstance(value, str) and not re.fullmatch(schema.get("pattern", "(?s:.*)"), value):
        return f"a text like {schema['pattern']}"
    return ""


def _fault_in_object(value: Mapping[str, Any], schema: Schema, place: str) -> str:
    if missing := [key for key in schema.get("required", []) if key not in value]:
        return f"{place} has no `{missing[0]}`"
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    inside = ((key, known.get(key, others)) for key in value)
    return next((fault for key, one in inside if (fault := _fault(value[key], one, f"`{key}` of {place}"))), "")


def _fault_in_array(value: Sequence[Any], schema: Schema, place: str) -> str:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{place} has {len(value)} entries"
    items = schema.get("items", {})
    inside = enumerate(value)
    return next((fault for index, one in inside if (fault := _fault(one, items, f"entry {index} of {place}"))), "")


def _is_a(value: Any, kind: str) -> bool:
    # In JSON true is no number, and 2.0 is an integer.
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:36]} …"
