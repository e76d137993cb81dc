import collections
import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from artifacts import disturbed
from checkpoint_files import (
    FORMATS,
    TORCH_FORMATS,
    pytorch_example_checkpoint,
    timm_training_checkpoint,
    torchvision_reference_checkpoint,
    write_hugging_face_folder,
    write_safetensors,
    write_zip,
)
from networks import relative_difference

from lrcompress.checkpoint import LoadOptions, load_checkpoint
from lrcompress.errors import ArchitectureError, CheckpointError, HubError, OptionError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def small():
    """timm's smallest ResNet: 160×160 images, 1000 classes, half a million parameters."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet").eval()


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return timm.create_model("resnet18").eval()


def shifted(model):
    """Returns the network's tensors, all floating-point ones half as large: recognisably other weights."""
    return {key: value / 2 if value.is_floating_point() else value for key, value in model.state_dict().items()}


def assert_same_weights(loaded, expected):
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value.to(found[key].dtype)), key


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_a_network_is_recognised_and_computes_the_same(tmp_path, small, write):
    path = write(small.state_dict(), tmp_path / "weights")
    loaded = load_checkpoint(str(path))
    assert loaded.architecture.label == "timm/test_resnet"
    assert (loaded.num_classes, loaded.dtype, loaded.model.training) == (1000, "float32", False)
    assert (loaded.source.chosen_by, loaded.source.match) == ("fingerprint", "by name")
    assert (loaded.source.wrapper, loaded.source.prefix) == ("", "")
    assert (loaded.source.path, loaded.source.bytes) == (str(path), path.stat().st_size)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), small(images))


