import pytest
import timm
import torch
import torchvision
from networks import tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.plan import find_layers

CNN_SIZE, MLP_SIZE = (3, 8, 8), (3, 4, 4)


def reasons(model, size, **options):
    return {candidate.name: candidate.reason for candidate in find_layers(model, size, **options)}


def test_every_weight_matrix_is_listed_in_the_networks_order_with_its_reason():
    assert reasons(tiny_cnn(), CNN_SIZE) == {
        "0": "the first layer stays dense (--include-first)",
        "3": "",
        "5": "depthwise convolution",
        "6": "3 groups",
        "9": "",
        "11": "the classifier stays dense (--include-classifier)",
    }


def test_first_layer_and_classifier_are_options():
    assert reasons(tiny_mlp(), MLP_SIZE, include_first=True, include_classifier=True) == {"1": "", "4": "", "6": ""}


class OutOfOrder(nn.Module):
    """Defines its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.head, self.middle, self.stem = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x):
        return self.head(self.middle(self.stem(x.flatten(1))))


def test_first_and_last_are_those_of_the_forward_pass_not_of_the_definition():
    found = reasons(OutOfOrder().eval(), (1, 2, 2))
    assert "classifier" in found["head"]
    assert "first" in found["stem"]
    assert found["middle"] == ""


class ReadsWeight(nn.Module):
    """Reads the weight of a layer without calling the layer, and never uses another one."""

    def __init__(self):
        super().__init__()
        self.stem, self.read, self.unused, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = nn.functional.linear(self.stem(x.flatten(1)), self.read.weight)
        return self.head(x)


def test_a_layer_that_is_never_called_stays_dense():
    found = reasons(ReadsWeight().eval(), (1, 2, 2))
    assert found["read"].startswith("never called by the forward pass")
    assert found["unused"].startswith("never called by the forward pass")


class Tied(nn.Module):
    """Uses one module under two names, and one weight in two modules."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c, self.head = (nn.Linear(4, 4) for _ in range(5))
        self.alias = self.a
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.head(self.c(self.b(self.alias(self.a(self.stem(x.flatten(1)))))))


def test_shared_modules_and_shared_weights_stay_dense():
    found = reasons(Tied().eval(), (1, 2, 2))
    assert found["a"] == "its weight is shared with `alias`"
    assert found["b"] == "its weight is shared with `c`"
    assert found["c"] == "its weight is shared with `b`"


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_layer_with_hooks_stays_dense(kind):
    model = tiny_mlp()
    getattr(model[4], kind)(lambda *_: None)
    assert reasons(model, MLP_SIZE)["4"] == "it has forward hooks"


def test_probing_leaves_no_hook_and_no_gradient_behind():
    model = tiny_mlp()
    before = len(torch.nn.modules.module._global_forward_hooks)
    find_layers(model, MLP_SIZE)
    assert len(torch.nn.modules.module._global_forward_hooks) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_hook_is_left_behind_where_the_forward_pass_fails():
    before = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(RuntimeError):
        find_layers(tiny_mlp(), (3, 5, 5))
    assert len(torch.nn.modules.module._global_forward_hooks) == before


def test_the_separate_projections_of_a_vision_transformer_are_all_listed():
    model = timm.create_model("test_vit", img_size=32, num_classes=3).eval()
    found = reasons(model, (3, 32, 32))
    for block in range(len(model.blocks)):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert found[f"blocks.{block}.{layer}"] == ""
    assert "first" in found["patch_embed.proj"]


def test_torchvision_layers_whose_weight_is_read_by_their_parent_stay_dense():
    block = torchvision.models.swin_transformer.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2], num_heads=[2], window_size=[2, 2], num_classes=3
    )
    found = reasons(block.eval(), (3, 8, 8))
    attention = {name: reason for name, reason in found.items() if ".attn." in name and not name.endswith("_table")}
    assert len(attention) == 4
    assert all(reason.startswith("never called") for reason in attention.values())


def test_subclasses_and_other_kinds_are_named():
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.Flatten(), Scaled(8, 4), nn.Linear(4, 2))
    found = reasons(model.eval(), (1, 2, 2))
    assert found["1"] == "layers of type ConvTranspose2d are not factorised in this version"
    assert found["3"] == "layers of type Scaled are not factorised in this version"


def test_layers_are_excluded_by_patterns():
    model = nn.ModuleDict({"a": tiny_mlp()})["a"]
    found = reasons(model, (3, 4, 4), include_first=True, exclude=["4"])
    assert (found["1"], found["4"]) == ("", "excluded by the pattern `4`")
    assert reasons(model, (3, 4, 4), include_first=True, exclude=["[14]"])["1"] == "excluded by the pattern `[14]`"


def test_a_pattern_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(OptionError, match=r"`5` matches no layer") as caught:
        reasons(tiny_mlp(), (3, 4, 4), exclude=["4", "5"])
    assert "4" in caught.value.hint
