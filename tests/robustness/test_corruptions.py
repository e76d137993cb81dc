import pytest
import torch
from networks import TensorImages, tiny_mlp
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.robustness import AttackSettings, EvaluatedModel, evaluate_models
from lrcompress.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corruptions_for

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "motion_blur",
    "fog",
    "snow",
    "elastic_transform",
}


def photographs(side=48, channels=3, count=4):
    """Smooth images with edges, in the middle of the range."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, [side, side], mode="bilinear")
    smooth[:, :, side // 3 : side // 2, side // 4 :] += 0.3
    return (0.15 + 0.5 * smooth).clamp(0, 1)


def unlike(corrupted, images):
    """Returns what is missing to a correlation of one: fog, which is rescaled, moves all pixels by about as much."""
    return 1 - float(torch.corrcoef(torch.stack([corrupted.flatten(), images.flatten()]))[0, 1])


SEEDS = torch.arange(4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_images_and_each_severity_does_more_than_the_first(name, channels):
    if name not in corruptions_for(channels):
        pytest.skip("colours only")
    images = photographs(channels=channels)
    distances = []
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity, SEEDS)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.float32
        assert 0 <= float(corrupted.min()) <= float(corrupted.max()) <= 1
        distances.append(
            float((corrupted - images).square().mean().sqrt()) if name != "fog" else unlike(corrupted, images)
        )
    assert distances[0] > 1e-3
    if name != "saturate":  # which takes colour away first, and adds it later
        assert distances[-1] > 1.1 * distances[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_becomes_of_an_image_depends_on_it_and_its_seed_only(name):
    images = photographs()
    whole = corrupt(images, name, 3, SEEDS)
    alone = corrupt(images[2:3], name, 3, SEEDS[2:3])
    torch.testing.assert_close(alone, whole[2:3], rtol=0, atol=1e-6)
    other = corrupt(images, name, 3, SEEDS + 10)
    assert torch.equal(whole, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [8, 224])
def test_small_and_large_images_are_taken(name, side):
    images = photographs(side=side, count=1)
    assert torch.isfinite(corrupt(images, name, 5, SEEDS[:1])).all()


def test_shot_noise_has_the_mean_and_the_variance_of_photons():
    images = torch.full((1, 1, 200, 200), 0.5)
    for severity, photons in ((1, 60), (3, 12), (5, 3)):
        noisy = corrupt(images * 0.8, "shot_noise", severity, SEEDS[:1]) if photons > 3 else None
        if noisy is not None:
            assert float(noisy.mean()) == pytest.approx(0.4, abs=0.01)
            assert float(noisy.var()) == pytest.approx(0.4 / photons, rel=0.1)


def test_noise_has_its_strength():
    images = torch.full((1, 1, 200, 200), 0.5)
    assert float(corrupt(images, "gaussian_noise", 1, SEEDS[:1]).std()) == pytest.approx(0.08, rel=0.03)
    assert float(corrupt(images, "speckle_noise", 2, SEEDS[:1]).std()) == pytest.approx(0.1, rel=0.03)
    impulses = corrupt(images, "impulse_noise", 5, SEEDS[:1])
    assert float((impulses == 1).float().mean()) == pytest.approx(0.135, abs=0.01)
    assert float((impulses == 0).float().mean()) == pytest.approx(0.135, abs=0.01)


def test_blurs_leave_flat_images_alone_and_keep_the_mean():
    flat = torch.full((2, 3, 32, 32), 0.4)
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        torch.testing.assert_close(corrupt(flat, name, 5, SEEDS[:2]), flat, rtol=0, atol=1e-5)


def test_an_evaluation_has_every_corruption_of_both_models():
    model, other = tiny_mlp(), tiny_mlp()
    with torch.no_grad():
        other[-1].weight.mul_(0).add_(1)  # always the same answer
        other[-1].bias.copy_(torch.tensor([0.0, 0, 0, 1]))
    pixels = photographs(side=4, count=50)
    with torch.no_grad():
        labels = model(pixels).argmax(1)
    images = ImageSet(TensorImages(pixels, labels), (), "photographs")
    models = [EvaluatedModel("baseline", model, "0"), EvaluatedModel("compressed", other, "1")]
    values = evaluate_models(models, images, AttackSettings(corruptions=True, batch_size=7)).to_json()["corruptions"]
    assert values["severities"] == [1, 2, 3, 4, 5]
    assert set(values["models"]["baseline"]) == set(CORRUPTIONS) == set(values["paired"])
    share = float((labels == 3).float().mean())
    for name in CORRUPTIONS:
        for row, constant, pair in zip(
            *(values["models"][role][name] for role in ("baseline", "compressed")), values["paired"][name], strict=True
        ):
            assert len(row["bits"]) == 50
            assert constant["accuracy"] == pytest.approx(share)
            assert pair["lost"] - pair["gained"] == row["correct"] - constant["correct"]
    assert any(row["accuracy"] < 1 for rows in values["models"]["baseline"].values() for row in rows)