def test_input_size_and_statistics_are_those_timm_documents(tmp_path, small):
    preprocessing = load_checkpoint(str(write_zip(small.state_dict(), tmp_path / "w"))).preprocessing
    config = small.pretrained_cfg
    assert preprocessing.input_size == tuple(config["input_size"])
    assert (preprocessing.mean, preprocessing.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert (preprocessing.crop_pct, preprocessing.interpolation) == (config["crop_pct"], config["interpolation"])


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
def test_a_training_checkpoint_of_timm_gives_its_averaged_weights(tmp_path, small, write):
    average = timm.create_model("test_resnet")
    average.load_state_dict(shifted(small))
    path = write(timm_training_checkpoint("test_resnet", small, average), tmp_path / "last.pth.tar")
    loaded = load_checkpoint(str(path))
    assert (loaded.source.wrapper, loaded.source.chosen_by) == ("state_dict_ema", "the file")
    assert loaded.architecture.label == "timm/test_resnet"
    assert_same_weights(loaded, average.state_dict())


@pytest.mark.parametrize("value", [0.5, "imagenet", [], ["0.5"], {"red": 0.5}], ids=str)
def test_what_a_script_calls_mean_and_std_without_meaning_pixels_is_passed_over(tmp_path, small, value):
    args = {
        name: value
        for name in ("mean", "std", "input_size", "crop_pct", "interpolation")
        if value != 0.5 or name in ("mean", "std")
    }
    if value == "imagenet":
        del args["interpolation"]
    path = write_zip({"state_dict": small.state_dict(), "args": args}, tmp_path / "w.pt")
    plain = write_zip(small.state_dict(), tmp_path / "weights.pt")
    assert load_checkpoint(str(path)).preprocessing == load_checkpoint(str(plain)).preprocessing


def test_what_timms_arguments_leave_open_is_taken_from_the_architecture(tmp_path, small):
    # train.py leaves --interpolation, --mean and the like empty unless the user gives them.
    path = write_zip(timm_training_checkpoint("test_resnet", small), tmp_path / "last.pth.tar")
    plain = write_zip(small.state_dict(), tmp_path / "weights.pt")
    trained, bare = load_checkpoint(str(path)).preprocessing, load_checkpoint(str(plain)).preprocessing
    assert trained == bare


@pytest.mark.parametrize("values", [
    {"interpolation": "random"}, {"crop_pct": 0}, {"crop_pct": float("nan")}, {"std": [0, 0, 0]},
    {"mean": [float("nan")]}, {"input_size": [3, -1, -1]},
], ids=str)  # fmt: skip
def test_what_scripts_call_by_the_same_name_and_no_image_can_be_brought_into_is_left_open_too(tmp_path, small, values):
    checkpoint = timm_training_checkpoint("test_resnet", small)
    plain = load_checkpoint(str(write_zip(checkpoint, tmp_path / "last.pth.tar"))).preprocessing
    for key, value in values.items():
        setattr(checkpoint["args"], key, value)
    assert load_checkpoint(str(write_zip(checkpoint, tmp_path / "odd.pth.tar"))).preprocessing == plain


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
def test_a_checkpoint_of_the_pytorch_example_loads(tmp_path, resnet18, write):
    path = write(pytorch_example_checkpoint("resnet18", resnet18), tmp_path / "checkpoint.pth.tar")
    loaded = load_checkpoint(str(path))
    assert (loaded.source.wrapper, loaded.source.prefix) == ("state_dict", "module.")
    assert loaded.architecture.label == "timm/resnet18"
    assert_same_weights(loaded, resnet18.state_dict())


def test_a_checkpoint_of_torchvisions_reference_loads_its_average(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=5).eval()
    checkpoint = torchvision_reference_checkpoint("mobilenet_v2", model)
    loaded = load_checkpoint(str(write_zip(checkpoint, tmp_path / "checkpoint.pth")))
    assert loaded.architecture.label == "torchvision/mobilenet_v2"
    assert (loaded.source.wrapper, loaded.source.prefix, loaded.num_classes) == ("model_ema", "module.", 5)
    assert_same_weights(loaded, model.state_dict())


def test_other_weights_of_the_file_are_taken_where_their_key_is_named(tmp_path, small):
    content = {"state_dict": small.state_dict(), "teacher": shifted(small)}
    path = write_zip(content, tmp_path / "w.pt")
    loaded = load_checkpoint(str(path), LoadOptions(weights_key="teacher"))
    assert loaded.source.wrapper == "teacher"
    assert_same_weights(loaded, shifted(small))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
def test_prefixes_are_stripped_and_recorded(tmp_path, small, prefix):
    path = write_zip({prefix + key: value for key, value in small.state_dict().items()}, tmp_path / "w.pt")
    loaded = load_checkpoint(str(path))
    assert loaded.source.prefix == prefix
    assert_same_weights(loaded, small.state_dict())


@pytest.mark.parametrize(("classes", "channels"), [(7, 3), (1000, 1), (2, 4)])
def test_any_width_of_the_classifier_and_any_number_of_channels_loads(tmp_path, classes, channels):
    model = timm.create_model("test_resnet", num_classes=classes, in_chans=channels)
    loaded = load_checkpoint(str(write_zip(model.state_dict(), tmp_path / "w.pt")))
    assert loaded.num_classes == classes
    assert loaded.preprocessing.input_size == (channels, 160, 160)
    assert len(loaded.preprocessing.mean) == len(loaded.preprocessing.std) == channels
    assert_same_weights(loaded, model.state_dict())


@pytest.mark.parametrize("arch", [None, "torchvision/mobilenet_v2", "mobilenet_v2"])
def test_any_number_of_classes_loads_under_its_name_too(tmp_path, arch):
    model = torchvision.models.mobilenet_v2(num_classes=3)
    loaded = load_checkpoint(str(write_zip(model.state_dict(), tmp_path / "w.pt")), LoadOptions(arch=arch))
    assert (loaded.architecture.label, loaded.num_classes) == ("torchvision/mobilenet_v2", 3)


def test_all_architectures_with_the_same_tensors_are_recorded_the_plain_one_is_taken(tmp_path, resnet18):
    path = write_zip(resnet18.state_dict(), tmp_path / "w.pt")
    source = load_checkpoint(str(path)).source
    assert source.candidates[0] == "timm/resnet18"
    assert "torchvision/resnet18" in source.candidates


def test_a_strict_user_gets_no_guess_but_the_candidates(tmp_path, resnet18, small):
    options = LoadOptions(strict_arch=True)
    with pytest.raises(
        ArchitectureError, match=r"fits \d+ architectures: timm/resnet18, .*torchvision/resnet18"
    ) as refused:
        load_checkpoint(str(write_zip(resnet18.state_dict(), tmp_path / "w.pt")), options)
    assert refused.value.hint == "--arch timm/resnet18"
    unique = load_checkpoint(str(write_zip(small.state_dict(), tmp_path / "unique.pt")), options)
    assert unique.source.candidates == ("timm/test_resnet",)


def test_a_name_of_the_users_goes_before_the_files_and_the_fingerprint(tmp_path, resnet18):
    path = write_zip({"arch": "resnet50", "state_dict": resnet18.state_dict()}, tmp_path / "w.pt")
    loaded = load_checkpoint(str(path), LoadOptions(arch="torchvision/resnet18"))
    assert (loaded.architecture.label, loaded.source.chosen_by) == ("torchvision/resnet18", "--arch")


@pytest.mark.parametrize("name", ["resnet", "ResNet", "my_own_network", "a/b/c"])
def test_a_word_of_the_file_that_names_nothing_gives_way_to_the_fingerprint(tmp_path, small, name):
    # timm's saver without arguments writes the lower-case name of the class.
    path = write_zip({"arch": name, "state_dict": small.state_dict()}, tmp_path / "w.pt")
    loaded = load_checkpoint(str(path))
    assert (loaded.architecture.label, loaded.source.chosen_by) == ("timm/test_resnet", "fingerprint")


@pytest.mark.parametrize("where", ["arch", "args", "config.json"])
@pytest.mark.parametrize("by_order", [False, True])
def test_code_that_a_file_names_is_not_run(tmp_path, small, where, by_order):
    marker = tmp_path / "marker"
    name, arguments = "os:mkdir", {"path": str(marker)}
    if where == "config.json":
        config = {"architecture": name, "model_args": arguments}
        path = write_hugging_face_folder(tmp_path / "folder", small, config, safe=False)
    else:
        content = {"state_dict": small.state_dict(), "args": {"model": name, "model_kwargs": arguments}}
        if where == "arch":
            content["arch"] = name
        path = write_zip(content, tmp_path / "w.pt")
    with pytest.raises(ArchitectureError, match="built by `os:mkdir`, code that is not run unasked") as refused:
        load_checkpoint(str(path), LoadOptions(match_by_order=by_order))
    assert not marker.exists()
    assert refused.value.hint == "--arch os:mkdir"


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, small):
    path = write_zip(small.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ArchitectureError, match="no architecture named `resnet5O`") as refused:
        load_checkpoint(str(path), LoadOptions(arch="resnet5O"))
    assert "resnet50" in refused.value.hint


