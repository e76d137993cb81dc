import itertools

import pytest
import torch
import torchvision
from networks import relative_difference, snapshot
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import swin_transformer

from lrcompress.nn import (
    CalledMultiheadAttention,
    CalledWindowAttention,
    can_stand_in,
    expose_,
    parents_to_expose,
    twin,
)


def torchvision_swin(*, second):
    return swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 3],
        window_size=[4, 4],
        num_classes=5,
        block=swin_transformer.SwinTransformerBlockV2 if second else swin_transformer.SwinTransformerBlock,
        downsample_layer=swin_transformer.PatchMergingV2 if second else swin_transformer.PatchMerging,
    )


SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5, "img_size": 16, "patch_size": 4}

# Networks whose attention reads weights, with the size of an image and the attentions by name.
NETWORKS = {
    "torchvision's vit": (
        lambda: torchvision.models.VisionTransformer(16, 4, 2, 3, 24, 40, num_classes=5),
        (16, 16),
        [f"encoder.layers.encoder_layer_{index}.self_attention" for index in range(2)],
    ),
    "torchvision's swin": (
        lambda: torchvision_swin(second=False),
        (44, 76),
        [f"features.{stage}.{block}.attn" for stage in (1, 3) for block in range(2)],
    ),
    "torchvision's swin v2": (
        lambda: torchvision_swin(second=True),
        (44, 76),
        [f"features.{stage}.{block}.attn" for stage in (1, 3) for block in range(2)],
    ),
    "timm's beit": (lambda: Beit(**SMALL), (16, 16), [f"blocks.{block}.attn" for block in range(2)]),
    "timm's eva": (
        lambda: Eva(**SMALL, qkv_fused=True, use_rot_pos_emb=True),
        (16, 16),
        [f"blocks.{block}.attn" for block in range(2)],
    ),
    "timm's swin v2": (
        lambda: SwinTransformerV2(
            img_size=32, patch_size=4, num_classes=5, embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4
        ),
        (32, 32),
        [f"layers.{stage}.blocks.{block}.attn" for stage in range(2) for block in range(2)],
    ),
    "torch's encoder": (
        lambda: nn.Sequential(
            nn.Flatten(0, 1), nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), 2)
        ),
        (5, 12),
        ["1.layers.0.self_attn", "1.layers.1.self_attn"],
    ),
}
every_network = pytest.mark.parametrize(("make", "size", "attentions"), NETWORKS.values(), ids=NETWORKS.keys())


