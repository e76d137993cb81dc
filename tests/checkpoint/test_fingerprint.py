import pytest
import timm
import torch
import torchvision

from lrcompress.checkpoint.fingerprint import (
    find_architectures,
    find_same_names,
    load_table,
    table_versions,
)
from lrcompress.checkpoint.make_fingerprints import changed_dimensions, fingerprint
from lrcompress.checkpoint.make_fingerprints import main as make_table


def shapes_of(framework, name, **arguments):
    """Builds the network as its framework's users do."""
    with torch.device("meta"):
        if framework == "timm":
            model = timm.create_model(name, **arguments)
        else:
            model = torchvision.models.get_model(name, weights=None, **arguments)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


NETWORKS = [
    "timm/resnet18",
    "timm/resnet50",
    "timm/vit_tiny_patch16_224",
    "timm/efficientnet_b0",
    "timm/tf_efficientnet_lite0",
    "timm/convnext_tiny",
    "timm/swin_tiny_patch4_window7_224",
    "timm/densenet121",
    "torchvision/mobilenet_v2",
    "torchvision/efficientnet_b0",
    "torchvision/vgg11",
    "torchvision/squeezenet1_1",
    "torchvision/vit_b_16",
]


@pytest.mark.parametrize("label", NETWORKS)
def test_networks_are_recognised(label):
    assert label in find_architectures(shapes_of(*label.split("/")))


@pytest.mark.parametrize(("label", "classes"), [(label, 7) for label in NETWORKS] + [("timm/resnet18", 1)])
def test_networks_are_recognised_whatever_the_number_of_classes(label, classes):
    shapes = shapes_of(*label.split("/"), num_classes=classes)
    assert label in find_architectures(shapes)
    assert load_table()[label].read_arguments(shapes)["num_classes"] == classes


@pytest.mark.parametrize("label", [label for label in NETWORKS if label.startswith("timm/")])
@pytest.mark.parametrize("channels", [1, 4])
def test_networks_are_recognised_whatever_the_number_of_input_channels(label, channels):
    shapes = shapes_of(*label.split("/"), in_chans=channels)
    assert label in find_architectures(shapes)
    assert load_table()[label].read_arguments(shapes) == {"num_classes": 1000, "in_chans": channels}


@pytest.mark.parametrize(
    ("label", "others"),
    [
        ("timm/resnet50", ["timm/resnetaa50", "timm/resnetblur50", "torchvision/resnet50"]),
        ("timm/resnet18", ["torchvision/resnet18"]),
        ("timm/efficientnet_b0", ["timm/tf_efficientnet_b0"]),
    ],
)
def test_of_several_architectures_the_plain_one_comes_first(label, others):
    found = find_architectures(shapes_of(*label.split("/")))
    assert found[0] == label
    assert set(others) <= set(found)
    frameworks = [name.split("/")[0] for name in found]
    assert frameworks == sorted(frameworks)


def test_vits_and_deits_of_the_same_size_cannot_be_told_apart():
    found = find_architectures(shapes_of("timm", "vit_base_patch16_224"))
    assert {"timm/vit_base_patch16_224", "timm/deit_base_patch16_224"} <= set(found)


def test_batch_counters_do_not_matter():
    shapes = shapes_of("timm", "resnet18")
    without = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    assert len(without) < len(shapes)
    assert find_architectures(without) == find_architectures(shapes)


def test_the_order_of_the_tensors_does_not_matter():
    shapes = shapes_of("timm", "resnet18")
    assert find_architectures(dict(reversed(shapes.items()))) == find_architectures(shapes)


CHANGES = {
    "a missing tensor": lambda shapes: shapes.pop("layer1.0.conv1.weight"),
    "one more tensor": lambda shapes: shapes.update({"layer5.weight": (3,)}),
    "another width": lambda shapes: shapes.update({"layer1.0.conv1.weight": (65, 64, 3, 3)}),
    "another kernel": lambda shapes: shapes.update({"layer1.0.conv1.weight": (64, 64, 5, 5)}),
    "other features before the classifier": lambda shapes: shapes.update({"fc.weight": (1000, 511)}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_tensors_are_not_recognised(change):
    shapes = shapes_of("timm", "resnet18")
    change(shapes)
    assert find_architectures(shapes) == []


def test_architectures_with_the_same_names_are_found_for_messages():
    shapes = shapes_of("timm", "resnet18") | {"layer1.0.conv1.weight": (65, 64, 3, 3)}
    assert find_same_names(shapes)[0] == "timm/resnet18"
    assert find_same_names({"a": (1,)}) == []


def test_the_shipped_table_covers_both_frameworks_and_says_for_which_versions():
    labels = set(load_table())
    assert set(table_versions()) == {"timm", "torchvision"}
    assert sum(label.startswith("timm/") for label in labels) > 1000
    assert sum(label.startswith("torchvision/") for label in labels) > 60


@pytest.mark.parametrize("label", ["timm/resnet18", "timm/test_vit", "torchvision/mobilenet_v2"])
def test_the_generator_makes_the_shipped_entry_again(label):
    made, shipped = fingerprint(*label.split("/")), load_table()[label]
    assert (made["keys"], made["shapes"]) == (shipped.keys, shipped.shapes)
    assert [tuple(pair) for pair in made["classes"]] == list(shipped.classes)
    assert [tuple(triple) for triple in made["channels"]] == list(shipped.channels)


def test_an_entry_says_where_classes_and_channels_are():
    entry = load_table()["timm/resnet18"]
    assert set(entry.classes) == {("fc.weight", 0), ("fc.bias", 0)}
    assert entry.channels == (("conv1.weight", 1, 1),)


def test_changed_dimensions_are_named():
    one = {"a": (3, 4), "b": (5,)}
    assert changed_dimensions(one, {"a": (3, 6), "b": (7,)}) == [("a", 1), ("b", 0)]
    assert changed_dimensions(one, {"a": (3, 6)}) is None
    assert changed_dimensions(one, {"a": (3, 4, 1), "b": (5,)}) is None


def test_the_generator_writes_a_table_and_names_what_it_leaves_out(tmp_path, monkeypatch, capsys):
    names = {"timm": frozenset({"test_resnet", "no_such_network"}), "torchvision": frozenset({"alexnet"})}
    monkeypatch.setattr("lrcompress.checkpoint.make_fingerprints.known_architectures", lambda: names)
    monkeypatch.setattr("sys.argv", ["make_fingerprints", "--output", str(tmp_path / "table.json")])
    make_table()
    lines = (tmp_path / "table.json").read_text().splitlines()
    assert f'"timm": "{timm.__version__}"' in lines[0]
    assert [line.split(":")[0] for line in lines[2:4]] == ['"timm/test_resnet"', '"torchvision/alexnet"']
    assert "left out timm/no_such_network" in capsys.readouterr().err
