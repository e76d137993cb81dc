"""How far a run is, and what follows from it: the learning rate, when ranks are frozen, when it is over."""

import math
import time

import torch

from lrcompress.dlrt.distributed import total, world


class Schedule:
    """Counts in steps. Under a time limit the clock may be further on than the steps that were made.

    Args:
        steps: of the whole run.
        time_limit: in seconds; None for none.
        warm_up: first part of the run, in which the learning rate rises.
        frozen_fraction: last part of the run, in which ranks and bases stay as they are.
        device: where the processes' clocks are averaged.
    """

    def __init__(
        self, steps: int, *, time_limit: float | None, warm_up: float, frozen_fraction: float, device: torch.device
    ) -> None:
        self.steps, self.time_limit, self.device = steps, time_limit, device
        self.warm_up = max(1, round(warm_up * steps))
        self.frozen_from = steps - max(1, round(frozen_fraction * steps))
        self.elapsed, self.started = 0.0, time.monotonic()

    def start_(self, elapsed: float = 0.0) -> None:
        """Starts the clock, at the seconds that an interrupted run had used."""
        self.elapsed, self.started = elapsed, time.monotonic()

    def seconds(self) -> float:
        """Returns how long the run has taken."""
        return self.elapsed + time.monotonic() - self.started

    def position(self, step: int) -> float:
        """Returns how far the run is, the same on all processes."""
        if self.time_limit is None:
            return step
        used = total(self.seconds(), self.device) / world()[1] / self.time_limit
        return max(step, self.steps * min(1.0, used))

    def lr_factor(self, position: float) -> float:
        """Returns the part of the peak learning rate: it rises evenly, then falls as a cosine."""
        if position < self.warm_up:
            return min(1.0, (position + 1) / self.warm_up)  # with a time limit positions are no whole numbers
        return 0.5 * (1 + math.cos(math.pi * (position - self.warm_up) / max(1, self.steps - self.warm_up)))
