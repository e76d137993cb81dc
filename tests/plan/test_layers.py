import pytest
import timm
import torch
import torchvision
from networks import tiny_cnn, tiny_mlp
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.plan import find_layers
from lrcompress.schemes import Call

CNN_SIZE, MLP_SIZE = (3, 8, 8), (3, 4, 4)


def reasons(model, size, **options):
    return {candidate.name: candidate.reason for candidate in find_layers(model, size, **options)}


def test_every_weight_matrix_is_listed_in_the_networks_order_with_its_reason():
    assert reasons(tiny_cnn(), CNN_SIZE) == {
        "0": "the first layer stays dense (--include-first)",
        "3": "",
        "5": "depthwise convolution",
        "6": "",
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


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    attention = nn.TransformerEncoder(layer, 1)
    return nn.Sequential(nn.Flatten(2), nn.Linear(16, 16), attention, nn.Flatten(), nn.Linear(48, 5)).eval()


def swin(version=1):
    block = torchvision.models.swin_transformer.SwinTransformerBlock
    merge = torchvision.models.swin_transformer.PatchMerging
    if version == 2:
        block = torchvision.models.swin_transformer.SwinTransformerBlockV2
        merge = torchvision.models.swin_transformer.PatchMergingV2
    torch.manual_seed(0)
    return torchvision.models.swin_transformer.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2], num_heads=[2], window_size=[2, 2], num_classes=3, block=block,
        downsample_layer=merge,
    ).eval()  # fmt: skip


def timm_network(name, size=32, **arguments):
    return lambda: timm.create_model(name, num_classes=3, img_size=size, **arguments).eval()


