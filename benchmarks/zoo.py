"""Every classification architecture of timm and torchvision: build, plan, factorise, save, load, compare.

    python benchmarks/zoo.py --jobs 2         # all that have not passed yet, smallest first: hours, and can be stopped
    python benchmarks/zoo.py resnet50 levit   # those whose names contain one of the words, again
    python benchmarks/zoo.py --page           # writes docs/coverage.md from the results
    python benchmarks/zoo.py --summary        # prints the committed figures and runs nothing

An architecture passes if

- factorising every layer at full rank, first layer and classifier included, reproduces the logits to 1e-3 relative:
  once in the matrix form, and once in each other form that fits a layer;
- every parameter with two or more dimensions has a scheme, or a reason why it stays dense;
- compressed to half its parameters, or as far as it can be, without data, it is saved and loaded bit for bit, has the
  number of parameters that its plan says, and its file is no larger than that of the dense weights.

Weights are random, with every bias and zero-initialised weight disturbed, so that nothing hides, and batch norms have
the statistics of a random batch. From 128 million parameters on, weights of one shape are equal, so that each shape is
decomposed once. Some deep random networks amplify rounding so much that in float32 the dense network
itself differs from what it computes in float64; those are compared in float64, and say so. What needs more than 16 GiB
is built and run on the meta device, with every layer replaced by its matrix form: without values there is no spectrum,
so no plan, no other form and no file. What did not pass is run again with the next call.
"""

import argparse
import collections
import contextlib
import copy
import json
import tempfile
import threading
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from results import FOLDER, commit, write_results
from torch import nn

from lrcompress.artifact import Cost, Manifest, installed_versions, load_artifact, pack_artifact, save_artifact
from lrcompress.artifact.tensors import iterate_file
from lrcompress.errors import OptionError
from lrcompress.factorize import describe_layers, factorize
from lrcompress.measure import count_parameters, run_without_values
from lrcompress.models import Architecture, build_model, default_preprocessing, known_architectures
from lrcompress.nn import LowRankLayer, PlainLayer, expose_, replace_module_, twin
from lrcompress.plan import Budget, CompressionPlan, Decomposer, FullRank, Smallest, find_layers, make_plan
from lrcompress.schemes import SCHEMES, Decomposition, Scheme, find_scheme

