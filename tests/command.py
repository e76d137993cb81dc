"""Runs `lrcompress` in this process, and checks how it refuses."""

from click.testing import Result
from typer.testing import CliRunner

from lrcompress.cli.app import app


def run(*args: object, env: dict[str, str] | None = None) -> Result:
    """Returns the outcome of the command line with these arguments."""
    return CliRunner().invoke(app, [str(arg) for arg in args], env=env)


def assert_refused(result: Result, *words: str, code: int = 1) -> None:
    """Checks for one line `error:` with all the words in it, one line `hint:`, nothing on stdout and no traceback."""
    lines = result.stderr.splitlines()
    assert result.exit_code == code, result.output
    assert type(result.exception) is SystemExit
    assert sum(line.startswith("error: ") for line in lines) == 1, result.stderr
    assert sum(line.startswith("hint: ") for line in lines) == 1, result.stderr
    assert lines[-2].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    for word in words:
        assert word in f"{lines[-2]} {lines[-1]}", result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