# Networks whose attention reads weights instead of calling layers, the size of their images, and those layers.
READING = {
    "MultiheadAttention": (
        encoder, (3, 4, 4), ["2.layers.0.self_attn.in_proj", "2.layers.0.self_attn.out_proj"],
    ),
    "torchvision Swin": (
        swin, (3, 8, 8), [f"features.1.{block}.attn.{name}" for block in (0, 1) for name in ("qkv", "proj")],
    ),
    "torchvision Swin v2": (
        lambda: swin(2), (3, 8, 8), [f"features.1.{block}.attn.{name}" for block in (0, 1) for name in ("qkv", "proj")],
    ),
    "BEiT": (
        timm_network("beit_base_patch16_224", embed_dim=32, depth=1, num_heads=2), (3, 32, 32),
        ["blocks.0.attn.qkv", "blocks.0.attn.proj"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "size", "names"), READING.values(), ids=READING.keys())
def test_layers_whose_weight_is_read_by_their_parent_can_be_factorised(make, size, names):
    model = make()
    before = {name: type(module) for name, module in model.named_modules()}
    found = {candidate.name: candidate for candidate in find_layers(model, size)}
    for name in names:
        assert found[name].reason == ""
        assert type(found[name].layer) is nn.Linear
        assert len(found[name].calls) == 1
    # The network that was looked at is not the one that was changed.
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_stand_in_is_told_by_the_class_it_stands_in_for():
    found = {candidate.name: candidate for candidate in find_layers(swin(), (3, 8, 8))}
    table = found["features.1.0.attn.relative_position_bias_table"]
    assert table.kind == "ShiftedWindowAttention"
    assert table.reason == "a parameter that ShiftedWindowAttention reads directly"
    for make, size, _ in READING.values():
        assert not any("Called" in f"{one.kind} {one.reason}" for one in find_layers(make(), size))
        assert {one.kind for one in find_layers(make(), size) if not one.reason} == {"Linear"}


def test_the_projection_of_an_attention_has_the_weight_that_the_attention_reads():
    model = encoder()
    found = {candidate.name: candidate for candidate in find_layers(model, (3, 4, 4))}
    attention = model[2].layers[0].self_attn
    candidate = found["2.layers.0.self_attn.in_proj"]
    assert candidate.weight_shape == (48, 16)
    assert candidate.layer.weight.data_ptr() == attention.in_proj_weight.data_ptr()
    assert candidate.calls == (Call(3, (), ()),)


class SharedScale(nn.Linear):
    """A layer that computes something else with its weight."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / 2, self.bias)


class Annotated(nn.Linear):
    """A layer that computes what its base class does."""

    note = "nothing more"


class Measured(nn.Conv2d):
    """A convolution with a buffer, which its forward pass might use."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("scale", torch.ones(1))


def test_subclasses_are_factorised_where_they_compute_what_their_base_does():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), SharedScale(8, 8), Annotated(8, 8), nn.Unflatten(1, (2, 2, 2)),
        Measured(2, 2, 1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    found = {candidate.name: candidate for candidate in find_layers(model.eval(), (3, 2, 2))}
    assert found["2"].reason == "SharedScale may compute something else with its weight than its base class"
    assert found["2"].layer is None
    assert found["3"].reason == ""
    assert (type(found["3"].layer), found["3"].kind) == (nn.Linear, "Annotated")
    assert found["5"].reason == "Measured may compute something else with its weight than its base class"


STANDARDISED = [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]


@pytest.mark.parametrize("kind", [*STANDARDISED, Conv2dSame])
def test_known_kinds_of_convolutions_are_candidates_as_the_plain_layer_they_are_equal_to(kind):
    torch.manual_seed(0)
    layer = kind(4, 6, 3, stride=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Flatten(), nn.LazyLinear(2)).eval()
    images = torch.randn(2, 4, 9, 9)
    model(torch.zeros(1, 3, 9, 9))
    found = {candidate.name: candidate for candidate in find_layers(model, (3, 9, 9))}
    candidate = found["1"]
    assert (candidate.reason, candidate.kind, candidate.weight_shape) == ("", kind.__name__, (6, 4, 3, 3))
    assert type(candidate.layer).__module__ in ("torch.nn.modules.conv", "lrcompress.nn.geometry")
    assert torch.allclose(candidate.layer(images), layer(images), atol=1e-5)
    # The gain of a scaled one becomes a part of the weight, and goes with it.
    assert candidate.parameters == 6 * 4 * 9 + (6 if hasattr(layer, "gain") else 0)
    assert found.keys() == {"0", "1", "3"}


def test_grouped_and_transposed_convolutions_are_candidates_and_depthwise_ones_are_not():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 6, 3, stride=2),
        nn.ConvTranspose2d(6, 6, 3, groups=6), nn.Conv2d(6, 12, 1, groups=6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip
    found = {candidate.name: candidate for candidate in find_layers(model.eval(), (3, 6, 6))}
    assert (found["1"].reason, found["1"].weight_shape) == ("", (8, 2, 3, 3))
    assert (found["2"].reason, found["2"].weight_shape) == ("", (8, 6, 3, 3))
    assert found["2"].calls == (Call(1, (4, 4), (9, 9)),)
    assert found["3"].reason == found["4"].reason == "depthwise convolution"


class Recurrent(nn.Module):
    """Reads a sequence of pixels with an LSTM, and looks its classes up."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.names = nn.Embedding(4, 5)
        self.mix = nn.Bilinear(5, 5, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        states, _ = self.lstm(self.stem(x.flatten(2).transpose(1, 2)))
        last = states[:, -1]
        return self.head(self.mix(last, last + self.names(torch.zeros(1, dtype=torch.long, device=x.device))))


def test_other_modules_with_matrices_stay_dense_and_are_named():
    found = reasons(Recurrent().eval(), (3, 2, 2))
    assert found["lstm.weight_ih_l0"] == found["lstm.weight_hh_l0"] == "a parameter that LSTM reads directly"
    assert found["names"] == "layers of type Embedding are not factorised in this version"
    assert found["mix"] == "layers of type Bilinear are not factorised in this version"


def test_a_table_of_positions_is_a_parameter_of_its_module():
    found = reasons(timm_network("test_vit")(), (3, 32, 32))
    assert found["pos_embed"] == "a parameter that VisionTransformer reads directly"


class Twice(nn.Module):
    """Calls a layer twice, once for a batch that it has made larger."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        first = self.conv(x)
        windows = torch.cat([x[..., :3, :3], x[..., -3:, -3:]])
        second = self.conv(windows).mean(0, keepdim=True)
        return self.head(first.mean((2, 3)) + second.mean((2, 3)))


def test_all_calls_of_a_layer_are_recorded_with_their_sizes():
    found = {candidate.name: candidate for candidate in find_layers(Twice().eval(), (3, 9, 11))}
    assert found["conv"].calls == (Call(1, (7, 9), (3, 4)), Call(2, (3, 3), (1, 1)))
    assert found["head"].calls == (Call(1, (), ()),)


class ByKeyword(nn.Module):
    """Calls its layer by the name of the argument."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.inner(input=self.stem(x.flatten(1))))


def test_a_call_by_keyword_is_recorded_too():
    found = {candidate.name: candidate for candidate in find_layers(ByKeyword().eval(), (3, 2, 2))}
    assert found["inner"].calls == (Call(1, (), ()),)


def test_the_networks_own_values_are_not_needed():
    """Probing a large network costs no time: its weights are not even there."""
    with torch.device("meta"):
        model = tiny_mlp()
    assert reasons(model, MLP_SIZE)["4"] == ""


class Deciding(nn.Module):
    """Looks at the values of an image."""

    def __init__(self):
        super().__init__()
        self.bright, self.dark, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(self.bright(x) if x.mean() > 0 else self.dark(x))


def test_a_network_that_looks_at_values_is_probed_with_values():
    model = Deciding().train()
    found = reasons(model, (1, 2, 2), include_first=True)
    assert found["dark"] == ""
    assert found["bright"].startswith("never called")
    assert model.training


def test_layers_are_excluded_by_patterns():
    model = nn.ModuleDict({"a": tiny_mlp()})["a"]
    found = reasons(model, (3, 4, 4), include_first=True, exclude=["4"])
    assert (found["1"], found["4"]) == ("", "excluded by the pattern `4`")
    assert reasons(model, (3, 4, 4), include_first=True, exclude=["[14]"])["1"] == "excluded by the pattern `[14]`"


def test_a_pattern_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(OptionError, match=r"`5` matches no layer") as caught:
        reasons(tiny_mlp(), (3, 4, 4), exclude=["4", "5"])
    assert "4" in caught.value.hint


def test_only_what_puts_out_logits_is_a_classifier():
    """The last convolution has as many channels as there are classes, and is none."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 5)
    ).eval()
    found = reasons(model, (3, 8, 8))
    assert found["1"] == ""
    assert "classifier" in found["4"]