def test_a_wrong_name_is_answered_with_all_differences_and_what_would_fit(tmp_path, resnet18):
    tensors = dict(resnet18.state_dict())
    path = write_zip(tensors, tmp_path / "w.pt")
    with pytest.raises(ArchitectureError) as refused:
        load_checkpoint(str(path), LoadOptions(arch="resnet50"))
    message = refused.value.message
    assert f"`{path}` does not fit `timm/resnet50`" in message
    assert "missing (layer1.0.conv3.weight" in message
    assert "mis-shaped (layer1.0.conv1.weight (64, 64, 3, 3) instead of (64, 64, 1, 1)" in message
    assert "timm/resnet18" in refused.value.hint
    tensors["other"] = tensors.pop("layer1.0.bn1.bias")
    with pytest.raises(
        ArchitectureError, match=r"1 missing \(layer1\.0\.bn1\.bias\); 1 unexpected \(other\)"
    ) as refused:
        load_checkpoint(str(write_zip(tensors, path)), LoadOptions(arch="resnet18"))
    assert "resnet" in refused.value.hint


def test_one_missing_key_is_named_as_soon_as_the_architecture_is(tmp_path, small):
    tensors = dict(small.state_dict())
    del tensors["layer1.0.conv1.weight"]
    path = write_zip(tensors, tmp_path / "w.pt")
    with pytest.raises(ArchitectureError, match=r"1 missing \(layer1\.0\.conv1\.weight\)"):
        load_checkpoint(str(path), LoadOptions(arch="test_resnet"))
    with pytest.raises(ArchitectureError, match="no architecture of timm") as refused:
        load_checkpoint(str(path))
    assert "--arch" in refused.value.hint


