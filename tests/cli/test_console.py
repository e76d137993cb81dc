import json
from dataclasses import replace

import pytest
import typer

from lrcompress.cli.console import describe_training, explain_errors, fail, follow_progress, print_json, print_table
from lrcompress.dlrt import TrainingProgress
from lrcompress.errors import DataError

PROGRESS = TrainingProgress(
    step=3,
    steps=9,
    epoch=1,
    epochs=3,
    loss=0.5,
    held_out_accuracy=0.875,
    held_out_robust_accuracy=None,
    mean_rank=12.4,
    parameters=1_234_567,
)


def test_an_error_is_one_line_and_its_hint_another(capsys):
    @explain_errors
    def verb():
        raise DataError("two\nlines  of text", hint="do this")

    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == 1
    captured = capsys.readouterr()
    assert captured.err == "error: two lines of text\nhint: do this\n"
    assert captured.out == ""


def test_an_error_without_a_hint_has_no_line_for_it(capsys):
    with pytest.raises(typer.Exit):
        fail("wrong", "")
    assert capsys.readouterr().err == "error: wrong\n"


def test_errors_of_the_program_itself_are_not_hidden():
    @explain_errors
    def verb():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        verb()


def test_what_a_verb_returns_is_kept():
    assert explain_errors(lambda: 3)() == 3


def test_json_is_sorted_and_never_holds_nan(capsys):
    print_json({"b": 1, "a": "ε"})
    assert list(json.loads(capsys.readouterr().out)) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json(float("nan"))


def test_tables_go_to_stderr_and_their_cells_are_text(capsys):
    print_table("title", ["layer", "rank"], [["[bold]0[/bold]", "4"], ["/tmp/[x]", "5"]])
    captured = capsys.readouterr()
    assert captured.out == ""
    for text in ("title", "[bold]0[/bold]", "/tmp/[x]"):
        assert text in captured.err


def test_texts_wrap_in_a_narrow_terminal_and_figures_do_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    row = ["features.denseblock1.denselayer1", "512×512×3×3", "85.00 % [64.0, 94.8]", "because of a long reason"]
    print_table("title", ["layer", "weight", "clean accuracy", "why"], [row], texts=(0, 3))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    assert any("512×512×3×3" in line and "85.00 % [64.0, 94.8]" in line for line in lines)
    assert "features.denseblock1.denselayer1" not in "".join(lines)
    print_table("title", ["file smaller", "clean after"], [["a", "5 %"]])
    assert "clean" in capsys.readouterr().err.splitlines()[2]  # a heading wraps where its figures are short


def test_the_training_bar_tells_loss_accuracy_ranks_and_size():
    assert describe_training(PROGRESS) == "epoch 1/3  loss 0.500  held-out 87.50 %  mean rank 12  1.235 M parameters"


def test_the_training_bar_tells_whose_attack_the_images_are_perturbed_by():
    perturbed = replace(PROGRESS, held_out_robust_accuracy=0.4125)
    assert describe_training(perturbed) == (
        "epoch 1/3  loss 0.500  held-out 87.50 %  perturbed by the training's own adversary 41.25 %  mean rank 12  "
        "1.235 M parameters"
    )


def test_without_a_terminal_an_evaluation_tells_now_and_then_how_far_it_is(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with follow_progress() as observer:
        for step in range(1, 10):
            now[0] = 20.0 * step
            observer.on_attack("compressed: PGD", 10 * step, 100)
    lines = [line for line in capsys.readouterr().err.splitlines() if "done" in line]
    assert lines == ["• 40 % done, compressed: PGD", "• 80 % done, compressed: PGD"]