def randomised(module, *, seed=0):
    """The module with parameters none of which is zero, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def called(model, x):
    """The modules that a forward pass calls."""
    found = set()
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: found.add(module))
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    return found


def attend(attention, inputs, **options):
    with torch.no_grad():
        return attention(*inputs, **options)


def assert_same(actual, expected):
    """Both pairs of attended values and weights are alike."""
    assert relative_difference(actual[0], expected[0]) < 1e-6
    assert (actual[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        assert actual[1].shape == expected[1].shape
        assert relative_difference(actual[1], expected[1]) < 1e-6


SEQUENCES = {
    "self": lambda x, y, z: (x, x, x),
    "cross": lambda x, y, z: (x, y, y),
    "three": lambda x, y, z: (x, y, z),
    "equal, not the same": lambda x, y, z: (x, x.clone(), x.clone()),
    "key is query": lambda x, y, z: (x, x, x + 1),
}


@pytest.mark.parametrize("sequences", SEQUENCES.values(), ids=SEQUENCES.keys())
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_attention_is_that_of_torch(sequences, batch_first, bias):
    dense = randomised(nn.MultiheadAttention(12, 3, batch_first=batch_first, bias=bias))
    ours = CalledMultiheadAttention(dense)
    lengths = (5, 7, 7)
    inputs = sequences(*(torch.randn((2, n, 12) if batch_first else (n, 2, 12)) for n in lengths))
    for need_weights, average in itertools.product([True, False], [True, False]):
        options = {"need_weights": need_weights, "average_attn_weights": average}
        assert_same(attend(ours, inputs, **options), attend(dense, inputs, **options))


def test_what_is_returned_without_options_is_what_torch_returns():
    dense = randomised(nn.MultiheadAttention(8, 2))
    inputs = (torch.randn(3, 2, 8),) * 3
    assert_same(attend(CalledMultiheadAttention(dense), inputs), attend(dense, inputs))


def test_multi_head_attention_drops_out_what_torchs_does_in_training_only():
    dense = randomised(nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)).train()
    ours, inputs = CalledMultiheadAttention(dense), (torch.randn(2, 5, 12),) * 3
    assert ours.training
    results = []
    for attention in (ours, dense):
        torch.manual_seed(3)
        results.append(attend(attention, inputs))
    assert_same(*results)
    first, second = (attend(ours, inputs, need_weights=False)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert_same(attend(ours.eval(), inputs), attend(dense.eval(), inputs))


@pytest.mark.parametrize("training", [True, False])
def test_stand_ins_are_in_the_mode_of_what_they_stand_in_for(training):
    for stand_in in (
        CalledMultiheadAttention(nn.MultiheadAttention(12, 3).train(training)),
        CalledWindowAttention(swin_transformer.ShiftedWindowAttentionV2(12, [4, 4], [2, 2], 3).train(training)),
    ):
        assert {module.training for module in stand_in.modules()} == {training}


def test_multi_head_attention_takes_over_the_parameters_themselves():
    dense = nn.MultiheadAttention(12, 3)
    ours = CalledMultiheadAttention(dense)
    assert ours.in_proj.weight is dense.in_proj_weight
    assert ours.in_proj.bias is dense.in_proj_bias
    assert ours.out_proj.weight is dense.out_proj.weight
    assert ours.out_proj.bias is dense.out_proj.bias
    assert set(ours.state_dict()) == {"in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"}
    assert set(CalledMultiheadAttention(nn.MultiheadAttention(4, 2, bias=False)).state_dict()) == {
        "in_proj.weight", "out_proj.weight",
    }  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_calls_its_projections_once(batch_first):
    ours = CalledMultiheadAttention(nn.MultiheadAttention(12, 3, batch_first=batch_first)).eval()
    calls = []
    for layer in (ours.in_proj, ours.out_proj):
        layer.register_forward_hook(lambda module, inputs, output: calls.append(module))
    x = torch.randn(2, 5, 12)
    attend(ours, (x, x, x))
    assert calls == [ours.in_proj, ours.out_proj]


MASKS = {
    "causal": {"attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)},
    "added": {"attn_mask": torch.linspace(-2, 2, 25).reshape(5, 5)},
    "one for each head": {"attn_mask": torch.linspace(-2, 2, 150).reshape(6, 5, 5)},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False, False, True, True, True]])},
    "both": {
        "attn_mask": torch.triu(torch.full((5, 5), -torch.inf), 1),
        "key_padding_mask": torch.tensor([[0.0] * 5, [0.0, 0.0, -torch.inf, -torch.inf, 0.0]]),
    },
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_masks_hide_what_they_hide_from_torchs(mask, need_weights):
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    ours, x = CalledMultiheadAttention(theirs), torch.randn(2, 5, 12)
    for found, expected in zip(
        ours(x, x, x, need_weights=need_weights, **mask),
        theirs(x, x, x, need_weights=need_weights, **mask),
        strict=True,
    ):
        assert (found is None) == (expected is None)
        assert found is None or torch.allclose(found, expected, atol=1e-6)


def test_a_single_sequence_without_a_batch_is_attended_to():
    theirs = nn.MultiheadAttention(12, 3).eval()
    x = torch.randn(5, 12)
    for found, expected in zip(CalledMultiheadAttention(theirs)(x, x, x), theirs(x, x, x), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_different_inputs_cost_no_more_than_one_projection_of_each():
    ours = CalledMultiheadAttention(nn.MultiheadAttention(12, 3, batch_first=True)).eval()
    inputs = [torch.randn(2, 5, 12) for _ in range(3)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(*inputs)
    projections, attention = 4 * 2 * 5 * 12 * 12, 2 * 2 * 3 * 5 * 5 * 4
    assert counter.get_total_flops() == 2 * (projections + attention)


def test_the_projections_tensors_can_still_be_read():
    theirs = nn.MultiheadAttention(12, 3)
    ours = CalledMultiheadAttention(theirs)
    assert ours.in_proj_weight is theirs.in_proj_weight
    assert ours.in_proj_bias is theirs.in_proj_bias


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_module_with_hooks_keeps_its_place(kind):
    attention = nn.MultiheadAttention(12, 3)
    assert can_stand_in(attention)
    getattr(attention, kind)(lambda *_: None)
    assert not can_stand_in(attention)


# Sizes that windows of 4×4 or 2×4 divide and that they do not, and images no larger than a window.
IMAGES = [(8, 8), (9, 14), (4, 12), (3, 3), (8, 5), (1, 9)]
WINDOWS = {
    "no shift": ([4, 4], [0, 0]),
    "half a window": ([4, 4], [2, 2]),
    "less": ([4, 4], [1, 3]),
    "not square": ([2, 4], [1, 2]),
    "along the rows": ([4, 4], [2, 0]),
    "along the columns": ([2, 4], [0, 2]),
}
VERSIONS = {"v1": swin_transformer.ShiftedWindowAttention, "v2": swin_transformer.ShiftedWindowAttentionV2}


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize("kind", VERSIONS.values(), ids=VERSIONS.keys())
def test_window_attention_is_that_of_torchvision(kind, window, image):
    dense = randomised(kind(12, *window, 3))
    x = torch.randn(2, *image, 12)
    with torch.no_grad():
        assert relative_difference(CalledWindowAttention(dense)(x), dense(x)) < 1e-5


@pytest.mark.parametrize("kind", VERSIONS.values(), ids=VERSIONS.keys())
def test_window_attention_without_biases_is_that_of_torchvision(kind):
    dense = randomised(kind(12, [4, 4], [2, 2], 3, qkv_bias=False, proj_bias=False))
    x = torch.randn(2, 9, 14, 12)
    with torch.no_grad():
        assert relative_difference(CalledWindowAttention(dense)(x), dense(x)) < 1e-5


def test_logit_scales_of_the_second_version_are_limited_as_in_torchvision():
    dense = randomised(swin_transformer.ShiftedWindowAttentionV2(12, [4, 4], [2, 2], 3))
    with torch.no_grad():
        dense.logit_scale.fill_(6.0)  # exp(6) is above the limit of 100
        x = torch.randn(2, 8, 8, 12)
        assert relative_difference(CalledWindowAttention(dense)(x), dense(x)) < 1e-5


@pytest.mark.parametrize("kind", VERSIONS.values(), ids=VERSIONS.keys())
@pytest.mark.parametrize("rates", [{"attention_dropout": 0.5}, {"dropout": 0.5}], ids=lambda rates: next(iter(rates)))
def test_window_attention_drops_out_what_torchvisions_does_in_training_only(kind, rates):
    dense = randomised(kind(12, [4, 4], [2, 2], 3, **rates)).train()
    ours, x, results = CalledWindowAttention(dense), torch.randn(2, 8, 8, 12), []
    assert ours.training
    for attention in (ours, dense):
        torch.manual_seed(3)
        results.append(attention(x))
    assert relative_difference(*results) < 1e-5
    assert relative_difference(ours.eval()(x), dense.eval()(x)) < 1e-5
    assert relative_difference(results[0], ours(x)) > 1e-2


@pytest.mark.parametrize("kind", VERSIONS.values(), ids=VERSIONS.keys())
def test_window_attention_takes_over_all_tensors_but_the_bias_that_is_not_used(kind):
    dense = randomised(kind(12, [4, 4], [2, 2], 3))
    before, ours = snapshot(dense), CalledWindowAttention(dense)
    assert ours.state_dict().keys() == dense.state_dict().keys()
    ours_by_name = dict(ours.named_parameters()) | dict(ours.named_buffers())
    for name, tensor in (dict(dense.named_parameters()) | dict(dense.named_buffers())).items():
        if name != "qkv.bias" or kind is VERSIONS["v1"]:
            assert ours_by_name[name] is tensor
    if kind is VERSIONS["v2"]:
        query, key, value = ours.qkv.bias.chunk(3)
        assert not key.any()
        assert torch.equal(query, dense.qkv.bias[:12])
        assert torch.equal(value, dense.qkv.bias[24:])
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


@every_network
def test_a_network_with_stand_ins_gives_the_same_logits_and_calls_every_linear_layer(make, size, attentions):
    model = randomised(make())
    x = torch.randn(2, 3, *size)
    unread = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert not called(model, x).issuperset(unread)  # or there is nothing to expose
    exposed = expose_(twin(model))
    linear = {module for module in exposed.modules() if isinstance(module, nn.Linear)}
    assert linear
    assert linear <= called(exposed, x)
    with torch.no_grad():
        assert relative_difference(exposed(x), model(x)) < 1e-5
    assert not any(module.training for module in exposed.modules())


@every_network
def test_exposing_a_twin_leaves_the_network_as_it_is(make, size, attentions):
    model = randomised(make())
    x, modules, before = torch.randn(1, 3, *size), dict(model.named_modules()), snapshot(model)
    attributes = {name: dict(vars(module)) for name, module in modules.items()}
    with torch.no_grad():
        logits = model(x)
        expose_(twin(model))(x)
        assert torch.equal(model(x), logits)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, module in modules.items():
        assert vars(module).keys() == attributes[name].keys()
        assert getattr(module, "qkv_bias_separate", False) == attributes[name].get("qkv_bias_separate", False)


@every_network
def test_tensors_keep_their_names_and_values_but_for_the_input_projection_of_torch(make, size, attentions):
    model = randomised(make())
    expected = {}
    for name, value in model.state_dict().items():
        expected[name.replace("in_proj_", "in_proj.")] = value
    exposed = expose_(twin(model)).state_dict()
    assert exposed.keys() == expected.keys()
    for name, value in exposed.items():
        if not (isinstance(model, swin_transformer.SwinTransformer) and name.endswith("qkv.bias")):
            assert value.data_ptr() == expected[name].data_ptr()


@every_network
def test_the_modules_that_need_a_stand_in_are_the_attentions(make, size, attentions):
    model = make()
    assert [name for name, module in model.named_modules() if can_stand_in(module)] == attentions
    layers = [name for name, module in expose_(twin(model)).named_modules() if isinstance(module, nn.Linear)]
    assert parents_to_expose(model, layers) == set(attentions)
    one = [name for name in layers if name.startswith(attentions[1])]
    assert parents_to_expose(model, one) == {attentions[1]}
    elsewhere = [name for name in layers if not name.startswith(tuple(attentions))]
    assert parents_to_expose(model, elsewhere) == set()


@every_network
def test_only_named_modules_are_replaced(make, size, attentions):
    model = expose_(randomised(make()), attentions[:1])
    left = [name for name, module in model.named_modules() if can_stand_in(module)]
    assert left == attentions[1:]
    assert parents_to_expose(model, [f"{attentions[0]}.qkv", f"{attentions[0]}.in_proj"]) == set()


@every_network
def test_exposing_twice_changes_nothing_more(make, size, attentions):
    model = expose_(randomised(make()))
    modules = dict(model.named_modules())
    assert dict(expose_(model).named_modules()) == modules


def test_the_model_itself_is_returned_and_changed():
    model = NETWORKS["torchvision's vit"][0]()
    assert expose_(model) is model
    assert isinstance(model.encoder.layers[0].self_attention, CalledMultiheadAttention)


def test_a_network_that_calls_its_layers_is_left_alone():
    model = VisionTransformer(**SMALL)
    modules = dict(model.named_modules())
    assert dict(expose_(model).named_modules()) == modules
    assert parents_to_expose(model, modules) == set()


class OwnAttention(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(8, 2, add_bias_kv=True),
        nn.MultiheadAttention(8, 2, add_zero_attn=True),
        nn.MultiheadAttention(8, 2, kdim=4),
        nn.MultiheadAttention(8, 2, vdim=4),
        OwnAttention(8, 2),
        CalledMultiheadAttention(nn.MultiheadAttention(8, 2)),
        CalledWindowAttention(swin_transformer.ShiftedWindowAttention(8, [2, 2], [1, 1], 2)),
        type("Own", (swin_transformer.ShiftedWindowAttention,), {})(8, [2, 2], [1, 1], 2),
        Beit(**SMALL, qkv_bias=False).blocks[0].attn,
        nn.Linear(8, 24),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_computes_something_else_or_calls_its_layers_has_no_stand_in(module):
    assert not can_stand_in(module)


def test_a_stand_in_needs_no_values():
    model = expose_(NETWORKS["torchvision's swin v2"][0]().to("meta"))
    assert model(torch.zeros(1, 3, 44, 76, device="meta")).shape == (1, 5)