def test_tensors_with_known_names_and_unknown_shapes_are_answered_with_those_names(tmp_path, small):
    tensors = {**small.state_dict(), "layer1.0.conv1.weight": torch.ones(7, 7, 3, 3)}
    with pytest.raises(ArchitectureError, match=r"names of timm/test_resnet.*, but other shapes") as refused:
        load_checkpoint(str(write_zip(tensors, tmp_path / "w.pt")))
    assert "--arch timm/test_resnet" in refused.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, small, value):
    tensors = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    tensors["layer2.0.conv1.weight"].view(-1)[5] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in `layer2\.0\.conv1\.weight`"):
        load_checkpoint(str(write_zip(tensors, tmp_path / "w.pt")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types_are_read_into_float32_and_the_type_is_recorded(tmp_path, small, dtype):
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in small.state_dict().items()}
    loaded = load_checkpoint(str(write_zip(tensors, tmp_path / "w.pt")))
    assert loaded.dtype == {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(dtype, "float32")
    assert {v.dtype for v in loaded.model.state_dict().values() if v.is_floating_point()} == {torch.float32}
    assert_same_weights(loaded, tensors)


# Networks are built without values, and the file's tensors become theirs.


def test_a_safetensors_and_a_torch_file_give_the_same_model(tmp_path, small):
    paths = (
        write_safetensors(small.state_dict(), tmp_path / "w.safetensors"),
        write_zip(small.state_dict(), tmp_path / "w"),
    )
    first, second = (load_checkpoint(str(path)) for path in paths)
    assert first.model.state_dict().keys() == second.model.state_dict().keys()
    for (name, one), (other_name, other) in zip(
        first.model.named_parameters(), second.model.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)
        assert one.requires_grad is other.requires_grad is True
    assert (first.architecture, first.preprocessing, first.num_classes, first.dtype) == (
        second.architecture, second.preprocessing, second.num_classes, second.dtype,
    )  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first.model(images), second.model(images))


# Networks that compute buffers while they are built, some of which are stored nowhere, or standardise their weights.
COMPUTING = {
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "embed_dim": 12, "depths": [2, 1, 1, 1]}, 56),
    "eva02_tiny_patch14_224": ({"img_size": 56, "depth": 1}, 56),
    "beit_base_patch16_224": ({"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}, 32),
    "test_nfnet": ({}, 32),
    "test_vit": ({"img_size": 32}, 32),
}


@pytest.mark.parametrize("write", [write_safetensors, write_zip], ids=["safetensors", "zip"])
@pytest.mark.parametrize(("name", "given"), COMPUTING.items(), ids=COMPUTING.keys())
def test_buffers_that_no_file_holds_are_there(tmp_path, name, given, write):
    arguments, size = given
    torch.manual_seed(0)
    model = disturbed(timm.create_model(name, num_classes=5, **arguments))
    path = write(model.state_dict(), tmp_path / "w")
    options = LoadOptions(arch=name, arch_arguments={"num_classes": 5, **arguments})
    loaded = load_checkpoint(str(path), options).model
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        # Tensors that lie elsewhere in memory may be multiplied in another order.
        assert relative_difference(loaded(images), model(images)) < 1e-6
    expected = dict(model.named_buffers())
    for key, buffer in loaded.named_buffers():
        assert torch.equal(buffer, expected[key]), key


@pytest.mark.parametrize("write", [write_safetensors, write_zip], ids=["safetensors", "zip"])
def test_counters_that_old_files_lack_begin_at_nothing(tmp_path, small, write):
    tensors = {key: value for key, value in small.state_dict().items() if "num_batches_tracked" not in key}
    loaded = load_checkpoint(str(write(tensors, tmp_path / "w"))).model
    state = loaded.state_dict()
    assert len(state) > len(tensors)
    for key, value in state.items():
        assert not value.is_meta, key
        assert torch.equal(value, tensors.get(key, torch.tensor(0))), key


TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.again.weight = self.first.weight
        self.alias = self.head

    def forward(self, images):
        return self.alias(self.again(self.first(images.flatten(1)).relu()))
"""


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parameters_that_are_one_stay_one(tmp_path, write, dtype):
    (tmp_path / "tied.py").write_text(TIED)
    namespace: dict = {"__name__": "tied"}
    exec(TIED, namespace)
    torch.manual_seed(0)
    model = namespace["Tied"]()
    path = write({key: value.to(dtype) for key, value in model.state_dict().items()}, tmp_path / "w")
    options = LoadOptions(arch=f"{tmp_path / 'tied.py'}:Tied", preprocessing=SIZE)
    loaded = load_checkpoint(str(path), options).model
    assert loaded.again.weight is loaded.first.weight
    assert loaded.alias is loaded.head
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 144 + 12 + 12 + 36 + 3
    assert torch.equal(loaded.first.weight, model.first.weight.to(dtype).float())


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_model_in_use_and_its_file_are_independent(tmp_path, small, write, dtype):
    """What is mapped from a file must neither be written back nor follow the file that takes its place."""
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in small.state_dict().items()}
    path = write(state, tmp_path / "w")
    content = path.read_bytes()
    loaded = load_checkpoint(str(path))
    other = write({key: value * 0 + 1 for key, value in state.items()}, tmp_path / "other")
    other.replace(path)
    assert_same_weights(loaded, state)
    path.unlink()
    assert_same_weights(loaded, state)
    path.write_bytes(content)
    again = load_checkpoint(str(path))
    with torch.no_grad():
        for value in again.model.state_dict().values():
            value.zero_()
    assert path.read_bytes() == content
    assert_same_weights(load_checkpoint(str(path)), state)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_safetensors_file_is_mapped_and_not_copied(tmp_path, small):
    path = write_safetensors(small.state_dict(), tmp_path / "mapped.safetensors")
    loaded = load_checkpoint(str(path))
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            spans.append([int(address, 16) for address in line.split()[0].split("-")])
    assert spans
    for name, parameter in loaded.model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in spans), name


# --match-by-order


def renamed(model):
    """A port that renamed everything but its counters."""
    return collections.OrderedDict(
        (f"port.t{i}" + (".num_batches_tracked" if "num_batches" in key else ""), value)
        for i, (key, value) in enumerate(model.state_dict().items())
    )


def test_a_port_that_renamed_everything_loads_by_order_only_where_that_is_asked_for(tmp_path, small):
    path = write_zip(renamed(small), tmp_path / "w.pt")
    for options in (LoadOptions(), LoadOptions(arch="test_resnet")):
        with pytest.raises(ArchitectureError):
            load_checkpoint(str(path), options)
    loaded = load_checkpoint(str(path), LoadOptions(arch="test_resnet", match_by_order=True))
    assert loaded.source.match == "by order"
    for key, value in small.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(loaded.model.state_dict()[key], value)


def test_a_port_with_another_number_of_classes_loads_by_order(tmp_path):
    model = timm.create_model("test_resnet", num_classes=7)
    options = LoadOptions(arch="test_resnet", match_by_order=True, arch_arguments={"num_classes": 7})
    loaded = load_checkpoint(str(write_zip(renamed(model), tmp_path / "w.pt")), options)
    assert loaded.num_classes == 7


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_by_order_is_refused_where_the_file_has_lost_the_order(tmp_path, small, name):
    path = write_safetensors(renamed(small), tmp_path / name)
    with pytest.raises(CheckpointError, match="alphabetical order"):
        load_checkpoint(str(path), LoadOptions(arch="test_resnet", match_by_order=True))


def test_by_order_needs_a_name(tmp_path, small):
    with pytest.raises(ArchitectureError, match="needs to know the architecture") as refused:
        load_checkpoint(str(write_zip(renamed(small), tmp_path / "w.pt")), LoadOptions(match_by_order=True))
    assert "--arch" in refused.value.hint


# --arch-arg and one's own networks


def test_arguments_reach_the_architecture(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    path = write_zip(model.state_dict(), tmp_path / "w.pt")
    options = LoadOptions(arch="vit_tiny_patch16_224", arch_arguments={"img_size": 64})
    loaded = load_checkpoint(str(path), options)
    assert (loaded.architecture.arguments["img_size"], loaded.num_classes) == (64, 3)
    assert loaded.preprocessing.input_size == (3, 64, 64)
    assert_same_weights(loaded, model.state_dict())


@pytest.mark.parametrize("arguments", [{"no_such_argument": 1}, {"num_classes": "many"}])
def test_arguments_that_the_architecture_does_not_take_are_named(tmp_path, small, arguments):
    path = write_zip(small.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ArchitectureError, match=next(iter(arguments))) as refused:
        load_checkpoint(str(path), LoadOptions(arch="test_resnet", arch_arguments=arguments))
    assert "--arch-arg" in refused.value.hint


FACTORY = """
from torch import nn

def build(width=6, classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, classes))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = build()
    def forward(self, images):
        return self.layer(images), self.layer(images)

