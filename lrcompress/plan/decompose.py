"""Decomposes the layers of a network, several at once, and keeps what fits into memory until they are factorised."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lrcompress.linalg import Spectrum, thin_spectrum
from lrcompress.memory import release_pages, trim_heap
from lrcompress.nn import LowRankLayer, PlainLayer
from lrcompress.plan.choices import Choices, list_choices
from lrcompress.plan.layers import Candidate
from lrcompress.schemes import Decomposition, Metric, Scheme, find_scheme, schemes_for

# Bases that are kept between planning and factorising; what does not fit is decomposed a second time.
KEPT_BYTES = 96 * 2**20
# A spectrum that nobody has computed yet is not worth more than some seconds per layer.
LONGEST_SIDE = 4096


class _Kept(NamedTuple):
    """A decomposition, the ranks it still serves, and its size in bytes."""

    decomposition: Decomposition
    largest: tuple[int, ...]
    size: int


@dataclass
class Decomposer:
    """Decompositions of one network's layers, by layer and scheme.

    Attributes:
        metrics: the metric of the truncation by layer; layers without one are truncated by their weights alone.
        wanted: "auto" for all schemes that fit a layer, or the name of one.
        by_layer: names of schemes for single layers.
        round_ranks: ranks are multiples of this, or full.
        on_progress: called with (layers done, layers in all) as they are decomposed.
        kept_bytes: of decompositions that are kept for later.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    wanted: str = "auto"
    by_layer: Mapping[str, str] = field(default_factory=dict)
    round_ranks: int = 1
    on_progress: Callable[[int, int], None] = lambda done, total: None
    kept_bytes: int = KEPT_BYTES
    _seen: dict[str, Tensor] = field(default_factory=dict)
    _kept: dict[tuple[str, str], _Kept] = field(default_factory=dict)
    _choices: dict[tuple[str, int | None, str | None], Choices] = field(default_factory=dict)
    _spectra: dict[tuple[str, str], Spectrum] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choices(
        self, candidates: Sequence[Candidate], *, wanted_rank: int | None = None, scheme: str | None = None
    ) -> dict[str, Choices]:
        """Returns the options of every layer; what was found before is not computed again.

        Args:
            candidates: layers that may be factorised.
            wanted_rank: see `list_choices`.
            scheme: of all layers, instead of those that were asked for.

        Raises:
            ValueError: if a layer of this name has been seen with other weights.
        """
        for candidate in candidates:
            if candidate.layer is not None:
                self._recognise(candidate.name, candidate.layer)
        missing = [one for one in candidates if (one.name, wanted_rank, scheme) not in self._choices]
        # The largest first, so that the cores finish together.
        missing.sort(key=lambda one: -one.layer.weight.numel() if one.layer is not None else 0)
        with _one_thread_each(len(missing)) as pool:
            found = pool.map(lambda one: self._decompose(one, wanted_rank, scheme), missing)
            for done, (candidate, choices) in enumerate(zip(missing, found, strict=True), start=1):
                self._choices[candidate.name, wanted_rank, scheme] = choices
                self.on_progress(done, len(missing))
        trim_heap()
        return {one.name: self._choices[one.name, wanted_rank, scheme] for one in candidates}

    def low_rank_layer(self, name: str, layer: PlainLayer, scheme: str, ranks: tuple[int, ...]) -> LowRankLayer:
        """Returns the layer in a scheme's form at some ranks; its bias is not set.

        Args:
            name: of the layer.
            layer: the dense layer.
            scheme: the scheme's name.
            ranks: as the scheme takes them.

        Raises:
            ValueError: if a layer of this name has been seen with other weights.
        """
        self._recognise(name, layer)
        found = find_scheme(scheme)
        decomposition = self._find(name, found, ranks) or self.decompose(name, layer, found)
        low_rank = found.build(layer, ranks)
        decomposition.fill_(low_rank, ranks)
        return low_rank

    def decompose(self, name: str, layer: PlainLayer, scheme: Scheme) -> Decomposition:
        """Returns the decomposition of a layer in its metric, computed anew."""
        decomposition = scheme.decompose(layer, self.metrics.get(name))
        sigma = decomposition.dense_spectrum()
        if sigma is not None:
            self._spectra[name, scheme.name] = thin_spectrum(sigma)
        return decomposition

    def dense_spectrum(self, name: str, layer: PlainLayer, scheme: str) -> Spectrum | None:
        """Returns some singular values of what a scheme truncates of a dense layer, see `thin_spectrum`.

        Those that were found when the layer was decomposed; of a layer that was not, or in the metric of images, they
        are computed, unless the shorter side of its matrix is longer than 4096: None then.
        """
        found = find_scheme(scheme)
        if (name, scheme) not in self._spectra:
            if max(min(matrix.shape) for matrix in found.truncated_matrices(layer)) > LONGEST_SIDE:
                return None
            self._spectra[name, scheme] = thin_spectrum(found.dense_spectrum(layer))
        return self._spectra[name, scheme]

    def _recognise(self, name: str, layer: PlainLayer) -> None:
        """Raises `ValueError` if a layer is that of another network: what is known of its namesake does not fit it."""
        some = layer.weight[:: max(1, len(layer.weight) // 8)].detach().double().cpu()  # enough to tell networks apart
        seen = self._seen.setdefault(name, some)
        if not torch.equal(seen, some):
            raise ValueError(f"the decomposer has seen `{name}` with other weights; every network needs its own")

    def _decompose(self, candidate: Candidate, wanted_rank: int | None, wanted_scheme: str | None) -> Choices:
        name, layer = candidate.name, candidate.layer
        assert layer is not None  # a candidate that may be factorised has one
        schemes = schemes_for(layer, name, wanted_scheme or self.by_layer.get(name, self.wanted))
        schemes = [one for one in schemes if self._can_measure(name, one)] or [find_scheme("matrix")]
        if wanted_rank is not None:
            schemes = schemes[:1]  # one rank for all compares ranks, not schemes
        decompositions = {one: self._whole(name, layer, one) for one in schemes}
        choices = list_choices(
            layer,
            candidate.calls,
            decompositions,
            replaced_parameters=candidate.parameters,
            wanted_rank=wanted_rank,
            round_ranks=self.round_ranks,
        )
        for number, (scheme, decomposition) in enumerate(decompositions.items()):
            possible = choices.useful & (choices.schemes == number)
            if choices.wanted is not None:
                possible[choices.wanted] = True  # full rank, say
            if bool(possible.any()):
                self._keep(name, scheme, decomposition, choices.ranks[possible].max(0).values.tolist())
        release_pages(layer.weight)
        return choices

    def _whole(self, name: str, layer: PlainLayer, scheme: Scheme) -> Decomposition:
        """Returns a decomposition for all ranks, the one that is kept if it is whole."""
        kept = self._find(name, scheme, scheme.largest_ranks(layer))
        return kept or self.decompose(name, layer, scheme)

    def _find(self, name: str, scheme: Scheme, ranks: Sequence[int]) -> Decomposition | None:
        """Returns the decomposition that is kept of a layer, if it serves some ranks."""
        with self._lock:
            kept = self._kept.get((name, scheme.name))
        serves = kept is not None and all(rank <= most for rank, most in zip(ranks, kept.largest, strict=True))
        return kept.decomposition if kept is not None and serves else None

    def _keep(self, name: str, scheme: Scheme, decomposition: Decomposition, largest: Sequence[int]) -> None:
        ranks = [rank for rank in largest if rank > 0]
        needed = decomposition.keep_(ranks)
        with self._lock:
            others = sum(kept.size for key, kept in self._kept.items() if key != (name, scheme.name))
            if others + needed <= self.kept_bytes:
                self._kept[name, scheme.name] = _Kept(decomposition, tuple(ranks), needed)

    def _can_measure(self, name: str, scheme: Scheme) -> bool:
        metric = self.metrics.get(name)
        return metric is None or not scheme.needs_input_gram or metric.input_gram is not None


@contextmanager
def _one_thread_each(tasks: int) -> Iterator[ThreadPoolExecutor]:
    """Yields a pool of as many workers as torch has threads, each of which computes with one: LAPACK scales badly."""
    threads = torch.get_num_threads()
    workers = max(1, min(threads, tasks, os.cpu_count() or 1))
    torch.set_num_threads(max(1, threads // workers))
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
