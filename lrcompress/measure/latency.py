"""Latency of two models, timed in turn so that a drifting machine cannot favour one of them."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LatencyRatio:
    """Time per batch of two models on one machine.

    Attributes:
        baseline_ms: median milliseconds per batch of the baseline.
        compressed_ms: median milliseconds per batch of the compressed model.
        ratio: median over the rounds of compressed divided by baseline; below 1 the compressed model is faster.
        ratio_quartiles: first and third quartile of the same ratios.
        batch_size: images per batch.
        rounds: how often both were timed, one after the other.
        device: where, and with how many threads.
    """

    baseline_ms: float
    compressed_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    batch_size: int
    rounds: int
    device: str


def measure_latency(
    baseline: nn.Module,
    compressed: nn.Module,
    input_size: tuple[int, int, int],
    *,
    batch_size: int = 1,
    seconds: float = 3.0,
) -> LatencyRatio:
    """Returns the latencies of both models, measured in turn for about `seconds` after a warm-up.

    Args:
        baseline: the uncompressed model.
        compressed: the compressed model, on the same device.
        input_size: (channels, height, width).
        batch_size: images per batch.
        seconds: time to spend, at least five rounds.
    """
    device = next(compressed.parameters()).device
    images = torch.zeros(batch_size, *input_size, device=device)
    rounds: list[tuple[float, float]] = []
    with torch.inference_mode():
        for model in (baseline, compressed):
            _time(model, images)
        start = time.perf_counter()
        while len(rounds) < 5 or time.perf_counter() - start < seconds:
            rounds.append((_time(baseline, images), _time(compressed, images)))
    threads = torch.get_num_threads()
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)
    ratios = [c / b for b, c in rounds]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return LatencyRatio(
        baseline_ms=1e3 * statistics.median(b for b, _ in rounds),
        compressed_ms=1e3 * statistics.median(c for _, c in rounds),
        ratio=statistics.median(ratios),
        ratio_quartiles=(low, high),
        batch_size=batch_size,
        rounds=len(rounds),
        device=where,
    )


def _time(model: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
