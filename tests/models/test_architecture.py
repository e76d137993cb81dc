import contextlib
import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torchvision
from torch import nn

from lrcompress.errors import ArchitectureError
from lrcompress.models import (
    Architecture,
    assign_tensors_,
    build_model,
    default_preprocessing,
    is_custom_name,
    known_architectures,
    nearest_names,
    parse_name,
)

FACTORY = """
import torch.nn as nn

class Net(nn.Sequential):
    def __init__(self, num_classes=3, in_chans=2):
        super().__init__(nn.Conv2d(in_chans, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def not_a_network():
    return 7

def refuses(width):
    raise ValueError("width must be even\\nsecond line")
"""


@pytest.fixture
def factory_file(tmp_path):
    file = tmp_path / "mynet.py"
    file.write_text(FACTORY)
    return file


@pytest.mark.parametrize(
    ("text", "framework", "name", "label"),
    [
        ("timm/resnet18", "timm", "resnet18", "timm/resnet18"),
        ("timm/resnet50.a1_in1k", "timm", "resnet50", "timm/resnet50"),
        ("torchvision/resnet18", "torchvision", "resnet18", "torchvision/resnet18"),
        ("torchvision/resnet18.IMAGENET1K_V1", "torchvision", "resnet18", "torchvision/resnet18"),
        ("resnet18", "timm", "resnet18", "timm/resnet18"),  # both know it
        ("vgg11", "timm", "vgg11", "timm/vgg11"),
        ("vit_b_16", "torchvision", "vit_b_16", "torchvision/vit_b_16"),  # only torchvision knows it
        ("nets.py:make", "custom", "nets.py:make", "nets.py:make"),
        ("package.nets:make", "custom", "package.nets:make", "package.nets:make"),
    ],
)
def test_a_name_stands_for_the_framework_that_knows_it(text, framework, name, label):
    architecture = parse_name(text, {"num_classes": 5})
    assert architecture == Architecture(framework, name, {"num_classes": 5})
    assert architecture.label == label
    assert is_custom_name(text) is (framework == "custom")


@pytest.mark.parametrize(
    "text", ["resnet5O", "timm/vit_b_16", "torchvision/deit_tiny_patch16_224", "hub/resnet18", "resnet18/", ""]
)
def test_an_unknown_name_is_refused_by_name(text):
    with pytest.raises(ArchitectureError) as refused:
        parse_name(text)
    assert f"`{text}`" in refused.value.message
    assert refused.value.hint


def test_a_misspelt_name_is_answered_with_the_nearest_ones():
    assert "resnet18" in nearest_names("resnet_18")
    with pytest.raises(ArchitectureError) as refused:
        parse_name("resnet_18")
    assert "resnet18" in refused.value.hint


def test_both_frameworks_are_known():
    known = known_architectures()
    assert "vit_tiny_patch16_224" in known["timm"]
    assert "regnet_y_400mf" in known["torchvision"]
    assert "fcn_resnet50" not in known["torchvision"]  # segmentation


@pytest.mark.parametrize(
    ("name", "channels"), [("timm/test_resnet", 1), ("timm/test_resnet", 3), ("torchvision/squeezenet1_1", 2)]
)
def test_networks_are_built_in_eval_mode_for_the_asked_classes_and_channels(name, channels):
    model = build_model(parse_name(name, {"num_classes": 7, "in_chans": channels}))
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 7)


def test_changing_the_channels_of_a_torchvision_network_changes_its_first_convolution_only():
    grey = build_model(parse_name("torchvision/resnet18", {"in_chans": 1, "num_classes": 2})).state_dict()
    colour = build_model(parse_name("torchvision/resnet18", {"num_classes": 2})).state_dict()
    assert list(grey) == list(colour)
    assert {key for key in grey if grey[key].shape != colour[key].shape} == {"conv1.weight"}
    assert grey["conv1.weight"].shape == (64, 1, 7, 7)


def test_arguments_reach_the_factory():
    model = build_model(parse_name("timm/test_vit", {"img_size": 32, "num_classes": 2}))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_an_argument_the_factory_does_not_take_is_named():
    with pytest.raises(ArchitectureError) as refused:
        build_model(parse_name("timm/test_resnet", {"img_sze": 32}))
    assert "img_sze" in refused.value.message
    assert "--arch-arg" in refused.value.hint


