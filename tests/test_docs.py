"""What README and docs say is what the program does."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import lrcompress

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMAND = re.compile(r"^(?: {4}|\$ |`)(lrcompress [a-z][^#`\n]*)", re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that the examples name: small ones."""
    import torch

    folder = tmp_path_factory.mktemp("docs")
    for page in PAGES:
        for block in blocks(page):
            if block.startswith("# net.py"):
                (folder / "net.py").write_text(block)
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.pipeline import CompressOptions, compress
    from lrcompress.plan import Tolerance

    namespace: dict = {}
    exec((folder / "net.py").read_text(), namespace)
    torch.save(namespace["build"]().state_dict(), folder / "mine.pt")
    load = LoadOptions(arch=f"{folder / 'net.py'}:build", preprocessing={"input_size": (1, 12, 12)})
    compress(str(folder / "mine.pt"), folder / "mine.safetensors", CompressOptions(policy=Tolerance(0.5), load=load))
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), folder / "model.pt")
    options = CompressOptions(policy=Tolerance(0.5), load=LoadOptions(arch="test_resnet"))
    compress(str(folder / "model.pt"), folder / "out.safetensors", options)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_python_block_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), {})


def test_the_pages_have_python_blocks_and_commands():
    assert sum(len(blocks(page)) for page in PAGES) >= 5
    assert sum(len(COMMAND.findall(page.read_text())) for page in PAGES) >= 15


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_in_the_pages_has_only_options_that_exist(page):
    from lrcompress.cli.app import app

    verbs = typer.main.get_command(app).commands
    for line in COMMAND.findall(page.read_text()):
        words = shlex.split(line.replace("…", "x"))
        assert words[1] in verbs, line
        known = {name for option in verbs[words[1]].params for name in (*option.opts, *option.secondary_opts)}
        for word in words[2:]:
            if word.startswith("-"):
                assert word in known | {"--help", "-"}, line


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    for name in set(lrcompress.__all__) - {"__version__"}:
        assert re.search(rf"\b{name}\b", text), name


def test_results_page_and_readme_say_what_the_committed_results_say():
    done = subprocess.run(
        [sys.executable, "benchmarks/results_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_summary_of_the_committed_results_has_every_figure(tmp_path):
    import json

    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    done = subprocess.run(
        [sys.executable, "benchmarks/main_job.py", "--summary"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    wanted = {"demo_file_ratio", "demo_drop", "fashion_removed", "fashion_drop", "help_ratio"}
    assert wanted <= figures.keys()
    assert all(isinstance(value, int | float) for value in figures.values())