def number():
    return 3
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}"


def own_network(width=6, classes=3):
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(12, width), torch.nn.ReLU(), torch.nn.Linear(width, classes)]
    return torch.nn.Sequential(*layers)


SIZE = {"input_size": (3, 2, 2)}


def test_ones_own_network_is_built_by_its_factory_with_its_arguments(tmp_path, factory):
    path = write_zip(own_network(width=9, classes=2).state_dict(), tmp_path / "w.pt")
    options = LoadOptions(arch=f"{factory}:build", arch_arguments={"width": 9, "classes": 2}, preprocessing=SIZE)
    loaded = load_checkpoint(str(path), options)
    assert loaded.architecture.framework == "custom"
    assert loaded.architecture.label == f"{factory}:build"
    assert (loaded.num_classes, loaded.architecture.arguments) == (2, {"width": 9, "classes": 2})
    assert_same_weights(loaded, own_network(width=9, classes=2).state_dict())


def test_a_factory_in_a_package_is_imported(tmp_path, factory, monkeypatch):
    package = tmp_path / "packages" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    path = write_zip(own_network().state_dict(), tmp_path / "w.pt")
    loaded = load_checkpoint(str(path), LoadOptions(arch="mine.nets:build", preprocessing=SIZE))
    assert_same_weights(loaded, own_network().state_dict())