def test_a_network_of_ones_own_is_built_from_a_file(factory_file):
    model = build_model(parse_name(f"{factory_file}:Net", {"num_classes": 4, "in_chans": 1}))
    assert model(torch.zeros(2, 1, 5, 5)).shape == (2, 4)
    assert not model.training


def test_a_network_of_ones_own_is_built_from_a_module(factory_file, monkeypatch):
    monkeypatch.syspath_prepend(str(factory_file.parent))
    model = build_model(parse_name("mynet:Net"))
    assert isinstance(model, nn.Module)
    sys.modules.pop("mynet")


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        (":missing", "has no `missing`"),
        (":not_a_network", "returned int"),
        (":refuses", "missing 1 required positional argument"),
    ],
)
def test_a_factory_that_gives_no_network_is_named(factory_file, suffix, said):
    with pytest.raises(ArchitectureError) as refused:
        build_model(parse_name(f"{factory_file}{suffix}"))
    assert said in refused.value.message
    assert str(factory_file) in refused.value.message
    assert refused.value.hint


def test_what_a_factory_raises_is_told_in_one_line(factory_file):
    with pytest.raises(ArchitectureError, match=r"with width=3: width must be even$"):
        build_model(parse_name(f"{factory_file}:refuses", {"width": 3}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/file.py:make", "no file `no/such/file.py`"),
        ("no_such_package:make", "cannot import `no_such_package`"),
    ],
)
def test_a_factory_that_does_not_exist_is_named(name, said):
    with pytest.raises(ArchitectureError) as refused:
        build_model(parse_name(name))
    assert said in refused.value.message
    assert "file.py:factory" in refused.value.hint


def test_a_file_with_a_syntax_error_is_an_explained_error(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def f(:")
    with pytest.raises(ArchitectureError, match="broken"):
        build_model(parse_name(f"{file}:f"))


@pytest.mark.parametrize(
    ("name", "arguments", "size", "mean", "crop", "interpolation"),
    [
        ("timm/test_vit", {}, (3, 160, 160), (0.5, 0.5, 0.5), 0.95, "bicubic"),
        ("timm/test_vit", {"img_size": 32}, (3, 32, 32), (0.5, 0.5, 0.5), 0.95, "bicubic"),
        ("timm/test_vit", {"in_chans": 1}, (1, 160, 160), (0.5,), 0.95, "bicubic"),
        ("torchvision/squeezenet1_1", {}, (3, 224, 224), (0.485, 0.456, 0.406), 0.875, "bilinear"),
        ("torchvision/squeezenet1_1", {"in_chans": 1}, (1, 224, 224), (0.449,), 0.875, "bilinear"),
    ],
)
def test_preprocessing_is_what_the_framework_documents(name, arguments, size, mean, crop, interpolation):
    architecture = parse_name(name, arguments)
    preprocessing = default_preprocessing(architecture, build_model(architecture))
    assert preprocessing.input_size == size
    assert preprocessing.mean == pytest.approx(mean)
    assert len(preprocessing.std) == size[0]
    assert (preprocessing.crop_pct, preprocessing.interpolation) == (crop, interpolation)
    assert preprocessing.origin


def test_a_network_of_ones_own_is_not_normalised_unless_it_says_so():
    architecture = Architecture("custom", "nets.py:make", {"in_chans": 1})
    model = nn.Identity()
    plain = default_preprocessing(architecture, model)
    assert (plain.input_size, plain.mean, plain.std) == ((1, 224, 224), (0.0,), (1.0,))
    assert plain.origin == "assumed"
    assert "no normalisation" in plain.describe()
    model.default_cfg = {"input_size": (1, 28, 28), "mean": (0.3,), "std": (0.2,), "crop_pct": 1.0}
    stated = default_preprocessing(architecture, model)
    assert (stated.input_size, stated.mean, stated.std) == ((1, 28, 28), (0.3,), (0.2,))


@pytest.fixture
def frameworks_asked(monkeypatch):
    """Records every call of timm's and torchvision's factory of networks."""
    calls = []
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: calls.append(args))
    monkeypatch.setattr(torchvision.models, "get_model", lambda *args, **kwargs: calls.append(args))
    return calls


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        ("timm", "hf-hub:evil/repo"),
        ("timm", "hf_hub:evil/repo"),
        ("timm", "local-dir:x"),
        ("timm", "resnet18.a1_in1k"),  # would name weights to fetch
        ("timm", ""),
        ("torchvision", "fasterrcnn_resnet50_fpn"),  # fetches weights of its backbone
        ("torchvision", "deeplabv3_resnet50"),
        ("torchvision", "quantized_resnet18"),
    ],
)
def test_a_name_that_is_no_known_network_never_reaches_its_framework(frameworks_asked, framework, name):
    known_architectures()
    with pytest.raises(ArchitectureError, match=f"`{framework}/{name}` is no architecture of the installed") as refused:
        build_model(Architecture(framework, name, {}))
    assert refused.value.hint.startswith("similar names: ")
    assert frameworks_asked == []


