import pytest
import torch
from networks import TensorImages, pattern_images
from workshop import load_options, training

from lrcompress.checkpoint import load_checkpoint
from lrcompress.data import ImageSet
from lrcompress.errors import DataError, OptionError
from lrcompress.pipeline import Observer
from lrcompress.pipeline.plausibility import check_plausible


def images_of(loaded, count, *, right=1.0):
    """Returns images whose labels are the network's own answers, or the class after, which is wrong."""
    pixels = torch.rand(count, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = loaded.model((pixels - 0.5) / 0.25).argmax(1)
    wrong = torch.arange(count) % 100 >= 100 * right
    return ImageSet(TensorImages(pixels, (labels + wrong) % 3), (), "images")


def said(loaded, images, **settings):
    told = []
    check_plausible(loaded, images, training(**settings), device="cpu", observer=Observer(on_stage=told.append))
    return told


@pytest.fixture
def loaded(shop):
    return load_checkpoint("w.pt", load_options(shop))


def test_a_network_that_knows_the_images_is_not_doubted(loaded):
    assert said(loaded, images_of(loaded, 2000)) == [
        "the uncompressed network gets 100.00 % of 200 held-out training images right"
    ]


@pytest.mark.parametrize("right", [0.0, 0.33])
def test_a_network_that_guesses_is_told_with_what_may_be_wrong(loaded, right):
    (told,) = said(loaded, images_of(loaded, 2000, right=right))
    assert told.startswith("WARNING: the uncompressed network gets ")
    assert "as guessing among 3 classes" in told
    for word in ("--mean", "--std", "labels"):
        assert word in told


def test_few_images_are_told_and_so_is_a_share_that_leaves_few(loaded):
    few, _ = said(loaded, images_of(loaded, 50))
    assert few.startswith("WARNING: 50 training images are few to fine-tune on, and the best state is chosen on 5 of")
    left, _ = said(loaded, images_of(loaded, 2000), held_out=0.9)
    assert left == "WARNING: --held-out 0.9 leaves 200 of 2,000 training images to train on"


@pytest.mark.parametrize(("capability", "slow"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_a_processor_without_bfloat16_is_told_of_where_it_was_asked_for(loaded, monkeypatch, capability, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    told = said(loaded, images_of(loaded, 2000), precision="bfloat16")
    assert any("--precision float32" in line for line in told) == slow
    assert not any("--precision" in line for line in said(loaded, images_of(loaded, 2000)))


def test_what_cannot_be_trained_on_is_refused(loaded):
    with pytest.raises(OptionError, match=r"--held-out 0\.9999 leaves 0 of 2,000"):
        said(loaded, images_of(loaded, 2000), held_out=0.9999)
    with pytest.raises(DataError, match="too few"):
        said(loaded, images_of(loaded, 2))
    labels = pattern_images(2000).dataset.labels
    with pytest.raises(DataError, match="label 3, the model 3 classes"):
        said(loaded, ImageSet(TensorImages(torch.rand(2000, 1, 6, 5), labels), (), "four classes"))
