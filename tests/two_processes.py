"""Runs a function in two processes that talk by gloo; as a script it is one of them."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 600  # what hangs must not hang for ever; on a busy machine two imports of torch alone take ten


def start_two(command: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Starts a Python command twice, in a folder, as `torchrun --nproc-per-node 2` does."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    root, started = Path(__file__).parents[1], []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}",
        }
        one = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(one)
    return started


def finish(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of every process."""
    ended = []
    try:
        for one in started:
            stdout, stderr = one.communicate(timeout=SECONDS)
            ended.append((one.returncode, stdout, stderr))
    finally:
        for one in started:
            one.kill()
    return ended


def run_in_two(file: str, function: str, folder: Path) -> list[Any]:
    """Returns what a function of a file returns in each of two processes.

    Args:
        file: of Python, a test's own `__file__`.
        function: its name; takes nothing.
        folder: an empty one.
    """
    import torch

    for code, _, stderr in finish(start_two([__file__, file, function], folder)):
        assert code == 0, stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _be_one() -> None:
    import torch

    from lrcompress.pipeline import joined_processes

    torch.set_num_threads(1)
    _, file, function = sys.argv
    torch.manual_seed(0)
    with joined_processes("cpu") as device:
        assert device == "cpu"
        value = runpy.run_path(file)[function]()
    torch.save(value, f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    _be_one()