@pytest.mark.parametrize("framework", ["timm", "torchvision"])
@pytest.mark.parametrize(
    "argument",
    [
        "weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
        "cache_dir",
    ],
)  # fmt: skip
def test_arguments_that_fetch_or_read_files_never_reach_the_framework(frameworks_asked, framework, argument):
    with pytest.raises(ArchitectureError, match=f"`{argument}` is no argument of an architecture"):
        build_model(Architecture(framework, "resnet18", {"num_classes": 3, argument: "x"}))
    assert frameworks_asked == []


# Small networks and their images; some have buffers that are computed while they are built and are in no checkpoint.
# The last two are built whole: they need values meanwhile, or make their buffers where their weights are.
SMALL = {
    "timm/test_resnet": ({}, (3, 32, 32)),
    "timm/test_nfnet": ({}, (3, 32, 32)),
    "timm/test_vit": ({"img_size": 32}, (3, 32, 32)),
    "timm/eva02_tiny_patch14_224": ({"img_size": 56, "depth": 1}, (3, 56, 56)),
    "timm/beit_base_patch16_224": ({"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}, (3, 32, 32)),
    "torchvision/squeezenet1_1": ({"in_chans": 2}, (2, 64, 64)),
    "torchvision/mnasnet0_5": ({}, (3, 32, 32)),
    "timm/swinv2_tiny_window8_256": ({"img_size": 64, "embed_dim": 12, "depths": [1, 2, 1, 1]}, (3, 64, 64)),
    "timm/swin_tiny_patch4_window7_224": ({"img_size": 56, "embed_dim": 12, "depths": [2, 1, 1, 1]}, (3, 56, 56)),
}
BUILT_WHOLE = list(SMALL)[-2:]


@pytest.fixture(scope="module", params=SMALL)
def both(request):
    """The same network with its weights, and without."""
    arguments, size = SMALL[request.param]
    architecture = parse_name(request.param, {"num_classes": 3, **arguments})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole, empty = build_model(architecture), build_model(architecture, without_weights=True)
    return whole, empty, size, request.param in BUILT_WHOLE


def test_without_weights_all_parameters_are_on_the_meta_device_and_else_nothing_is_different(both):
    whole, empty, _, is_built_whole = both
    assert str(empty) == str(whole)
    assert not any(module.training for module in empty.modules())
    theirs = dict(whole.named_parameters())
    assert [name for name, _ in empty.named_parameters()] == list(theirs)
    for name, parameter in empty.named_parameters():
        assert parameter.is_meta is not is_built_whole
        assert type(parameter) is nn.Parameter
        assert (parameter.shape, parameter.dtype) == (theirs[name].shape, theirs[name].dtype)
        assert parameter.requires_grad == theirs[name].requires_grad


def test_without_weights_all_buffers_have_their_values(both):
    whole, empty, *_ = both
    ours = dict(empty.named_buffers())
    assert list(ours) == [name for name, _ in whole.named_buffers()]
    for name, buffer in whole.named_buffers():
        assert torch.equal(ours[name], buffer)


def test_given_its_tensors_a_network_without_weights_computes_what_the_whole_one_does(both):
    whole, empty, size, _ = both
    empty, tensors = copy.deepcopy(empty), whole.state_dict()
    assign_tensors_(empty, tensors)
    for name, value in empty.state_dict().items():
        assert value.data_ptr() == tensors[name].data_ptr()  # not copied
    x = torch.rand(2, *size)
    with torch.no_grad():
        assert torch.equal(empty(x), whole(x))


@pytest.mark.parametrize("name", ["test_vit", "no_such_network"])
def test_what_is_built_later_has_weights_again(name):
    with contextlib.suppress(ArchitectureError):
        build_model(Architecture("timm", name, {"no_such_argument": 1}), without_weights=True)
    assert not nn.Linear(2, 2).weight.is_meta
    assert not any(parameter.is_meta for parameter in build_model(parse_name("timm/test_resnet")).parameters())


def test_without_weights_errors_are_told_as_with_weights():
    for without_weights in (True, False):
        with pytest.raises(
            ArchitectureError, match=r"cannot build `timm/test_vit` with no_such_argument=1: .*no_such_"
        ):
            build_model(Architecture("timm", "test_vit", {"no_such_argument": 1}), without_weights=without_weights)


def test_a_network_of_ones_own_is_always_built_whole(factory_file):
    model = build_model(parse_name(f"{factory_file}:Net"), without_weights=True)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not model.training


class LooksAtItsWeights(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 2))
        self.scale = self[0].weight.abs().max().item()


def test_a_network_that_needs_values_while_it_is_built_is_built_whole(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: LooksAtItsWeights())
    model = build_model(Architecture("timm", "resnet18", {}), without_weights=True)
    assert model.scale == float(model[0].weight.detach().abs().max())
    assert not model.training


class FollowsItsWeights(nn.Linear):
    """Makes a tensor, stored or not, where its weights are."""

    def __init__(self, kind):
        super().__init__(3, 4)
        table = torch.arange(3.0).to(self.weight.device)
        if kind == "attribute":
            self.table = table
        else:
            self.register_buffer("table", table, persistent=kind == "buffer")


@pytest.mark.parametrize("kind", ["buffer", "buffer that is not stored", "attribute"])
def test_a_network_that_makes_tensors_where_its_weights_are_is_built_whole(monkeypatch, kind):
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: FollowsItsWeights(kind))
    model = build_model(Architecture("timm", "resnet18", {}), without_weights=True)
    assert model.table.tolist() == [0, 1, 2]
    assert not model.weight.is_meta


