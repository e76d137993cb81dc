import subprocess
import sys
from importlib import metadata

import pytest
from command import run

from lrcompress.cli.console import stderr

VERBS = ["compress", "attack", "evaluate", "inspect", "verify", "demo"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_verb_explains_itself_with_an_example(verb, option):
    result = run(verb, option)
    assert result.exit_code == 0
    assert f"lrcompress {verb}" in result.stdout


def test_help_lists_the_verbs_and_the_exit_codes():
    result = run("--help")
    assert result.exit_code == 0
    for word in [*VERBS, "Exit codes"]:
        assert word in result.stdout


def test_the_version_is_the_installed_one():
    assert run("--version").stdout == metadata.version("lrcompress") + "\n"


@pytest.mark.parametrize("args", [["no-such-verb"], ["compress"], ["attack"], ["--no-such-option"]], ids=" ".join)
def test_wrong_usage_ends_with_2_and_leaves_stdout_empty(args):
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_help_answers_without_the_heavy_libraries():
    code = (
        "import sys\n"
        "from lrcompress.cli.app import app\n"
        "try:\n    app(['compress', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'torchvision', 'foolbox', 'numpy', 'scipy', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "--tol" in done.stdout


def test_the_module_can_be_run_and_an_error_is_no_traceback(tmp_path):
    command = [sys.executable, "-m", "lrcompress", "inspect", "nowhere.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert not list(tmp_path.iterdir())


def test_colours_are_left_out_where_the_user_wants_none(monkeypatch):
    # No verb colours its text now; the console must not, whatever is printed.
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with monkeypatch.context() as patch:
            for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", **environment}.items():
                patch.setenv(name, value)
            console = stderr()
            with console.capture() as captured:
                console.print("[red]text[/]")
            assert ("\x1b[31m" in captured.get()) is coloured


def test_no_control_codes_go_where_no_terminal_is(shop):
    result = run("verify", "out.safetensors", "--arch", "net.py:build")
    assert "digest" in result.stderr
    assert "\x1b[" not in result.output
