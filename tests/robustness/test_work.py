"""Blocks: what is finished is not done again, processes share them, time ends them; radii; what is kept to look at."""

import base64
import io
import json

import pytest
import torch
from networks import TensorImages, pattern_images, tiny_mlp
from PIL import Image
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import EvaluationError, OptionError
from lrcompress.robustness import (
    AttackSettings,
    BlockOutcome,
    EvaluatedModel,
    Work,
    evaluate_models,
    of_these_images,
)

SETTINGS = AttackSettings(("noise", "pgd"), eps=(0.02, 0.05), steps=3, batch_size=8)  # blocks of 32
COUNT = 100


def networks():
    model, other = tiny_mlp(seed=0), tiny_mlp(seed=0)
    with torch.no_grad():
        other[-1].bias.add_(0.05)
    return [EvaluatedModel("baseline", model, "0"), EvaluatedModel("compressed", other, "1")]


def own_labels(model, count=COUNT):
    pixels = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return ImageSet(TensorImages(pixels, model(pixels).argmax(1)), (), "noise")


def figures(evaluation):
    """Returns all that an evaluation says but for times."""
    values = json.loads(json.dumps(evaluation.to_json()))
    for model in [values, *values["models"].values()]:
        del model["seconds"]
    return values


@pytest.fixture(scope="module")
def whole():
    models = networks()
    blocks = []
    images = own_labels(models[0].model)
    evaluation = evaluate_models(models, images, SETTINGS, work=Work(on_block=blocks.append))
    return models, images, blocks, figures(evaluation)


def test_blocks_come_one_after_the_other_and_are_json(whole):
    _, _, blocks, _ = whole
    assert [block.number for block in blocks] == [0, 1, 2, 3]
    assert [len(block.labels) for block in blocks] == [32, 32, 32, 4]
    for block in blocks:
        assert BlockOutcome.from_json(json.loads(json.dumps(block.to_json()))) == block


def test_what_is_finished_is_not_done_again_and_the_result_is_the_same(whole):
    models, images, blocks, expected = whole
    done = []
    work = Work(finished=[blocks[2], blocks[0]], on_block=done.append)
    assert figures(evaluate_models(models, images, SETTINGS, work=work)) == expected
    assert [block.number for block in done] == [1, 3]
    shown = []
    models[0].model.register_forward_hook(lambda module, inputs, output: shown.append(len(inputs[0])))
    assert figures(evaluate_models(models, images, SETTINGS, work=Work(finished=blocks))) == expected
    assert sum(shown) < 40  # the checks alone


def test_processes_share_blocks_and_all_of_them_have_the_result_of_one(whole):
    models, images, blocks, expected = whole
    parts = []
    for process in range(2):
        work = Work(process=process, processes=2, on_block=parts.append, gather=lambda own: own)
        evaluate_models(models, images, SETTINGS, work=work)
    assert sorted(block.number for block in parts) == [0, 1, 2, 3]
    work = Work(process=1, processes=2, gather=lambda own: [*own, *(one for one in blocks if one.number % 2 == 0)])
    assert figures(evaluate_models(models, images, SETTINGS, work=work)) == expected


def test_when_time_is_up_the_same_images_of_both_models_count_and_the_report_says_so(whole):
    models, images, _, expected = whole
    values = figures(evaluate_models(models, images, SETTINGS, work=Work(time_limit=0)))
    assert (values["complete"], values["images"], values["images_asked"]) == (False, 32, COUNT)
    for role in ("baseline", "compressed"):
        bits = values["models"][role]["attacks"]["worst"][0]["bits"]
        assert bits == expected["models"][role]["attacks"]["worst"][0]["bits"][:32]
    assert expected["complete"] is True
    assert "images_asked" not in expected


