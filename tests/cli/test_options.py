import pytest

from lrcompress.cli.options import check_device, evaluation_rows, load_options, parse_arguments
from lrcompress.errors import OptionError
from lrcompress.robustness import AttackOutcome, Evaluation, ModelOutcome

NOTHING = dict.fromkeys(("arch", "arch_arg", "weights_key", "input_size", "mean", "std"))


def options(**values):
    return load_options(**{**NOTHING, "strict_arch": False, "match_by_order": False, **values})


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
    assert options(input_size="1,28,32", mean="0.5", std="0.1,0.2,0.3").preprocessing == {
        "input_size": (1, 28, 32),
        "mean": (0.5,),
        "std": (0.1, 0.2, 0.3),
    }
    assert options().preprocessing == {}


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
        options(**values)


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


def test_the_table_has_models_side_by_side_with_intervals():
    attacks = (AttackOutcome("worst", (2 / 255,), ((False, False, True, False),)),)
    models = tuple(
        ModelOutcome(role, "0", (True, True, True, False), attacks, 1.0) for role in ("baseline", "compressed")
    )
    columns, rows = evaluation_rows(Evaluation("data", 4, "linf", {}, 0, models, ()))
    assert columns == ["attack", "ε", "uncompressed", "compressed"]
    assert rows[0] == ["none (clean)", "0", "75.00 % [30.1, 95.4]", "75.00 % [30.1, 95.4]"]
    assert rows[1] == ["worst case", "2/255", "25.00 % [4.6, 69.9]", "25.00 % [4.6, 69.9]"]
