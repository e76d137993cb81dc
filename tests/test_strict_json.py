import pytest

from lrcompress.strict_json import parse_json


def test_what_the_language_says_is_read():
    text = '{"a": [1, -2.5, 1e3, true, null, "ü"], "b": {"a": 9223372036854775807}}'
    assert parse_json(text) == {"a": [1, -2.5, 1000.0, True, None, "ü"], "b": {"a": 2**63 - 1}}
    assert parse_json(text.encode()) == parse_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[NaN]", "NaN is no number in JSON"),
        ("[-Infinity]", "-Infinity is no number in JSON"),
        ("[1e999]", "1e999 is out of range"),
        ("[-1e999]", "-1e999 is out of range"),
        ("9223372036854775808", "9223372036854775808 is out of range"),
        ("-" + "9" * 5000, "-99999999999999999999999 is out of range"),
        ('{"a": 1, "b": 2, "a": 3}', "it has the key `a` twice"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ("{", "Expecting property name"),
        (b"\xff\xfe\x00", "codec can't decode"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_it_leaves_open_and_what_it_forbids_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
