import shlex
from dataclasses import replace

import pytest
from command import assert_refused, run

from lrcompress.cli import demo
from lrcompress.pipeline import Observer


@pytest.fixture
def asked(monkeypatch):
    """What `compress` and `evaluate` were asked for; they do nothing."""
    calls = []

    def compress(source, output, options, *, observer):
        calls.append((str(source), str(output), options))
        return {}

    def evaluate(artifact, options, *, observer):
        calls.append((str(artifact), options))
        return None, {}

    monkeypatch.setattr("lrcompress.pipeline.compress", compress)
    monkeypatch.setattr("lrcompress.pipeline.evaluate", evaluate)
    return calls


def test_what_the_demo_does_with_fashion_mnist_is_what_the_commands_do_that_it_tells(asked, tmp_path):
    said = []
    (tmp_path / "out").mkdir()
    demo._fashion(tmp_path / "out", Observer(on_stage=said.append))
    (source, output, options), _ = asked
    asked.clear()
    typed = [shlex.split(text.removeprefix("$ lrcompress ")) for text in said if text.startswith("$ ")]
    result = run(*typed[0])
    assert result.exit_code == 0, result.output
    ((typed_source, typed_output, typed_options),) = asked
    assert (typed_source, typed_output) == (source, output)
    assert replace(typed_options, command="") == replace(options, command="")
    assert shlex.split(options.command) == ["lrcompress", *typed[0]]


def test_what_the_demo_does_with_imagenet_is_what_the_command_does_that_it_tells(asked, tmp_path):
    said = []
    (tmp_path / "w.pth").write_bytes(b"")
    demo._imagenet(tmp_path / "w.pth", tmp_path, Observer(on_stage=said.append))
    ((source, output, options),) = asked
    asked.clear()
    result = run(*shlex.split(said[0].removeprefix("$ lrcompress ")))
    assert result.exit_code == 0, result.output
    ((typed_source, typed_output, typed_options),) = asked
    assert (typed_source, typed_output) == (source, output)
    assert replace(typed_options, command="") == replace(options, command="")


def test_a_folder_that_is_no_earlier_demo_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    assert_refused(run("demo", "-o", tmp_path / "mine"), "exists and is no earlier demo", "-o")
    assert (tmp_path / "mine" / "precious").read_text() == "x"
