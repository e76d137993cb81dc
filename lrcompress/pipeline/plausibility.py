"""Whether a fine-tuning makes sense, asked before the work begins."""

import torch

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet, random_subset
from lrcompress.dlrt import TrainingOptions, divide_images, doubt_amounts, has_bfloat16, is_guessing
from lrcompress.measure import measure_accuracy
from lrcompress.models import PixelModel
from lrcompress.pipeline.observer import Observer

IMAGES = 500  # held-out images that the uncompressed network is tried on


def check_plausible(
    loaded: LoadedModel, images: ImageSet, training: TrainingOptions, *, device: str, observer: Observer
) -> None:
    """Warns of too few images, of slow arithmetic, and of an uncompressed network that does not know the images.

    Raises:
        DataError: if there are too few images, or labels that the network does not have.
        OptionError: if too many of them are held out.
        EvaluationError: if the network's answers are not finite.
    """
    rest, held_out = divide_images(images, training)
    if doubt := doubt_amounts(rest, held_out, training):
        observer.on_stage(f"WARNING: {doubt}")
    if training.precision == "bfloat16" and not has_bfloat16(torch.device(device)):
        observer.on_stage(
            "WARNING: this processor has no bfloat16 arithmetic and emulates it, many times slower: --precision float32"
        )
    tried = random_subset(held_out, IMAGES, seed=training.seed)
    accuracy = measure_accuracy(PixelModel(loaded.model, loaded.preprocessing).to(device), tried)
    loaded.model.to("cpu")
    right = f"{100 * accuracy:.2f} % of {len(tried):,} held-out training images right"
    if is_guessing(accuracy, images=len(tried), classes=loaded.num_classes):
        observer.on_stage(
            f"WARNING: the uncompressed network gets {right}, about as many as guessing among {loaded.num_classes:,} "
            "classes: check the preprocessing (--mean, --std, --input-size), and that the labels have the order of the "
            "network's classes"
        )
    else:
        observer.on_stage(f"the uncompressed network gets {right}")