def test_statistics_of_the_users_go_before_all_others(tmp_path, small):
    values = {"input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    path = write_zip(timm_training_checkpoint("test_resnet", small), tmp_path / "w.pt")
    found = load_checkpoint(str(path), LoadOptions(preprocessing=values)).preprocessing
    assert (found.input_size, found.mean, found.std) == tuple(values.values())
    assert "the command line" in found.origin


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("values", [(0.5, 0.25), (0.5, 0.25, 0.75, 0.5)])
def test_statistics_of_the_users_for_other_channels_are_refused(tmp_path, small, name, values):
    path = write_zip(small.state_dict(), tmp_path / "w.pt")
    wanted = f"--{name} has {len(values)} values, the network takes images of 3 channels"
    with pytest.raises(OptionError, match=wanted) as refused:
        load_checkpoint(str(path), LoadOptions(preprocessing={name: values}))
    assert refused.value.hint == f"--{name} with one value, or 3"


def test_a_single_value_of_the_users_holds_for_all_channels(tmp_path, small):
    path = write_zip(small.state_dict(), tmp_path / "w.pt")
    found = load_checkpoint(str(path), LoadOptions(preprocessing={"mean": (0.4,), "std": (0.2,)})).preprocessing
    assert (found.mean, found.std) == ((0.4,) * 3, (0.2,) * 3)


def test_statistics_of_the_file_are_brought_to_the_channels_of_its_tensors(tmp_path):
    grey = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    config = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0.2, 0.4, 0.6]}}
    folder = write_hugging_face_folder(tmp_path / "model", grey, config, safe=True)
    found = load_checkpoint(str(folder)).preprocessing
    assert (found.input_size, found.mean) == ((1, 96, 96), pytest.approx((0.4,)))


