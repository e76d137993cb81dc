"""The examples run."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_digits_example_trains_compresses_attacks_and_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "digits.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "is read as a" in said
    assert (tmp_path / "small.safetensors").stat().st_size < 0.5 * (tmp_path / "digits.pt").stat().st_size
    assert (tmp_path / "small.report.html").is_file()
