"""How whoever called follows the work."""

from collections.abc import Callable
from dataclasses import dataclass

from lrcompress.dlrt import TrainingProgress


@dataclass(frozen=True)
class Observer:
    """Callbacks through which whoever called follows the work; each does nothing by default."""

    on_stage: Callable[[str], None] = lambda message: None
    on_layer: Callable[[int, int], None] = lambda done, total: None
    on_training: Callable[[TrainingProgress], None] = lambda progress: None
    on_attack: Callable[[str, int, int], None] = lambda what, done, total: None