class Tied(nn.Module):
    """One parameter in three places, one of them a module that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.again = self.first
        self.norm = nn.BatchNorm1d(3)
        self.third.bias.requires_grad_(False)

    def forward(self, x):
        return self.norm(self.again(self.third(self.second(self.first(x)))))


def test_parameters_that_are_one_stay_one():
    source = Tied().eval()
    with torch.device("meta"):
        model = Tied().eval()
    assign_tensors_(model, source.state_dict())
    assert model.second.weight is model.first.weight is model.again.weight
    assert model.third.weight is not model.first.weight
    assert model.first.weight.data_ptr() == source.first.weight.data_ptr()
    assert len(list(model.parameters())) == len(list(source.parameters()))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in source.parameters()]
    x = torch.randn(2, 3)
    assert torch.equal(model(x), source(x))


def test_without_weights_parameters_that_are_one_are_one(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: Tied())
    model = build_model(Architecture("timm", "resnet18", {}), without_weights=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.second.weight is model.first.weight


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_are_not_those_of_the_network_are_refused(change):
    model, tensors = Tied(), dict(Tied().state_dict())
    if change == "missing":
        del tensors["third.bias"]
    elif change == "unexpected":
        tensors["fourth.bias"] = torch.zeros(3)
    else:
        tensors["third.bias"] = torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"third\.bias|fourth\.bias"):
        assign_tensors_(model, tensors)


class Versioned(nn.Linear):
    """Asks for the version of what it is given, as batch norm does."""

    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.seen = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_tensors_are_taken_for_those_of_the_present_version():
    model = nn.Sequential(Versioned(2, 2))
    assign_tensors_(model, {"0.weight": torch.zeros(2, 2), "0.bias": torch.ones(2)})
    assert model[0].seen == 3


def test_tensors_take_their_type_with_them():
    model = Tied()
    assign_tensors_(model, Tied().double().state_dict())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.norm.running_mean.dtype == torch.float64


def test_networks_may_be_built_in_several_threads_at_once():
    architecture = parse_name("timm/test_resnet", {"num_classes": 3})

    def build(index):
        layer = nn.Linear(2, 2)  # somebody else's, built meanwhile
        model = build_model(architecture, without_weights=True)
        return layer.weight.is_meta, all(parameter.is_meta for parameter in model.parameters())

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(build, range(12))) == {(False, True)}
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_framework_that_is_none_is_refused():
    with pytest.raises(ArchitectureError, match="no framework named `evil`"):
        build_model(Architecture("evil", "resnet18"))
