import json

import pytest

from lrcompress.cli.overrides import Overrides, read_overrides
from lrcompress.errors import OptionError

TOML = """
exclude = ["layer4.*", "fc"]

[layer_ranks]
"*" = 8
"layer1.*" = 16

[layer_schemes]
"*.conv2" = "tucker2"
"""
EXPECTED = Overrides(("layer4.*", "fc"), (("*", 8), ("layer1.*", 16)), (("*.conv2", "tucker2"),))
VALUES = {
    "exclude": ["layer4.*", "fc"],
    "layer_ranks": {"*": 8, "layer1.*": 16},
    "layer_schemes": {"*.conv2": "tucker2"},
}


@pytest.mark.parametrize(
    ("name", "content"),
    [("mine.toml", TOML), ("mine.json", json.dumps(VALUES)), ("mine", TOML), ("mine.txt", TOML)],
)
def test_a_file_gives_patterns_in_its_order(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_overrides(tmp_path / name) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.toml", "", Overrides()),
        ("a.json", "{}", Overrides()),
        ("a.toml", 'exclude = ["a"]', Overrides(exclude=("a",))),
        ("a.toml", "[layer_ranks]\na = 3", Overrides(layer_ranks=(("a", 3),))),
        ("a.json", '{"layer_schemes": {"a": "split"}}', Overrides(layer_schemes=(("a", "split"),))),
    ],
)
def test_what_is_left_out_is_not_overridden(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert read_overrides(tmp_path / name) == expected


EXAMPLES = {
    "exclude": Overrides(exclude=("layer4.*",)),
    "layer_ranks": Overrides(layer_ranks=(("layer1.*", 16),)),
    "layer_schemes": Overrides(layer_schemes=(("*.conv2", "tucker2"),)),
}


@pytest.mark.parametrize("language", ["toml", "json"])
@pytest.mark.parametrize(("key", "expected"), EXAMPLES.items(), ids=EXAMPLES)
def test_the_hint_can_be_pasted_into_the_file(tmp_path, key, expected, language):
    path = tmp_path / f"a.{language}"
    path.write_text(json.dumps({key: 3}) if language == "json" else f"{key} = 3")
    with pytest.raises(OptionError, match=f"`{key}` in") as refused:
        read_overrides(path)
    path.write_text(refused.value.hint)
    assert read_overrides(path) == expected


@pytest.mark.parametrize("content", ["{", "exclude = [", "a b"])
def test_the_hint_for_what_is_no_such_file_can_be_pasted_too(tmp_path, content):
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(OptionError) as refused:
        read_overrides(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text(refused.value.hint)
    assert read_overrides(tmp_path / "a.toml") == EXAMPLES["layer_ranks"]


def test_a_file_that_is_not_there_is_answered_with_the_option(tmp_path):
    with pytest.raises(OptionError, match="No such file") as refused:
        read_overrides(tmp_path / "a.toml")
    assert refused.value.hint == "--overrides takes a TOML or JSON file that you have written"


BAD = {
    "missing": ("a.toml", None, "no overrides in `.*a.toml`: No such file"),
    "broken TOML": ("a.toml", "exclude = [", "no overrides in"),
    "broken JSON": ("a.json", "{", "no overrides in"),
    "JSON in TOML": ("a.toml", json.dumps(VALUES), "no overrides in"),
    "no text": ("a.toml", b"\xff\xfe\x00", "no overrides in"),
    "a list": ("a.json", "[]", "has no table of keys"),
    "a number": ("a.json", "3", "has no table of keys"),
    "null": ("a.json", "null", "has no table of keys"),
    "an unknown key": ("a.toml", "ranks = 3", "has the key `ranks`"),
    "exclude as text": ("a.toml", 'exclude = "layer4.*"', "`exclude` in .* is no list"),
    "exclude of numbers": ("a.json", '{"exclude": [3]}', "`exclude` in .* holds something else than patterns"),
    "ranks as a list": ("a.json", '{"layer_ranks": [3]}', "`layer_ranks` in .* is no table"),
    "schemes as text": ("a.json", '{"layer_schemes": "split"}', "`layer_schemes` in .* is no table"),
    "ranks as null": ("a.json", '{"layer_ranks": null}', "`layer_ranks` in .* is no table"),
    "a rank as text": ("a.toml", '[layer_ranks]\na = "3"', "gives `a` '3', which is not a whole number"),
    "half a rank": ("a.toml", "[layer_ranks]\na = 2.5", "gives `a` 2.5, which is not a whole number"),
    "a rank that is true": ("a.toml", "[layer_ranks]\na = true", "gives `a` True, which is not a whole number"),
    "a pattern without quotes": ("a.toml", "[layer_ranks]\na.b = 3", "gives `a` {'b': 3}, which is not a whole number"),
    "a scheme as number": ("a.toml", "[layer_schemes]\na = 2", "gives `a` 2, which is not the name of a scheme"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD.keys())
def test_what_makes_no_sense_is_refused(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=message) as refused:
        read_overrides(tmp_path / name)
    assert refused.value.hint
    assert "\n" not in refused.value.message


def test_a_folder_is_no_file_of_overrides(tmp_path):
    with pytest.raises(OptionError, match="no overrides in"):
        read_overrides(tmp_path)