def test_blocks_of_other_images_or_labels_do_not_count(whole):
    _, images, blocks, _ = whole
    assert of_these_images(blocks, images, SETTINGS) == blocks
    pixels, labels = images.dataset.pixels.clone(), images.dataset.labels.clone()
    pixels[40, 0, 0, 0] = 1 - pixels[40, 0, 0, 0]
    labels[99] = 1 - labels[99].clamp_max(1)
    others = ImageSet(TensorImages(pixels, labels), (), "noise")
    assert [one.number for one in of_these_images(blocks, others, SETTINGS)] == [0, 2]
    fewer = ImageSet(TensorImages(pixels[:32], labels[:32]), (), "noise")
    assert [one.number for one in of_these_images(blocks, fewer, SETTINGS)] == [0]


@pytest.mark.parametrize(("norm", "eps"), [("l2", 7.0), ("l1", 48.0)])  # of 48 values between 0 and 1
def test_a_radius_that_reaches_from_black_to_white_is_refused(norm, eps):
    models = networks()
    images = own_labels(models[0].model, 16)
    with pytest.raises(OptionError, match="between black and white images of this size"):
        evaluate_models(models, images, AttackSettings(("noise",), norm=norm, eps=(0.1, eps)))
    evaluate_models(models, images, AttackSettings(("noise",), norm=norm, eps=(0.1, eps - 0.1)))


def test_what_one_model_is_misled_by_is_shown_to_the_other(whole):
    *_, expected = whole
    transfer = expected["transfer"]
    assert transfer["images"] == COUNT
    assert transfer["attack"] == "pgd"
    shares = transfer["accuracy"]
    assert set(shares) == {
        f"{one}→{other}" for one in ("baseline", "compressed") for other in ("baseline", "compressed")
    }
    place = [row["eps"] for row in expected["models"]["baseline"]["attacks"]["pgd"]].index(transfer["eps"])
    for role in ("baseline", "compressed"):
        bits = expected["models"][role]["attacks"]["pgd"][place]["bits"]
        assert shares[f"{role}→{role}"] == bits.count("1") / COUNT


def test_what_one_model_does_not_know_is_not_counted_as_transferred(whole):
    models, images, _, _ = whole
    labels = images.dataset.labels.clone()
    labels[:20] = (labels[:20] + 1) % 4
    evaluation = evaluate_models(models, ImageSet(TensorImages(images.dataset.pixels, labels), (), "noise"), SETTINGS)
    assert evaluation.transfer.images == sum(
        first and second for first, second in zip(*(model.clean for model in evaluation.models), strict=True)
    )
    assert 75 <= evaluation.transfer.images <= 80
    place = SETTINGS.eps.index(evaluation.transfer.eps)
    for model in evaluation.models:
        stands = [bit for image, bit in enumerate(model.outcome("pgd").robust[place]) if image >= 20]
        shares = evaluation.transfer.accuracy
        assert shares[f"{model.role}→{model.role}"] == sum(stands) / evaluation.transfer.images


def test_examples_are_pictures_of_images_that_the_compressed_model_loses(whole):
    _, images, _, expected = whole
    assert len(expected["examples"]) == 3
    for one in expected["examples"]:
        assert one["label"] == int(images.dataset.labels[one["index"]])
        assert one["compressed"]["predicted"] != one["label"]
        assert "predicted" in one["baseline"]
        row = next(
            r for r in expected["models"]["compressed"]["attacks"]["pgd"] if r["eps"] == one["compressed"]["eps"]
        )
        assert row["bits"][one["index"]] == "0"
        original, adversarial = (
            torch.frombuffer(
                bytearray(Image.open(io.BytesIO(base64.b64decode(one["images"][name]))).tobytes()), dtype=torch.uint8
            ).float()
            for name in ("original", "adversarial")
        )
        shown = (255 * images.dataset.pixels[one["index"]]).round().permute(1, 2, 0).flatten()
        assert torch.equal(original, shown)
        assert 0 < (adversarial - original).abs().max() <= 255 * one["compressed"]["eps"] + 1


