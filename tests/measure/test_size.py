import pytest
import timm
import torch
from networks import tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.measure import count_macs, count_parameters, tensor_bytes

TABLE = {
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2), 12 * 7 + 7, 12 * 7),
    "linear, no bias": (nn.Sequential(nn.Flatten(), nn.Linear(12, 7, bias=False)), (3, 2, 2), 12 * 7, 12 * 7),
    "3x3": (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 4), 5 * 3 * 9 + 5, 5 * 3 * 9 * 6 * 4),
    "stride": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 6, 4), 5 * 3 * 9 + 5, 5 * 3 * 9 * 3 * 2),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 5), 4 * 9, 4 * 9 * 3 * 3),
    "groups": (nn.Conv2d(4, 6, 1, groups=2), (4, 5, 5), 6 * 2 + 6, 6 * 2 * 25),
    "element-wise": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (3, 4, 4), 6, 0),
    "applied twice": (nn.Sequential(*[nn.Linear(4, 4)] * 2), (1, 1, 4), 4 * 4 + 4, 2 * 4 * 4),
}


@pytest.mark.parametrize(("model", "size", "parameters", "macs"), TABLE.values(), ids=TABLE.keys())
def test_counts_are_those_made_by_hand(model, size, parameters, macs):
    assert count_parameters(model) == parameters
    assert count_macs(model.eval(), size) == macs


def test_a_whole_network_is_counted_layer_by_layer():
    macs = 8 * 3 * 9 * 64 + 12 * 8 * 9 * 16 + 12 * 9 * 16 + 12 * 4 * 9 * 16 + 12 * 16 + 16 * 4
    parameters = (8 * 27 + 8) + 16 + (12 * 72 + 12) + (12 * 9 + 12) + (12 * 36 + 12) + (12 * 16 + 16) + (16 * 4 + 4)
    assert count_macs(tiny_cnn(), (3, 8, 8)) == macs
    assert count_parameters(tiny_cnn()) == parameters


def test_attention_is_counted():
    model = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
    d, heads_times_width, blocks = model.embed_dim, model.embed_dim, len(model.blocks)
    patches = (32 // 16) ** 2
    tokens = patches + 1
    hidden = model.blocks[0].mlp.fc1.out_features
    per_block = tokens * d * (3 * d + d + 2 * hidden) + 2 * tokens * tokens * heads_times_width
    by_hand = patches * 3 * 16 * 16 * d + blocks * per_block + d * 5
    assert count_macs(model, (3, 32, 32)) == by_hand


def test_counting_does_not_depend_on_the_type_of_the_weights():
    assert count_macs(tiny_cnn().double(), (3, 8, 8)) == count_macs(tiny_cnn(), (3, 8, 8))


def test_bytes_are_those_of_all_tensors_buffers_included():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert tensor_bytes(model) == 4 * (6 + 2) + 4 * (2 + 2 + 2 + 2) + 8  # the counter of batches is an int64
    assert tensor_bytes(tiny_mlp(), torch.bfloat16) * 2 == tensor_bytes(tiny_mlp())


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_type_that_is_stored_not_of_the_one_in_memory(held):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(held)
    assert tensor_bytes(model, torch.bfloat16) == 2 * (6 + 2) + 2 * (2 + 2 + 2 + 2) + 8  # integers stay as they are
    assert tensor_bytes(model, torch.float32) == 4 * (6 + 2) + 4 * (2 + 2 + 2 + 2) + 8
