"""Where the figures of the benchmarks lie: benchmarks/results/NAME.json, one entry per part with its circumstances."""

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")


def read_results(name: str) -> dict[str, Any]:
    """Returns the results of a benchmark by part; empty if there are none yet."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def circumstances() -> dict[str, Any]:
    """Returns machine, versions and date of what is measured now."""
    versions = {
        library: metadata.version(library) for library in ("lrcompress", "torch", "torchvision", "timm", "foolbox")
    }
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, on the CPU",
        "python": platform.python_version(),
        "versions": versions,
    }


def write_results(name: str, part: str, figures: dict[str, Any]) -> None:
    """Replaces one part of a benchmark's results, and adds its circumstances."""
    results = read_results(name) | {part: figures | {"circumstances": circumstances()}}
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(json.dumps(figures, indent=1, default=str)[:2000])


def gained(row: dict[str, Any]) -> float:
    """Returns the points of clean accuracy that a row of dlrt.json has above the checkpoint it started from."""
    return 100 * (row["accuracy"] - row["dense_accuracy"])


def commit() -> str:
    """Returns the commit of the code that was measured; changes that were not committed are not told."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