def test_gradients_are_those_of_the_loss_and_margins_those_of_a_linear_network():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)))

        def forward(self, images):
            return (images.flatten(1) - 0.5) @ self.weight.T

    model = Linear()
    pixels = torch.rand(9, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(pixels).argmax(1)
    images = ImageSet(TensorImages(pixels, labels), (), "noise")
    settings = AttackSettings(("pgd",), norm="l2", eps=(0.1,), steps=2)
    found = evaluate_models([EvaluatedModel("compressed", model, "0")], images, settings).models[0].steepness
    logits = model(pixels).detach()
    second = logits.topk(2, dim=1).indices[:, 1]
    lead = logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, second[:, None])[:, 0]
    distances = lead / (model.weight[labels] - model.weight[second]).detach().norm(dim=1)
    assert found.median_margin == pytest.approx(float(distances.median()), rel=1e-5)
    slope = (logits.softmax(1) - nn.functional.one_hot(labels, 3)) @ model.weight.detach()
    assert found.median_norm == pytest.approx(float(slope.norm(dim=1).median()), rel=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, (1, 2, 4, 8)), (40.0, (1 / 8, 2 / 8, 4 / 8, 8 / 8))])
def test_radii_are_chosen_such_that_something_happens_between_them(scale, expected):
    class Steep(nn.Module):
        """Loses an image at 5/255 divided by the scale."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, images):
            lead = 5 / 255 + self.scale * (images[:, 0, 0, 0] - images[:, 0, 0, 1])
            return torch.stack([lead, -lead], 1)

    pixels = torch.full((60, 1, 1, 2), 0.5)
    pixels[:, 0, 0, 0] += torch.linspace(0, 10 / 255, 60) / scale
    images = ImageSet(TensorImages(pixels, torch.zeros(60, dtype=torch.long)), (), "grey")
    settings = AttackSettings(("pgd",), steps=3)
    evaluation = evaluate_models([EvaluatedModel("compressed", Steep(), "0")], images, settings)
    found = evaluation.models[0].outcome("pgd")
    assert found.eps == pytest.approx([one / 255 for one in expected])
    assert evaluation.settings["eps_by_trial"] is True
    assert any(0 < sum(row) < 60 for row in found.robust)
    given = evaluate_models([EvaluatedModel("compressed", Steep(), "0")], images, AttackSettings(("pgd",), eps=(0.5,)))
    assert given.settings["eps"] == [0.5]
    assert given.settings["eps_by_trial"] is False


def test_models_with_different_classes_are_not_compared():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    models = [EvaluatedModel("baseline", wide, "0"), EvaluatedModel("compressed", tiny_mlp(), "1")]
    with pytest.raises(EvaluationError, match="baseline model has 7 classes and the compressed model has 4") as refused:
        evaluate_models(models, pattern_images(12), AttackSettings())
    assert refused.value.hint


def test_an_attack_that_needs_more_classes_is_refused_before_the_work():
    two = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    images = ImageSet(TensorImages(torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long)), (), "noise")
    with pytest.raises(OptionError, match="apgd-t needs 4 classes, the models have 2"):
        evaluate_models([EvaluatedModel("compressed", two, "0")], images, AttackSettings(("apgd-t",)))


def test_the_hash_of_the_images_is_that_of_pixels_and_labels_and_not_of_how_they_were_taken():
    models = networks()[:1]
    pixels = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(20) % 3

    def sha256(pixels, labels, **settings):
        images = ImageSet(TensorImages(pixels, labels), (), "noise")
        evaluation = evaluate_models(models, images, AttackSettings(("noise",), eps=(0.1,), **settings))
        return evaluation.to_json()["images_sha256"]

    expected = sha256(pixels, labels, batch_size=8)
    assert sha256(pixels, labels, batch_size=3) == sha256(pixels, labels, seed=5) == expected
    brighter, relabelled = pixels.clone(), labels.clone()
    brighter[-1, 0, 0, 0] = 1 - brighter[-1, 0, 0, 0].round()
    relabelled[-1] = 0
    others = {sha256(brighter, labels), sha256(pixels, relabelled), sha256(pixels.flip(0), labels.flip(0))}
    assert len(others | {expected}) == 4
