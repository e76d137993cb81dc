"""A sample of the architectures: what `benchmarks/zoo.py` checks of all of them, at the smallest size that works."""

import pytest
import safetensors.torch
import torch
from artifacts import compressed, disturbed, save
from networks import relative_difference

from lrcompress.artifact import load
from lrcompress.errors import OptionError
from lrcompress.factorize import factorize
from lrcompress.measure import count_parameters
from lrcompress.models import build_model, parse_name
from lrcompress.plan import Budget, Decomposer, FullRank, Smallest, make_plan
from lrcompress.schemes import SCHEMES

# Arguments, and the height and width of the images.
SAMPLE = {
    "timm/resnet18": ({"channels": [16, 32, 64, 128]}, 32),
    "timm/seresnext26d_32x4d": ({"layers": [1, 1, 1, 1]}, 32),
    "timm/test_byobnet": ({}, 32),
    "timm/test_convnext": ({}, 32),
    "timm/test_mambaout": ({}, 32),
    "timm/test_nfnet": ({}, 32),
    "timm/test_efficientnet_gn": ({}, 32),
    "timm/tf_mobilenetv3_small_minimal_100": ({}, 32),
    "timm/resnetv2_50": ({"layers": [1, 1, 1, 1], "width_factor": 0.25}, 32),
    "timm/regnety_002": ({}, 32),
    "timm/ghostnet_050": ({}, 32),
    "timm/densenet121": ({"growth_rate": 16, "block_config": [2, 2, 2, 2]}, 32),
    "timm/ese_vovnet19b_slim": ({}, 32),
    "timm/dla46_c": ({}, 32),
    "timm/vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "timm/deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "timm/beit_base_patch16_224": ({"img_size": 32, "embed_dim": 96, "depth": 2, "num_heads": 2}, 32),
    "timm/eva02_tiny_patch14_224": ({"img_size": 56, "depth": 2}, 56),
    "timm/cait_xxs24_224": ({"img_size": 32, "depth": 2}, 32),
    "timm/xcit_nano_12_p16_224": ({"img_size": 32, "depth": 2}, 32),
    "timm/swin_tiny_patch4_window7_224": ({"img_size": 56, "embed_dim": 48, "depths": [2, 1, 1, 1]}, 56),
    "timm/swinv2_tiny_window8_256": ({"img_size": 64, "embed_dim": 48, "depths": [2, 1, 1, 1]}, 64),
    "timm/gmlp_ti16_224": ({"img_size": 32}, 32),
    "timm/sequencer2d_s": ({"layers": [1, 1, 1, 1]}, 32),
    "timm/levit_128s": ({}, 224),
    "timm/mobilevit_xxs": ({}, 64),
    "timm/edgenext_xx_small": ({}, 64),
    "timm/poolformerv2_s12": ({}, 64),
    "timm/pit_ti_224": ({}, 224),
    "torchvision/squeezenet1_1": ({}, 64),
    "torchvision/shufflenet_v2_x0_5": ({}, 32),
    "torchvision/mnasnet0_5": ({}, 32),
    "torchvision/mobilenet_v3_small": ({}, 32),
    "torchvision/regnet_x_400mf": ({}, 32),
    "torchvision/googlenet": ({"aux_logits": False}, 32),
}
CLASSES = 10


def is_planned(name, planned):
    """Whether a parameter of the dense network is in the plan: as a layer's weight, or by its own name."""
    spellings = {name, name.removesuffix(".weight"), name.removesuffix("_weight"), name.removesuffix(".gain")}
    return bool(spellings & planned)


@pytest.mark.parametrize("name", SAMPLE)
def test_an_architecture_is_exact_at_full_rank_and_half_of_it_is_saved_and_loaded(tmp_path, name):
    arguments, side = SAMPLE[name]
    torch.manual_seed(0)
    architecture = parse_name(name, {"num_classes": CLASSES, **arguments})
    model, size = disturbed(build_model(architecture)), (3, side, side)
    images = torch.randn(2, *size)
    with torch.no_grad():
        expected = model(images)
    assert relative_difference(expected[0], expected[1]) > 1e-3

    # The larger ones in all their forms take too long here; benchmarks/zoo.py does that.
    for scheme in SCHEMES if count_parameters(model) < 1_500_000 else ["matrix"]:
        decomposer = Decomposer(wanted=scheme)
        everything = {"include_first": True, "include_classifier": True, "decomposer": decomposer}
        full = make_plan(model, FullRank(), input_size=size, **everything)
        if scheme == "matrix" or scheme in {layer.scheme for layer in full.layers}:
            with torch.no_grad():
                assert relative_difference(factorize(model, full, decomposer=decomposer)(images), expected) < 1e-3
    planned = {layer.name for layer in full.layers}
    assert [key for key, value in model.named_parameters() if value.ndim > 1 and not is_planned(key, planned)] == []
    assert all((layer.scheme != "dense") != bool(layer.reason) for layer in full.layers)

    decomposer = Decomposer()
    options = {"input_size": size, "decomposer": decomposer}
    policy = Budget(fraction=0.5)
    try:
        plan = make_plan(model, policy, **options)
    except OptionError:
        policy = Smallest()
        plan = make_plan(model, policy, **options)
    left = count_parameters(factorize(model, plan, decomposer=decomposer))
    assert left == count_parameters(model) - plan.removed_parameters()
    assert left <= 0.5 * count_parameters(model) or policy == Smallest()

    small, manifest = compressed(model, architecture, size, policy=policy, scheme="auto")
    save(tmp_path / "small.safetensors", small, manifest)
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(dense, tmp_path / "dense.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < (tmp_path / "dense.safetensors").stat().st_size
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small.safetensors")(images), small(images))
