import json

import pytest

from lrcompress.cli.overrides import HINT, Overrides, read_overrides
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


def test_the_hint_is_itself_such_a_file(tmp_path):
    (tmp_path / "a.toml").write_text(HINT.replace(", [", "\n[").replace('] "', ']\n"'))
    assert read_overrides(tmp_path / "a.toml") == Overrides(
        ("layer4.*",), (("layer1.*", 16),), (("*.conv2", "tucker2"),)
    )


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
