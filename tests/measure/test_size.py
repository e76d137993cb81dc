import pytest
import timm
import torch
import torchvision
from networks import snapshot, tiny_cnn, tiny_mlp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.measure import count_macs, count_parameters, run_without_values, tensor_bytes

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


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_convolutional_network_counts_as_torch_counts_it_with_values(name):
    model = timm.create_model(name, num_classes=5).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64))
    assert count_macs(model, (3, 64, 64)) == counter.get_total_flops() // 2


def test_torchs_own_attention_is_counted():
    model = torchvision.models.VisionTransformer(16, 4, 2, 3, 24, 40, num_classes=5)
    d, hidden, tokens = 24, 40, 4 * 4 + 1
    per_block = tokens * d * (3 * d + d + 2 * hidden) + 2 * tokens * tokens * d
    assert count_macs(model, (3, 16, 16)) == 16 * 3 * 4 * 4 * d + 2 * per_block + d * 5


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


class NeedsValues(nn.Module):
    """Looks at the values of its features, which there are not without values."""

    def __init__(self):
        super().__init__()
        self.scale, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.dropout = nn.Dropout()

    def forward(self, x):
        features = self.norm(self.scale(x)).mean((2, 3))
        if features.abs().max().item() < 0:
            raise AssertionError
        return self.head(self.dropout(features))


class KeepsATensor(nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer, and stays where it is."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Conv2d(3, 4, 1), torch.ones(3, 1, 1)

    def forward(self, x):
        return self.layer(x + self.table)


def probe(network, image):
    """What a forward pass finds: (output's device, its shape, modes of all modules, whether gradients are taken)."""
    y = network(image)
    return y.device.type, tuple(y.shape), {module.training for module in network.modules()}, y.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_a_network_runs_without_values_in_eval_mode_and_without_gradients(training):
    found = run_without_values(tiny_cnn().train(training), (3, 8, 8), probe)
    assert found == ("meta", (1, 4), {False}, False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [NeedsValues, KeepsATensor])
def test_a_network_that_needs_values_runs_with_them(make, training):
    device, shape, modes, gradients = run_without_values(make().train(training), (3, 8, 8), probe)
    assert (device, shape[0], modes, gradients) == ("cpu", 1, {False}, False)


def test_a_network_that_needs_values_is_counted_all_the_same():
    assert count_macs(NeedsValues(), (3, 8, 8)) == 4 * 3 * 9 * 36 + 4 * 2
    assert count_macs(KeepsATensor(), (3, 8, 8)) == 4 * 3 * 64


def set_modes_(model, mode):
    """All one way, or one module apart from the network it belongs to."""
    model.train(mode != "evaluating")
    if mode == "mixed":
        next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()


@pytest.mark.parametrize("mode", ["training", "evaluating", "mixed"])
@pytest.mark.parametrize("make", [tiny_cnn, NeedsValues])
def test_neither_modes_nor_tensors_are_changed_with_values_or_without(make, mode):
    model = make()
    set_modes_(model, mode)
    next(model.parameters()).requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    before, parameters = snapshot(model), dict(model.named_parameters())
    count_macs(model, (3, 8, 8))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in parameters.values())
    assert {name: parameter.requires_grad for name, parameter in parameters.items()} == wanted


@pytest.mark.parametrize("training", [True, False])
def test_what_is_wrong_with_a_network_is_told_as_it_is_with_values(training):
    model = tiny_mlp().train(training)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        count_macs(model, (3, 5, 5))
    assert model.training is training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_image_has_the_type_of_the_network(dtype):
    seen = []
    run_without_values(tiny_cnn().to(dtype), (3, 8, 8), lambda network, image: seen.append((image.shape, image.dtype)))
    assert seen == [((1, 3, 8, 8), dtype)]
