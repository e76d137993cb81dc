"""Fine-tuning that saves its state after every step and gets a signal after one of them; as a script, `lrcompress`."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lrcompress.pipeline import fine_tuning

PLACE = "lrcompress.pipeline.fine_tuning.fine_tune_"


def interrupted(step: int, number: int, *, rank: int = 0) -> Callable[..., Any]:
    """Returns what can take the place of `fine_tune_`: it sends this process a signal after a step, before saving."""
    original = fine_tuning.fine_tune_

    def fine_tune_(model: Any, images: Any, options: Any, *, on_progress: Callable[[Any], None], **others: Any) -> Any:
        def signalled(progress: Any) -> None:
            on_progress(progress)
            if progress.step == step and not progress.epoch_ended and os.environ.get("RANK", "0") == str(rank):
                os.kill(os.getpid(), number)

        return original(model, images, replace(options, save_seconds=0.0), on_progress=signalled, **others)

    return fine_tune_


if __name__ == "__main__":
    from lrcompress.cli.app import main

    step, number, rank = map(int, sys.argv[1:4])
    sys.argv[1:] = sys.argv[4:]
    fine_tuning.fine_tune_ = interrupted(step, number, rank=rank)
    main()
