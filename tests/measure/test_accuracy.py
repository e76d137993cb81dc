import pytest
import torch
from networks import TensorImages, pattern_images, tiny_cnn
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import EvaluationError
from lrcompress.measure import measure_accuracy, predict_correct


class FirstPixels(nn.Module):
    """Gives the first pixels of each image as logits, times a weight of one."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.flatten(1)[:, :3] * self.one


def images_with_top(tops, labels):
    pixels = torch.nn.functional.one_hot(torch.tensor(tops), 4).float().reshape(-1, 1, 2, 2)
    return ImageSet(TensorImages(pixels, torch.tensor(labels)), (), "tops")


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_an_image_is_correct_where_the_top_class_is_its_label(batch_size):
    images = images_with_top([0, 1, 2, 2, 1], [0, 2, 2, 1, 1])
    bits = predict_correct(FirstPixels(), images, batch_size=batch_size)
    assert bits.tolist() == [True, False, True, False, True]
    assert measure_accuracy(FirstPixels(), images, batch_size=batch_size) == pytest.approx(0.6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    model = FirstPixels()
    with torch.no_grad():
        model.one.fill_(value)
    with pytest.raises(EvaluationError, match="not finite") as refused:
        measure_accuracy(model, images_with_top([0], [0]))
    assert refused.value.hint


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_eval_mode_and_gets_its_mode_back(training):
    model = tiny_cnn().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_accuracy(model, pattern_images(20, size=8))
    assert model.training is training
    # In training mode batch norm would have moved its statistics.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_batch_size_does_not_matter():
    model, images = tiny_cnn(), pattern_images(30, size=8)
    assert torch.equal(predict_correct(model, images, batch_size=7), predict_correct(model, images, batch_size=30))
