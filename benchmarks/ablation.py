"""What each part of the fine-tuning contributes: the demo's ResNet on Fashion-MNIST, 95 % removed, several seeds.

    python benchmarks/ablation.py --data DIR             # all that is missing, ten minutes a row
    python benchmarks/ablation.py --data DIR distilled   # rows whose names contain one of the words, again

The checkpoint is that of `lrcompress demo` and lies in the repository, so every row can be had on any machine. Each row
trains from it for five epochs with the same settings but for what its title says. The epoch is chosen on 6,000 of the
60,000 training images, which the checkpoint has seen; no row profits from that more than another. The seed decides
calibration, split, order and augmentation of the images. The test split is seen once, at the end of each row. A row
that is stopped goes on from runs/ablation/.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import circumstances, read_results, write_results
from rows import Bench, Row

CHECKPOINT = Path(__file__).parents[1] / "lrcompress" / "assets" / "fashion_mnist" / "resnet.pt"
SEEDS = (0, 1, 2)
KEEP = 0.05
METHOD: dict[str, Any] = {"lr": 2e-3}
LOOP: dict[str, Any] = {"epochs": 5}

ROWS = {
    "svd": Row("truncated with calibration, not trained", KEEP),
    "dlrt": Row("DLRT, β = 0", KEEP, "dlrt"),
    "fixed": Row("fixed ranks, all factors trained", KEEP, "weights"),
    "distilled": Row("DLRT + distillation 0.9", KEEP, "dlrt", {}, {"distill": 0.9}),
    "robust": Row("RobustDLRT, β = 0.05", KEEP, "dlrt", {"beta": 0.05}),
    "paper": Row("DLRT, cycle of the paper", KEEP, "dlrt", {"every_gradient": False, "moments": "transport"}),
    "dense": Row("dense, trained as long", None, "weights", {"lr": 5e-4}),
    "distilled_half": Row("DLRT + distillation 0.5", KEEP, "dlrt", {}, {"distill": 0.5}),
    "annealed": Row("DLRT + distillation 0.9, from twice the size", KEEP, "dlrt", {}, {"distill": 0.9, "anneal": 2.0}),
    "fixed_distilled": Row("fixed ranks + distillation 0.9", KEEP, "weights", {}, {"distill": 0.9}),
    "kappa": Row("RobustDLRT, κ ≤ 10", KEEP, "dlrt", {"max_kappa": 10.0}),
}


def bench(data: str, seed: int) -> Bench:
    states = Path("runs/ablation") / str(seed)
    return Bench(CHECKPOINT, None, data, states, 1000, (4 / 255, 8 / 255), restarts=1, seed=seed)


def run(data: str, words: list[str], seeds: list[int]) -> None:
    for seed in seeds:
        table = bench(data, seed)
        for name, row in ROWS.items():
            done = read_results("ablation").get(f"seed_{seed}", {}).get("rows", {})
            if any(word in name for word in words) if words else name not in done:
                model, told = table.make(name, replace(row, method=METHOD | row.method, loop=LOOP | row.loop))
                figures = table.measure(model) | told | {"title": row.title, "circumstances": circumstances()}
                done = read_results("ablation").get(f"seed_{seed}", {}).get("rows", {})
                write_results("ablation", f"seed_{seed}", {"rows": done | {name: figures}})
    if "checkpoint" not in read_results("ablation"):
        table = bench(data, 0)
        write_results("ablation", "checkpoint", table.measure(table.load().model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of rows' names")
    parser.add_argument("--data", required=True, help="folder with the idx files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    run(arguments.data, arguments.words, arguments.seeds)