def test_a_last_convolution_that_is_averaged_is_the_classifier():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert "classifier" in reasons(model, (3, 8, 8))["1"]


def test_a_weight_that_a_hook_computes_is_in_the_list():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    model = nn.Sequential(*model, nn.Linear(8, 4)).eval()
    assert any("original" in name and "reads directly" in reason for name, reason in reasons(model, (3, 2, 2)).items())


class ReadsAttention(nn.Module):
    """Asks its attention for something that only torch's own has."""

    def __init__(self):
        super().__init__()
        self.stem, self.attention, self.head = nn.Linear(4, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x.flatten(1).unflatten(1, (-1, 4)))
        assert self.attention.add_zero_attn is False
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_a_network_that_does_not_run_with_stand_ins_is_planned_without_them():
    found = reasons(ReadsAttention().eval(), (3, 2, 2))
    assert found["attention.out_proj"].startswith("never called")
    assert "reads directly" in found["attention.in_proj_weight"]


class TwoHeads(nn.Module):
    """Two classifiers whose logits are averaged, and before them a bottleneck as wide as the logits."""

    def __init__(self):
        super().__init__()
        self.stem, self.narrow, self.wide = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(3, 8)
        self.head, self.other_head = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.wide(self.narrow(self.stem(x.flatten(1))))
        return (self.head(x) + self.other_head(x)) / 2


def test_all_heads_are_classifiers_and_what_is_as_wide_further_ahead_is_none():
    found = reasons(TwoHeads().eval(), (1, 2, 2))
    assert {name for name, reason in found.items() if "classifier" in reason} == {"head", "other_head"}
    assert found["narrow"] == found["wide"] == ""