def test_a_network_that_does_not_take_the_assumed_images_is_answered_with_the_option(tmp_path, factory):
    path = write_zip(own_network().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ArchitectureError, match="does not take a 3x224x224 image") as refused:
        load_checkpoint(str(path), LoadOptions(arch=f"{factory}:build"))
    assert "--input-size" in refused.value.hint


def test_a_network_that_returns_anything_else_than_logits_is_refused(tmp_path, factory):
    tensors = {f"layer.{key}": value for key, value in own_network().state_dict().items()}
    with pytest.raises(ArchitectureError, match="does not return one row of logits"):
        load_checkpoint(
            str(write_zip(tensors, tmp_path / "w.pt")), LoadOptions(arch=f"{factory}:Pair", preprocessing=SIZE)
        )


# Hugging Face folders and hub names


@pytest.mark.parametrize("safe", [True, False])
def test_a_hugging_face_folder_in_timms_layout_loads(tmp_path, small, safe):
    config = {
        "architecture": "test_resnet",
        "num_classes": 1000,
        "num_features": 96,
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "tag": "mine",
        },
    }
    folder = write_hugging_face_folder(tmp_path / "model", small, config, safe=safe)
    loaded = load_checkpoint(str(folder))
    assert (loaded.architecture.label, loaded.source.chosen_by) == ("timm/test_resnet", "the file")
    assert loaded.preprocessing.input_size == (3, 96, 96)
    assert (loaded.preprocessing.mean, loaded.preprocessing.crop_pct) == ((0.5,) * 3, 0.95)
    weights = folder / ("model.safetensors" if safe else "pytorch_model.bin")
    assert loaded.source.bytes == weights.stat().st_size
    assert_same_weights(loaded, small.state_dict())


def test_the_arguments_in_a_folders_configuration_reach_the_architecture(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 4, "model_args": {"img_size": 32}}
    loaded = load_checkpoint(str(write_hugging_face_folder(tmp_path / "model", model, config)))
    assert (loaded.num_classes, loaded.preprocessing.input_size) == (4, (3, 32, 32))


def test_a_folder_of_another_library_is_recognised_by_its_tensors(tmp_path, small):
    config = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
    loaded = load_checkpoint(str(write_hugging_face_folder(tmp_path / "model", small, config)))
    assert loaded.source.chosen_by == "fingerprint"


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no weights") as refused:
        load_checkpoint(str(tmp_path))
    assert "model.safetensors" in refused.value.hint


def test_a_timm_hub_name_is_read_from_the_cache(tmp_path, monkeypatch, small):
    root = tmp_path / "models--timm--test_resnet.r160_in1k"
    write_hugging_face_folder(
        root / "snapshots" / COMMIT,
        small,
        {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 160, 160]}},
    )
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_checkpoint("timm/test_resnet.r160_in1k")
    assert (loaded.architecture.label, loaded.source.path) == ("timm/test_resnet", "timm/test_resnet.r160_in1k")
    assert_same_weights(loaded, small.state_dict())
    with pytest.raises(HubError, match="test_vit") as refused:
        load_checkpoint("timm/test_vit.r160_in1k")
    assert "local checkpoint" in refused.value.hint


def test_a_torchvision_hub_name_is_read_from_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = torchvision.models.squeezenet1_1(weights=None)
    write_zip(model.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    loaded = load_checkpoint("torchvision/squeezenet1_1")
    assert loaded.architecture.label == "torchvision/squeezenet1_1"
    assert loaded.preprocessing.crop_pct == pytest.approx(224 / 256)
    assert_same_weights(loaded, model.state_dict())


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration_is_refused(tmp_path, small, text):
    folder = write_hugging_face_folder(tmp_path / "model", small, {})
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("wrong", [None, "text", 3, [1, "a"], [], {"mean": "imagenet"}])
def test_a_configuration_survives_values_of_unexpected_types(tmp_path, small, wrong):
    config = {"architecture": 3, "num_classes": "many", "pretrained_cfg": wrong, "model_args": wrong, "mean": wrong}
    folder = write_hugging_face_folder(tmp_path / "model", small, config)
    assert json.loads((folder / "config.json").read_text()) == config
    assert load_checkpoint(str(folder)).architecture.label == "timm/test_resnet"
