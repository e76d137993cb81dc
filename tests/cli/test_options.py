import pytest

from lrcompress.cli.options import check_device, load_options, parse_arguments
from lrcompress.errors import OptionError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in_chans=1", 1),
        ("rate=0.5", 0.5),
        ("act_layer=gelu", "gelu"),
        ("flag=True", True),
        ("layers=(2, 3)", [2, 3]),
        ("name='3'", "3"),
        ("path=a=b", "a=b"),
        ("empty=", ""),
        ("nothing=None", None),
    ],
)
def test_arguments_are_python_literals_or_text(text, expected):
    assert list(parse_arguments([text]).values()) == [expected]


@pytest.mark.parametrize("text", ["in_chans", "=3", "in chans=3", "1a=3", ""])
def test_what_is_no_argument_is_refused(text):
    with pytest.raises(OptionError, match="KEY=VALUE"):
        parse_arguments([text])


def test_arguments_are_never_evaluated(tmp_path):
    text = f"x=open({str(tmp_path / 'marker')!r}, 'w')"
    assert parse_arguments([text])["x"].startswith("open(")
    assert not (tmp_path / "marker").exists()


def test_preprocessing_is_read_from_its_texts():
    assert load_options(input_size="1,28,32", mean="0.5", std="0.1,0.2,0.3").preprocessing == {
        "input_size": (1, 28, 32),
        "mean": (0.5,),
        "std": (0.1, 0.2, 0.3),
    }
    assert load_options().preprocessing == {}


@pytest.mark.parametrize(
    "values",
    [
        {"input_size": "224"},
        {"input_size": "3,224"},
        {"input_size": "3,224,0"},
        {"input_size": "3,224,-1"},
        {"input_size": "3,a,b"},
        {"input_size": "3,nan,5"},
        {"input_size": "3,inf,5"},
        {"input_size": "3,5.5,5"},
        {"mean": ""},
        {"mean": "nan"},
        {"std": "0.5,0"},
        {"std": "-1"},
        {"std": "a"},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused_with_the_options_name(values):
    with pytest.raises(OptionError, match=f"--{next(iter(values)).replace('_', '-')} takes"):
        load_options(**values)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "no device `cuda:99`"),
        ("no_such_device", "--device must be cpu, cuda or cuda:N, got `no_such_device`"),
        ("meta:x", "--device must be cpu, cuda or cuda:N, got `meta:x`"),
        ("meta", "--device must be cpu, cuda or cuda:N, got `meta`"),  # torch knows it, but it computes nothing
        ("cuda:", "--device must be cpu, cuda or cuda:N, got `cuda:`"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, message):
    with pytest.raises(OptionError, match=message) as refused:
        check_device(device)
    assert refused.value.hint == "--device cpu"