LOG = Path("runs/zoo.jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
TOLERANCE, SEED, SHARE = 1e-3, 0, 0.5
# Dense and full-rank weights in float32, the latter up to twice as many, and room for activations.
LARGEST = 1_200_000_000
# From this number of parameters on, layers of one shape have the same weights, so that each shape is decomposed once.
SHARED_FROM = 128_000_000
KEPT_BYTES = 6 * 2**30


class SharingDecomposer(Decomposer):
    """Decomposes and fills layers with equal weights once."""

    def __init__(self, wanted: str = "auto") -> None:
        super().__init__(wanted=wanted, kept_bytes=KEPT_BYTES)
        self._filled: dict[tuple[Any, ...], tuple[PlainLayer, LowRankLayer]] = {}
        self._shared: dict[tuple[Any, ...], tuple[PlainLayer, Decomposition]] = {}
        self._locks: dict[tuple[Any, ...], threading.Lock] = collections.defaultdict(threading.Lock)

    def decompose(self, name: str, layer: PlainLayer, scheme: Scheme) -> Decomposition:
        key = scheme.name, layer.extra_repr(), tuple(layer.weight.shape)
        with self._locks[key]:
            if key not in self._shared or not torch.equal(self._shared[key][0].weight, layer.weight):
                self._shared[key] = layer, super().decompose(name, layer, scheme)
            return copy.copy(self._shared[key][1])  # each is cut to the ranks of its own layer

    def low_rank_layer(self, name: str, layer: PlainLayer, scheme: str, ranks: tuple[int, ...]) -> LowRankLayer:
        key = scheme, ranks, layer.extra_repr(), tuple(layer.weight.shape)
        if key not in self._filled or not torch.equal(self._filled[key][0].weight, layer.weight):
            self._filled[key] = layer, super().low_rank_layer(name, layer, scheme, ranks)
        return copy.deepcopy(self._filled[key][1])


def share_weights_(model: nn.Module) -> None:
    """Gives parameters of equal shape equal values, those of the first."""
    first: dict[tuple[int, ...], torch.Tensor] = {}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(first.setdefault(tuple(parameter.shape), parameter))


def parameters_of(architectures: list[Architecture]) -> dict[str, int]:
    """Returns the numbers of parameters by label; those found once are kept beside the log."""
    path = LOG.with_name("zoo_parameters.json")
    sizes = json.loads(path.read_text()) if path.exists() else {}
    for one in architectures:
        if one.label not in sizes:
            sizes[one.label] = count_parameters(build_model(one, without_weights=True))
    path.write_text(json.dumps(sizes))
    return sizes


def disturb_(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(SEED)

    def noise(value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.02 * noise(parameter))
            elif not parameter.any():
                parameter.copy_(noise(parameter) / parameter[0].numel() ** 0.5)


def input_size_of(architecture: Architecture, model: nn.Module) -> tuple[int, int, int]:
    """Returns a small input where the architecture takes it, its own otherwise."""
    channels, height, width = default_preprocessing(architecture, model).input_size
    for side in (128, 224):
        if side < height:
            with contextlib.suppress(Exception):
                return run_without_values(model, (channels, side, side), take)
    return channels, height, width


def take(network: nn.Module, image: torch.Tensor) -> tuple[int, int, int]:
    """Returns the size of the image, if the network takes it."""
    network(image)
    return tuple(image.shape[1:])


def normalise_(model: nn.Module, size: tuple[int, int, int]) -> None:
    """Gives every batch norm the statistics of a random batch: with those of a new network signals explode or die."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    handles = [module.register_forward_pre_hook(keep_statistics) for module in norms]
    with torch.no_grad():
        model(torch.randn(4, *size, generator=torch.Generator().manual_seed(SEED + 1)))
    for handle in handles:
        handle.remove()


def keep_statistics(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    x = inputs[0].transpose(0, 1).flatten(1) if inputs[0].ndim > 2 else inputs[0].T
    if module.running_mean is not None and x.shape[1] > 1:
        module.running_mean.copy_(x.mean(1))
        module.running_var.copy_(x.var(1) + 1e-3 * x.var(1).mean())


def measure(architecture: Architecture) -> dict[str, Any]:
    """Returns the figures of an architecture; raises AssertionError with what does not hold."""
    torch.manual_seed(SEED)
    model = build_model(architecture)
    disturb_(model)
    if count_parameters(model) > SHARED_FROM:
        share_weights_(model)
    size = input_size_of(architecture, model)
    normalise_(model, size)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        expected = model(image)
    assert torch.isfinite(expected).all(), "the dense logits are not finite"
    # One for both plans: what is decomposed for the first is there for the second.
    decomposer = SharingDecomposer()
    own_rounding, errors = None, {}
    for scheme in SCHEMES:
        one = decomposer if scheme == "matrix" else SharingDecomposer(scheme)
        full, logits = at_full_rank(model, size, image, one)
        if scheme not in {layer.scheme for layer in full.layers}:
            continue  # it fits no layer
        check_is_complete(model, full)
        errors[scheme] = float((logits - expected).norm() / expected.norm())
        if errors[scheme] > TOLERANCE:
            own_rounding, errors[scheme] = compare_in_float64(model, size, image, expected, scheme, errors[scheme])
        assert errors[scheme] <= TOLERANCE, f"at full rank, {scheme}, the logits differ by {errors[scheme]:.1e}"
    try:
        plan = make_plan(model, Budget(fraction=SHARE), input_size=size, decomposer=decomposer)
    except OptionError:
        plan = make_plan(model, Smallest(), input_size=size, decomposer=decomposer)
    small = factorize(model, plan, decomposer=decomposer)
    before, after = count_parameters(model), count_parameters(small)
    assert after == before - plan.removed_parameters(), "the plan counts other parameters than the model has"
    dense_bytes = sum(len(piece) for piece in iterate_file(dict(model.state_dict()), {"format": "pt"}))
    file_bytes = check_file(architecture, model, small, plan, image)
    assert not plan.factorized() or file_bytes <= dense_bytes, f"the file grows: {file_bytes} > {dense_bytes} bytes"
    return {
        "parameters": before,
        "kept": after / before,
        "bytes": file_bytes / dense_bytes,
        "full_rank_error": max(errors.values(), default=0.0),
        "full_rank_schemes": sorted(errors),
        "float32_rounding": own_rounding,
        "largest_layer_error": max((layer.relative_error or 0.0 for layer in plan.factorized().values()), default=0.0),
        **counts(full, plan),
    }


def at_full_rank(
    model: nn.Module, size: tuple[int, int, int], image: torch.Tensor, decomposer: Decomposer
) -> tuple[CompressionPlan, torch.Tensor]:
    """Returns the plan of all layers at full rank, and the logits that come of it."""
    plan = make_plan(
        model, FullRank(), input_size=size, include_first=True, include_classifier=True, decomposer=decomposer
    )
    with torch.no_grad():
        return plan, factorize(model, plan, decomposer=decomposer)(image)


def compare_in_float64(
    model: nn.Module, size: tuple[int, int, int], image: torch.Tensor, expected: torch.Tensor, scheme: str, error: float
) -> tuple[float | None, float]:
    """Returns (error of the dense network in float32, error at full rank in float64), or the error that was given.

    The latter where the dense network's own rounding is too small to explain it.
    """
    precise = copy.deepcopy(model).double()
    with torch.no_grad():
        reference = precise(image.double())
        own = float((expected.double() - reference).norm() / reference.norm())
        if own < TOLERANCE / 50:
            return None, error
        _, logits = at_full_rank(precise, size, image.double(), SharingDecomposer(scheme))
    return own, float((logits - reference).norm() / reference.norm())


def measure_on_meta(architecture: Architecture) -> dict[str, Any]:
    """Returns the figures of an architecture whose values do not fit: the same but for errors and bytes."""
    model = build_model(architecture, without_weights=True)
    size = default_preprocessing(architecture, model).input_size
    exposed = expose_(twin(model))
    candidates = find_layers(model, size, include_first=True, include_classifier=True)
    assert all(one.reason or one.layer is not None for one in candidates)
    before, removed, schemes = count_parameters(model), 0, collections.Counter()
    for one in candidates:
        if one.reason or one.layer is None:
            continue
        scheme = find_scheme("matrix")
        m, n = one.layer.weight.shape[0], one.layer.weight[0].numel()
        ranks = (max(1, m * n // (2 * (m + n))),)
        low_rank = scheme.build(one.layer, ranks)
        weights = sum(factor.numel() for factor in low_rank.parameters() if factor.ndim > 1)
        assert weights == int(scheme.parameters(one.layer, torch.tensor([ranks]))[0])
        replace_module_(exposed, one.name, low_rank)
        removed += one.layer.weight.numel() - weights
        schemes["matrix"] += 1
    assert count_parameters(exposed) == before - removed
    shape = run_without_values(exposed, size, lambda network, image: tuple(network(image).shape))
    assert len(shape) == 2
    reasons = collections.Counter(plain_reason(one.reason) for one in candidates if one.reason)
    return {
        "parameters": before,
        "kept": count_parameters(exposed) / before,
        "schemes": dict(schemes),
        "layers": len(candidates),
        "reasons": dict(reasons),
        "on_meta": True,
    }


def check_is_complete(model: nn.Module, plan: CompressionPlan) -> None:
    planned = {layer.name for layer in plan.layers}
    for name, parameter in expose_(twin(model)).named_parameters():
        if parameter.ndim >= 2:
            layer = name.removesuffix(".weight").removesuffix(".gain")  # a gain belongs to the standardised weight
            assert name in planned or layer in planned, f"`{name}` is not in the plan"
    silent = [layer.name for layer in plan.layers if layer.scheme == "dense" and not layer.reason]
    assert not silent, f"`{silent[0]}` stays dense without a reason"


def check_file(
    architecture: Architecture, model: nn.Module, small: nn.Module, plan: CompressionPlan, image: torch.Tensor
) -> int:
    """Returns the size of the compressed file in bytes, after a look at what is loaded from it."""
    manifest = Manifest(
        architecture=architecture,
        preprocessing=default_preprocessing(architecture, model),
        num_classes=1000,
        class_names=(),
        dtype="float32",
        layers=describe_layers(model, small, plan),
        recipe={"plan": dict(plan.policy), "guaranteed_tol": None},
        source={"path": "zoo", "sha256": "0" * 64, "bytes": 0, "weight_bytes": 0, "match": "by name"},
        baseline=Cost(count_parameters(model), 0, 0),
        compressed=Cost(count_parameters(small), 0, 0),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )
    packed = pack_artifact(small.eval(), manifest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.safetensors"
        save_artifact(path, packed)
        loaded = load_artifact(path).model
        size = path.stat().st_size
    with torch.no_grad():
        assert torch.equal(loaded(image), small(image)), "the loaded network computes something else"
    return size


def counts(full: CompressionPlan, plan: CompressionPlan) -> dict[str, Any]:
    schemes = collections.Counter(layer.scheme for layer in plan.factorized().values())
    reasons = collections.Counter(plain_reason(layer.reason) for layer in full.layers if layer.scheme == "dense")
    return {"schemes": dict(schemes), "layers": len(full.layers), "reasons": dict(reasons)}


def plain_reason(reason: str) -> str:
    return reason.partition(" `")[0].partition(":")[0]


def run(words: list[str], jobs: int) -> None:
    LOG.parent.mkdir(exist_ok=True)
    done = {entry["name"]: entry for entry in read_log()}
    every = [
        Architecture(framework, name) for framework, names in known_architectures().items() for name in sorted(names)
    ]
    wanted = [one for one in every if any(word in one.name for word in words)] if words else every
    wanted = [one for one in wanted if words or not done.get(one.label, {}).get("passed")]
    sizes = parameters_of(wanted)
    wanted.sort(key=lambda one: sizes[one.label])
    started = {label for label, entry in done.items() if entry.get("started")}
    for one in wanted:
        if one.label in started:  # told once, and tried again the next time
            append(
                {
                    "name": one.label,
                    "commit": commit(),
                    "passed": False,
                    "reason": "the process was killed, for lack of memory perhaps",
                }
            )
    wanted = [one for one in wanted if one.label not in started]
    together = [one for one in wanted if jobs > 1 and jobs * sizes[one.label] <= LARGEST]
    if together:
        threads = max(1, torch.get_num_threads() // jobs)
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=prepare, initargs=(threads,)) as pool:
            for _ in pool.map(run_one, together, [sizes[one.label] for one in together]):
                pass
    for one in wanted[len(together) :]:
        run_one(one, sizes[one.label])
    collect()


def prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")


def run_one(architecture: Architecture, size: int) -> None:
    entry: dict[str, Any] = {"name": architecture.label, "commit": commit()}
    append(entry | {"started": True})
    started = time.perf_counter()
    try:
        entry |= (measure if size <= LARGEST else measure_on_meta)(architecture)
        entry["passed"] = True
    except Exception as error:
        entry |= {"passed": False, "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        traceback.print_exc()
    entry["seconds"] = round(time.perf_counter() - started, 1)
    append(entry)
    print(json.dumps(entry), flush=True)


def append(entry: dict[str, Any]) -> None:
    with LOG.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def read_log() -> list[dict[str, Any]]:
    """Returns the last entry of every architecture: the log's, else that of the committed results."""
    committed = read()["architectures"] if (FOLDER / "zoo.json").exists() else []
    lines = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []
    return list({entry["name"]: entry for entry in committed + lines}.values())


def collect() -> None:
    """Writes what the log holds to the committed results."""
    entries = sorted((one for one in read_log() if "passed" in one), key=lambda one: one["name"])
    known = sum(len(names) for names in known_architectures().values())
    write_results("zoo", "zoo", {"known": known, "share": SHARE, "seed": SEED, "architectures": entries})


def read() -> dict[str, Any]:
    return json.loads((FOLDER / "zoo.json").read_text())["zoo"]


def summary() -> dict[str, Any]:
    results = read()
    entries = results["architectures"]
    return {
        "passed": sum(one["passed"] for one in entries),
        "total": results["known"],
        "not_run": results["known"] - len(entries),
        "failed": {one["name"]: one["reason"] for one in entries if not one["passed"]},
    }


def page() -> str:
    """Returns docs/coverage.md."""
    results, figures = read(), summary()
    in_all_forms = sum("full_rank_schemes" in one for one in results["architectures"])
    commits = collections.Counter(one["commit"] for one in results["architectures"])
    where = results["circumstances"]
    versions = where["versions"]
    lines = [
        "# Coverage",
        "",
        f"Made by `python benchmarks/zoo.py`, then `--page`, from `benchmarks/results/zoo.json`: {figures['passed']:,} "
        f"of the {figures['total']:,}",
        f"classification architectures of timm {versions['timm']} and torchvision {versions['torchvision']} pass, "
        f"{len(figures['failed'])} fail, {figures['not_run']} have not been run yet.",
        "",
        "An architecture passes if factorising all its layers at full rank reproduces its logits to 1e-3 relative",
        f"(all in the matrix form; {in_all_forms:,} have been run since the other forms are checked in turn as well),",
        "every weight has a scheme or a reason to stay dense, and, compressed without data to half its parameters",
        "or as far as it can be, it is saved and loaded bit for bit in a file no larger than the dense one would be.",
        "Weights are random (seed 0), so nothing is said of accuracy; from 128 million parameters on, those of one",
        "shape are equal, so that each shape is decomposed once. Those marked *meta* would not fit into 16 GiB: they",
        "were run without values, with every layer in its matrix form at half rank; of them no plan was made, no",
        "other form tried and no file written. Where a random network amplifies rounding so much that in float32 the",
        "dense one itself differs from float64, the comparison was made in float64.",
        "",
        f"{where['date']}, {where['machine']}; at commit "
        + ", ".join(f"{name} {count}" for name, count in sorted(commits.items()))
        + " of them.",
        "",
    ]
    failed = [one for one in results["architectures"] if not one["passed"]]
    if failed:
        lines += ["## Failed", "", "| architecture | why |", "| --- | --- |"]
        lines += [f"| {one['name']} | {one['reason']} |" for one in failed] + [""]
    lines += [
        "## Passed",
        "",
        "“Layers” counts all weights with two or more dimensions; “dense” gives the reasons of those that no option",
        "factorises. Schemes are those of the compressed network, M for matrix, S for spatial, T for Tucker-2, Q for",
        "qkv split. “Error” is that of the logits at full rank.",
        "",
        "| architecture | layers | schemes | dense | parameters | kept | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [row(one) for one in results["architectures"] if one["passed"]]
    return "\n".join(lines) + "\n"


def row(entry: dict[str, Any]) -> str:
    letters = {"matrix": "M", "spatial": "S", "tucker2": "T", "split": "Q"}
    schemes = " ".join(f"{letters[name]}{count}" for name, count in sorted(entry["schemes"].items())) or "–"
    reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(entry["reasons"].items()))
    error = "*meta*" if entry.get("on_meta") else f"{entry['full_rank_error']:.0e}"
    if entry.get("float32_rounding"):
        error += f" in float64 (the dense network in float32: {entry['float32_rounding']:.0e})"
    kept = f"{100 * entry['kept']:.1f} %"
    return (
        f"| {entry['name']} | {entry['layers']} | {schemes} | {reasons or '–'} | {entry['parameters']:,} | {kept} | "
        f"{error} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time, as far as memory reaches")
    parser.add_argument("--collect", action="store_true", help="write what has been run so far to the results")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.summary:
        print(json.dumps(summary(), indent=1))
    elif arguments.collect:
        collect()
    elif arguments.page:
        PAGE.write_text(page())
    else:
        run(arguments.words, arguments.jobs)
