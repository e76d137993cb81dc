import pytest
import torch
from torch import nn

from lrcompress.measure import measure_latency


class Counting(nn.Module):
    """Counts its calls and remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls, self.shapes, self.gradients = 0, set(), set()

    def forward(self, images):
        self.calls += 1
        self.shapes.add(tuple(images.shape))
        result = images * self.weight
        self.gradients.add(result.requires_grad)
        return result


@pytest.mark.parametrize("batch_size", [1, 3])
def test_both_models_are_timed_equally_often_on_the_same_input(batch_size):
    baseline, compressed = Counting(), Counting()
    result = measure_latency(baseline, compressed, (2, 4, 4), batch_size=batch_size, seconds=0.0)
    assert result.rounds == 5  # never fewer
    assert baseline.calls == compressed.calls == 1 + 5  # after one call to warm up
    assert baseline.shapes == compressed.shapes == {(batch_size, 2, 4, 4)}
    assert baseline.gradients == compressed.gradients == {False}
    assert result.batch_size == batch_size


def test_the_result_holds_medians_of_one_clock(monkeypatch):
    # The clock gives the warm-up two times, then the start, then (baseline, compressed) per round and the time spent.
    durations = [9, 9, *[2, 1, 2, 1, 4, 1, 2, 3, 2, 1]]
    ticks, now = [], 0.0
    for index, duration in enumerate(durations):
        ticks += [now, now + duration]
        now += duration
        if index == 1:
            ticks.append(now)  # the start
    ticks.append(now + 100)  # after the fifth round: the time is up
    clock = iter(ticks)
    monkeypatch.setattr("lrcompress.measure.latency.time.perf_counter", lambda: next(clock))
    result = measure_latency(Counting(), Counting(), (1, 2, 2), seconds=1.0)
    assert result.rounds == 5
    assert result.baseline_ms == 2000.0
    assert result.compressed_ms == 1000.0
    assert result.ratio == 0.5


def test_the_device_and_its_threads_are_told():
    result = measure_latency(Counting(), Counting(), (1, 2, 2), seconds=0.0)
    assert result.device == "cpu, 1 thread"
    assert result.baseline_ms > 0
    assert result.compressed_ms > 0
    assert result.ratio > 0
