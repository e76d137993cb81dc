import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from networks import matrix_with_spectrum, pattern_images, relative_difference, snapshot, tiny_mlp
from torch import nn
from trainings import MIDDLES, any_scheme, batch_of, distance_from_orthonormal, low_rank_mlp, written

from lrcompress.dlrt import Circumstances, Dlrt, DlrtOptions
from lrcompress.dlrt.penalty import LARGEST_BETA
from lrcompress.errors import OptionError, TrainingError
from lrcompress.factorize import factorize_for_training, fold_
from lrcompress.nn import FactoredLinear, LowRankLinear, count_shipped_parameters, factored_layers
from lrcompress.plan import Budget, Tolerance, UniformRank, make_plan
from lrcompress.schemes import Positions

EXACT = Tolerance(1e-9)


def settings(**changes):
    return DlrtOptions(**{"policy": Tolerance(0.05), "every_gradient": False, "coefficient_steps": 2, **changes})


def steps_on(model, dlrt, pixels, labels, count=1):
    """Makes steps on one batch and returns the loss before each of them."""
    losses = []
    for _ in range(count):
        loss = F.cross_entropy(model(pixels), labels)
        dlrt.zero_grad()
        (loss + dlrt.penalty()).backward()
        dlrt.step()
        losses.append(float(loss.detach()))
    return losses


def linear(m, n, r, *, seed=0):
    """A factored linear layer in float64."""
    torch.manual_seed(seed)
    low_rank = LowRankLinear(n, m, r, bias=True, dtype=torch.float64)
    return FactoredLinear(low_rank)


def test_the_loop_of_the_documentation_trains_any_model():
    images = pattern_images()
    pixels, labels = batch_of(images)
    model = low_rank_mlp()
    optimizer = Dlrt(model, DlrtOptions(Budget(fraction=0.4), lr=1e-2))
    for some, wanted in zip(pixels.split(40), labels.split(40), strict=True):
        for _ in range(20):
            loss = F.cross_entropy(model(some), wanted) + optimizer.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.freeze_()
    with torch.no_grad():
        assert float((model(pixels).argmax(1) == labels).float().mean()) >= 0.9
    dense = sum(value.numel() for value in tiny_mlp().parameters())
    assert count_shipped_parameters(model) <= 0.4 * dense


@pytest.mark.parametrize("coefficient_steps", [1, 3])
def test_where_the_gradient_stays_within_the_bases_it_is_gradient_descent(coefficient_steps):
    # Inputs from a subspace that the rows of W lie in too: then the gradient's rows do, and its columns are those of
    # G_U. So nothing is lost by the bases, and a step of DLRT is one on the dense weight.
    subspace, lr = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64)).Q, 0.05
    layer = linear(20, 16, 3)
    layer.bias = None
    with torch.no_grad():
        layer.V.copy_(subspace[None])
    inputs = torch.randn(30, 3, dtype=torch.float64) @ subspace.T
    targets = torch.randn(30, 20, dtype=torch.float64)
    W = layer.weight.detach().clone()
    model = nn.Sequential(layer)
    dlrt = Dlrt(
        model, settings(policy=EXACT, optimizer="sgd", momentum=0.0, lr=lr, coefficient_steps=coefficient_steps)
    )
    assert torch.allclose(layer.weight, W)
    for _ in range(4):
        for _ in range(1 + coefficient_steps):
            dlrt.zero_grad()
            (0.5 * (model(inputs) - targets).square().sum() / len(inputs)).backward()
            dlrt.step()
        for _ in range(coefficient_steps):
            W -= lr * (inputs @ W.T - targets).T @ inputs / len(inputs)
        assert relative_difference(layer.weight, W) < 1e-9
        assert layer.ranks == (3,)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("every_gradient", [False, True])
@pytest.mark.parametrize("case", MIDDLES)
def test_a_cycle_of_small_steps_lowers_the_loss(case, every_gradient, optimizer):
    pixels, labels = batch_of(pattern_images(64, size=8))
    _, model = any_scheme(case, rank=2)
    options = settings(policy=EXACT, every_gradient=every_gradient, optimizer=optimizer, lr=1e-3, momentum=0.0)
    losses = steps_on(model, Dlrt(model, options), pixels, labels, 4)
    # The first step of the published cycle changes the bases only, and by no more than rounding what is computed.
    assert losses[1] < losses[0] if every_gradient else losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] < losses[2] < losses[1]


def test_bases_stay_orthonormal_over_a_thousand_cycles_with_weight_decay_and_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(FactoredLinear(LowRankLinear(12, 10, 3, bias=True)))
    # Each step is one of the optimiser, that which extends the bases too: they have gradients then.
    options = settings(
        policy=Tolerance(0.1), coefficient_steps=1, weight_decay=1.0, lr=1e-2, beta=0.01, every_gradient=True
    )
    dlrt, layer = Dlrt(model, options), model[0]
    inputs, targets = torch.randn(8, 12), torch.randn(8, 10)
    seen = []
    dlrt.inner.register_step_pre_hook(lambda *_: seen.append([layer.U.detach().clone(), layer.V.detach().clone()]))
    dlrt.inner.register_step_post_hook(
        lambda *_: seen.append([torch.equal(a, b) for a, b in zip(seen.pop(), (layer.U, layer.V), strict=True)])
    )
    for _ in range(2000):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(inputs) - targets).square().mean()
        dlrt.zero_grad()
        (loss.float() + dlrt.penalty()).backward()
        dlrt.step()
    assert dlrt.position == 0
    assert seen == [[True, True]] * 2000
    for basis in (layer.U, layer.V):
        gram = basis[0].detach().double().T @ basis[0].detach().double()
        assert float((gram - torch.eye(len(gram)).double()).norm()) <= 1e-5
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("every_gradient", [False, True])
def test_with_beta_zero_there_is_no_penalty(every_gradient):
    pixels, labels = batch_of(pattern_images())
    models = [low_rank_mlp(), low_rank_mlp()]
    dlrts = [Dlrt(model, settings(every_gradient=every_gradient, lr=1e-2)) for model in models]
    for _ in range(7):
        for with_penalty, model, dlrt in zip((True, False), models, dlrts, strict=True):
            loss = F.cross_entropy(model(pixels), labels)
            penalty = dlrt.penalty()
            assert float(penalty) == 0
            assert not penalty.requires_grad
            dlrt.zero_grad()
            (loss + penalty if with_penalty else loss).backward()
            dlrt.step()
    assert all(torch.equal(value, models[1].state_dict()[name]) for name, value in models[0].state_dict().items())


def spectral_penalty(core):
    """R as the paper writes it, in float64."""
    S = core.detach().double()[0, :, :, 0]
    return float((S.T @ S - S.square().sum() / len(S) * torch.eye(len(S)).double()).norm())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("penalty_core", ["retained", "augmented"])
def test_the_penalty_is_beta_times_the_sum_over_the_layers_whatever_the_precision(penalty_core, bfloat16):
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp(max_rank=3)
    dlrt = Dlrt(model, settings(beta=0.3, penalty="paper", penalty_core=penalty_core, max_rank=3))
    assert float(dlrt.penalty()) == 0  # no weight moves by the batch that extends the bases
    steps_on(model, dlrt, pixels, labels, 2)
    cores = [layer.S for layer in dlrt.layers.values()]
    assert [core.shape[1] for core in cores] == [6, 6]
    cores = [core[:, :3, :3] for core in cores] if penalty_core == "retained" else cores
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        value = dlrt.penalty()
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(0.3 * sum(map(spectral_penalty, cores)), rel=1e-4)


def test_with_every_gradient_the_batch_that_extends_the_bases_is_penalised_too():
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(beta=0.3, penalty="paper", every_gradient=True))
    expected = 0.3 * sum(spectral_penalty(layer.S) for layer in dlrt.layers.values())
    assert float(dlrt.penalty().detach()) == pytest.approx(expected, rel=1e-4)


def test_clipping_counts_what_is_trained_only():
    pixels, labels = batch_of(pattern_images())
    states = []
    for factor in (1.0, 1e6):
        model = low_rank_mlp()
        options = settings(every_gradient=True, optimizer="sgd", momentum=0.0, lr=0.1, clip_norm=0.01)
        dlrt = Dlrt(model, options)
        before = snapshot(model)
        dlrt.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        total = torch.stack([p.grad.norm() for p in dlrt.trained_parameters()]).norm()
        for layer in dlrt.layers.values():
            layer.U.grad *= factor
            layer.V.grad *= factor
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if name in ("6.weight", "1.bias")}
        dlrt.step()
        for name, grad in grads.items():
            moved = before[name] - model.state_dict()[name]
            assert torch.allclose(moved, 0.1 * grad * 0.01 / total, rtol=1e-3, atol=1e-8)
        states.append(model.state_dict())
    assert float(total) > 0.01
    for name in ("1.bias", "4.bias", "6.weight", "6.bias"):
        assert torch.equal(states[0][name], states[1][name])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("moments", ["floor", "transport", "reset"])
def test_the_optimisers_state_follows_every_change_of_basis(moments, optimizer):
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp(max_rank=4)
    options = settings(moments=moments, optimizer=optimizer, coefficient_steps=1, max_rank=4, lr=1e-2)
    dlrt = Dlrt(model, options)
    layer = dlrt.layers["1"]
    steps_on(model, dlrt, pixels, labels, 2)  # one cycle; its truncation comes after the first optimiser step
    for _ in range(5):
        assert dlrt.position == 0
        state = {name: value.clone() for name, value in dlrt.inner.state[layer.S].items()}
        U, V = layer.U.detach()[0].double(), layer.V.detach()[0].double()
        steps_on(model, dlrt, pixels, labels)  # augments: no optimiser step between
        M, N = layer.U.detach()[0].double().T @ U, V.T @ layer.V.detach()[0].double()
        after = dlrt.inner.state[layer.S]
        first = "exp_avg" if optimizer == "adamw" else "momentum_buffer"
        assert after[first].shape == layer.S.shape
        if moments == "reset":
            assert all(float(value.abs().sum()) == 0 for value in after.values())
        else:
            moved = M @ state[first][0, :, :, 0].double() @ N
            assert relative_difference(after[first][0, :, :, 0], moved) < 1e-4
        if optimizer == "adamw" and moments != "reset":
            second = state["exp_avg_sq"][0, :, :, 0].double()
            moved = (M @ second.sqrt() @ N).square()
            if moments == "floor":
                moved = moved.clamp_min(float(second.median()))
            assert torch.allclose(after["exp_avg_sq"][0, :, :, 0].double(), moved, rtol=1e-2, atol=1e-12)
            assert after["step"] == state["step"]
        steps_on(model, dlrt, pixels, labels)


def test_tensors_and_the_optimisers_state_have_the_current_rank():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp(max_rank=4)
    parameters = dict(model.named_parameters())
    dlrt = Dlrt(model, settings(coefficient_steps=2, max_rank=4, lr=1e-2))
    for count in range(9):
        for name, layer in dlrt.layers.items():
            rank = layer.S.shape[1]
            assert rank <= 4 if count % 3 == 0 else rank <= 8
            assert (layer.U.shape[2], layer.V.shape[2]) == (rank, rank)
            assert layer.S.untyped_storage().nbytes() == 4 * rank * rank
            assert layer.U.untyped_storage().nbytes() == 4 * rank * layer.U.shape[1]
            assert dlrt.current_ranks()[name][0] <= 4
        steps_on(model, dlrt, pixels, labels)
        for name, layer in dlrt.layers.items():
            for value in dlrt.inner.state.get(layer.S, {}).values():
                assert value.ndim == 0 or value.shape == layer.S.shape, name
    assert all(parameters[name] is value for name, value in model.named_parameters())


def test_bases_need_a_gradient_only_where_it_extends_them():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(coefficient_steps=2))
    needed = []
    for _ in range(6):
        needed.append({basis.requires_grad for layer in dlrt.layers.values() for basis in (layer.U, layer.V)})
        steps_on(model, dlrt, pixels, labels)
    dlrt.freeze_()
    needed.append({basis.requires_grad for layer in dlrt.layers.values() for basis in (layer.U, layer.V)})
    assert needed == [{True}, {False}, {False}, {True}, {False}, {False}, {False}]


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_freezing_ends_the_cycle_and_the_bases_then_stay(before):
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp(max_rank=4)
    dlrt = Dlrt(model, settings(max_rank=4, lr=1e-2, weight_decay=0.1))
    steps_on(model, dlrt, pixels, labels, before)
    dlrt.freeze_()
    assert all(layer.ranks[0] <= 4 for layer in dlrt.layers.values())
    bases = {name: value for name, value in snapshot(model).items() if name[-1] in "UV"}
    start = snapshot(model)
    losses = steps_on(model, dlrt, pixels, labels, 5)
    assert losses[-1] < losses[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) == (name in bases), name


def test_after_a_truncation_cores_are_diagonal_and_descending():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(lr=1e-2))
    for _ in range(2):
        for layer in dlrt.layers.values():
            core = layer.S.detach()[0, :, :, 0]
            sigma = torch.linalg.svdvals(core)
            assert torch.allclose(core, torch.diag(sigma), atol=1e-6)
        steps_on(model, dlrt, pixels, labels, 3)


def set_spectrum_(layer, sigma):
    with torch.no_grad():
        core = matrix_with_spectrum(sigma, len(sigma), len(sigma)).float()
        U, V = (torch.linalg.qr(torch.randn(size, len(sigma))).Q for size in (layer.U.shape[1], layer.V.shape[1]))
        layer.set_factors_(type(layer.factors())(U[None], core[None, :, :, None], V[None]))


@pytest.mark.parametrize(("rich", "poor"), [("1", "4"), ("4", "1")])
def test_a_budget_goes_to_the_layer_that_needs_it(rich, poor):
    flat, steep = [1.0] * 10, [2.0**-k for k in range(10)]
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(policy=Budget(fraction=0.4)))
    set_spectrum_(dlrt.layers[rich], flat)
    set_spectrum_(dlrt.layers[poor], steep)
    dlrt.truncate_()
    dense = sum(value.numel() for value in tiny_mlp().parameters())
    assert count_shipped_parameters(model) <= 0.4 * dense
    ranks = dlrt.current_ranks()
    assert ranks[rich][0] > ranks[poor][0] >= 1


class SideBySide(nn.Module):
    """Two independent layers."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (FactoredLinear(LowRankLinear(16, 20, 6, bias=False)) for _ in range(2))

    def forward(self, x):
        return torch.cat([self.one(x), self.other(x)], dim=1)


def test_the_budget_holds_after_every_truncation_while_ranks_move_to_where_they_are_needed():
    model = SideBySide()
    set_spectrum_(model.one, [1.0, *[1e-3] * 5])
    set_spectrum_(model.other, [0.3] * 6)
    dlrt = Dlrt(model, settings(policy=Budget(parameters=8 * (20 + 16)), optimizer="sgd", lr=0.2, momentum=0.0))
    # What is to be learned has six equal directions in the one layer, and a single one in the other.
    targets = [matrix_with_spectrum(sigma, 20, 16).float() for sigma in ([1.0] * 6, [1.0])]
    inputs = torch.linalg.qr(torch.randn(64, 16)).Q * 4
    ranks = []
    for _ in range(60):
        for _ in range(3):
            dlrt.zero_grad()
            (model(inputs) - inputs @ torch.cat(targets).T).square().sum(1).mean().backward()
            dlrt.step()
        assert count_shipped_parameters(model) <= 8 * (20 + 16)
        ranks.append(tuple(rank for (rank,) in dlrt.current_ranks().values()))
    assert ranks[0][0] < ranks[0][1]
    assert ranks[-1][0] >= 6 > 2 >= ranks[-1][1]


def test_beta_rises_where_kappa_is_too_large_and_falls_where_it_is_not():
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(policy=UniformRank(3), max_kappa=4.0, beta=0.1))
    set_spectrum_(dlrt.layers["1"], [8.0, 4.0, 1.0])
    set_spectrum_(dlrt.layers["4"], [3.0, 2.0, 1.0])
    dlrt.truncate_()
    assert dlrt.kappas() == {"1": pytest.approx(8, rel=1e-5), "4": pytest.approx(3, rel=1e-5)}
    betas = dlrt.regulariser.betas
    assert betas["1"] > 0.1 > betas["4"] > 0
    for _ in range(100):
        dlrt.truncate_()
    assert dlrt.regulariser.betas["1"] == LARGEST_BETA


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", ["1.S", "4.bias", "6.weight", "1.U"])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(name, position):
    if name == "1.U" and position == 1:
        return  # it has no gradient then
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(every_gradient=True))
    steps_on(model, dlrt, pixels, labels, position)
    dlrt.zero_grad()
    F.cross_entropy(model(pixels), labels).backward()
    model.get_parameter(name).grad.view(-1)[3] = float("nan")
    before, state = snapshot(model), written(dlrt.state_dict())
    with pytest.raises(TrainingError, match=f"the gradient of `{name}` is not finite") as refused:
        dlrt.step()
    assert "--lr" in refused.value.hint
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    after = dlrt.state_dict()
    assert (after["position"], after["retained"]) == (state["position"], state["retained"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_core_that_is_not_finite_cannot_be_decomposed_and_is_named(value):
    # What one step too long leaves behind.
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings())
    with torch.no_grad():
        dlrt.layers["4"].S[0, 1, 0, 0] = value
    with pytest.raises(TrainingError, match="the weight of `4` is not finite") as refused:
        dlrt.truncate_()
    assert "--lr" in refused.value.hint


class TwoBranches(nn.Module):
    """Of whose low-rank layers a batch takes one."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Linear(48, 40), nn.Linear(48, 40), nn.Linear(40, 4)

    def forward(self, x):
        return self.head((self.one if x.mean() < 0.75 else self.other)(x.flatten(1)).relu())


def test_a_layer_that_a_batch_does_not_reach_stays_as_it_is():
    dense = TwoBranches().eval()
    plan = make_plan(dense, UniformRank(3), input_size=(3, 4, 4), include_first=True)
    assert plan.factorized().keys() == {"one"}  # the other one is never called when the network is looked at
    model = copy.deepcopy(dense)
    for name in ("one", "other"):
        setattr(model, name, FactoredLinear(LowRankLinear(48, 40, 3, bias=True)))
    pixels, labels = batch_of(pattern_images())
    dlrt = Dlrt(model, settings(lr=1e-2, policy=EXACT, max_rank=3))
    before = model.other.weight.detach().clone()
    changed = model.one.weight.detach().clone()
    steps_on(model, dlrt, pixels, labels, 9)
    assert relative_difference(model.other.weight, before) < 1e-5
    assert relative_difference(model.one.weight, changed) > 1e-3
    assert distance_from_orthonormal(model.other.U) < 1e-5


def test_weights_of_any_name_decay_and_nothing_that_is_a_matrix_by_chance():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.memory = nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)
            self.pos_embed, self.norm = nn.Parameter(torch.ones(3, 8)), nn.LayerNorm(8)

    model = Odd()
    groups = Dlrt(model, settings(weight_decay=0.1)).inner.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in decayed} == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "memory.weight_ih_l0",
        "memory.weight_hh_l0",
    }


def test_a_step_inside_of_autocast_keeps_its_precision():
    pixels, labels = batch_of(pattern_images())
    model, other = low_rank_mlp(), low_rank_mlp()
    for network, inside in ((model, True), (other, False)):
        dlrt = Dlrt(network, settings())
        for _ in range(7):
            dlrt.zero_grad()
            F.cross_entropy(network(pixels), labels).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                dlrt.step()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_low_rank_layers_that_cannot_be_decomposed_are_refused():
    with pytest.raises(OptionError, match="bfloat16") as refused:
        Dlrt(low_rank_mlp().bfloat16(), settings())
    assert "torch.autocast" in refused.value.hint


def test_within_a_cycle_condition_numbers_are_those_of_the_directions_that_were_there():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(lr=1e-9))
    before = dlrt.kappas()
    steps_on(model, dlrt, pixels, labels, 1)
    assert dlrt.position == 1
    assert dlrt.kappas() == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("before", "freeze"), [*itertools.product(range(1, 5), [False]), (4, True), (6, True)])
def test_from_its_state_the_training_goes_on_exactly(before, freeze, optimizer):
    pixels, labels = batch_of(pattern_images())
    options = settings(optimizer=optimizer, lr=1e-2, max_kappa=2.0, beta=0.01)
    model, other = low_rank_mlp(), low_rank_mlp()
    dlrt, again = Dlrt(model, options), Dlrt(other, options)
    steps_on(model, dlrt, pixels, labels, before)
    if freeze:
        dlrt.freeze_()
    weights, state = written(model.state_dict()), written(dlrt.state_dict())
    other.load_state_dict(weights)
    again.load_state_dict(state)
    assert steps_on(model, dlrt, pixels, labels, 7) == steps_on(other, again, pixels, labels, 7)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert dlrt.current_ranks() == again.current_ranks()
    assert dlrt.regulariser.betas == again.regulariser.betas


def test_schedulers_of_torch_take_the_inner_optimiser():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings(lr=0.4))
    scheduler = torch.optim.lr_scheduler.StepLR(dlrt.inner, step_size=1, gamma=0.5)
    for _ in range(3):
        steps_on(model, dlrt, pixels, labels, 2)
        scheduler.step()
    assert [group["lr"] for group in dlrt.inner.param_groups] == pytest.approx([0.05, 0.05])


def test_zero_grad_forgets_the_gradients_of_the_bases_too():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    dlrt = Dlrt(model, settings())
    F.cross_entropy(model(pixels), labels).backward()
    assert all(layer.U.grad is not None and layer.V.grad is not None for layer in dlrt.layers.values())
    dlrt.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_that_need_no_gradient_are_left_alone():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp()
    model[6].requires_grad_(False)
    head = snapshot(model[6])
    steps_on(model, Dlrt(model, settings(lr=0.1, weight_decay=0.5)), pixels, labels, 6)
    assert all(torch.equal(value, head[name]) for name, value in model[6].state_dict().items())


def test_a_budget_of_macs_needs_to_know_them_and_is_then_kept():
    dense = tiny_mlp()
    macs = 48 * 40 + 40 * 24 + 24 * 4
    plan = make_plan(dense, UniformRank(9), input_size=(3, 4, 4), include_first=True)
    model = factorize_for_training(dense, plan)
    options = settings(policy=Budget(macs=macs // 2), lr=1e-2)
    with pytest.raises(OptionError, match="multiply-accumulates") as refused:
        Dlrt(model, options)
    assert "circumstances" in refused.value.hint
    positions = dict.fromkeys(("1", "4"), Positions(1, 1, 1))
    dlrt = Dlrt(model, options, circumstances=Circumstances(positions, macs))
    pixels, labels = batch_of(pattern_images())
    for _ in range(4):
        steps_on(model, dlrt, pixels, labels, 3)
        (first,), (inner,) = dlrt.current_ranks()["1"], dlrt.current_ranks()["4"]
        assert 0.8 * macs // 2 < first * (48 + 40) + inner * (40 + 24) + 24 * 4 <= macs // 2


def test_a_network_in_the_middle_of_a_cycle_is_not_folded():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp(max_rank=3)
    dlrt = Dlrt(model, settings(policy=UniformRank(3)))
    steps_on(model, dlrt, pixels, labels, 2)
    with pytest.raises(TrainingError, match="its bases are extended") as refused:
        fold_(model)
    assert "freeze_()" in refused.value.hint
    resumed = Dlrt(low_rank_mlp(max_rank=3), settings(policy=UniformRank(3)))
    resumed.model.load_state_dict(model.state_dict())
    resumed.load_state_dict(dlrt.state_dict())
    with pytest.raises(TrainingError, match="its bases are extended"):
        fold_(resumed.model)
    dlrt.freeze_()
    folded = fold_(model)
    assert [folded.get_submodule(name).expand.in_features for name in ("1", "4")] == [3, 3]


def test_fixed_ranks_stay_while_others_adapt():
    pixels, labels = batch_of(pattern_images())
    model = low_rank_mlp(max_rank=5)
    options = settings(policy=Tolerance(0.6), lr=1e-2)
    dlrt = Dlrt(model, options, circumstances=Circumstances(fixed_ranks={"1": (5,)}))
    steps_on(model, dlrt, pixels, labels, 9)
    assert dlrt.current_ranks()["1"] == (5,)
    assert dlrt.current_ranks()["4"][0] < 5


def test_fixed_ranks_of_a_split_layer_are_those_of_its_parts():
    pixels, labels = batch_of(pattern_images(64, size=8))
    _, model = any_scheme("split", rank=4)
    fixed = {"4.qkv": (4, 2, 3)}
    dlrt = Dlrt(model, settings(policy=Tolerance(0.9), lr=1e-2), circumstances=Circumstances(fixed_ranks=fixed))
    steps_on(model, dlrt, pixels, labels, 6)
    ranks = dlrt.current_ranks()
    assert [ranks[f"4.qkv.parts.{number}"] for number in range(3)] == [(4,), (2,), (3,)]
    assert ranks["4.proj"][0] < 4


def test_a_budget_that_the_smallest_rank_makes_impossible_names_it():
    model = low_rank_mlp()
    with pytest.raises(OptionError, match="cannot be met") as refused:
        Dlrt(model, settings(policy=Budget(fraction=0.1), min_rank=4))  # before any step is made
    assert "--min-rank" in refused.value.hint


@pytest.mark.parametrize(("min_rank", "round_ranks", "least"), [(1, 1, 1), (3, 1, 3), (1, 4, 4), (3, 4, 4)])
def test_the_smallest_fraction_is_a_budget_that_can_be_met(min_rank, round_ranks, least):
    model = low_rank_mlp(max_rank=8)
    dlrt = Dlrt(model, settings(min_rank=min_rank, round_ranks=round_ranks))
    dense = sum(value.numel() for value in tiny_mlp().parameters())
    fraction = dlrt.ranks.smallest_fraction()
    smallest = least * (48 + 40) + 40 + least * (40 + 24) + 24 + 24 * 4 + 4
    assert fraction == pytest.approx(smallest / dense)
    dlrt.ranks.policy = Budget(fraction=1.0001 * fraction)
    dlrt.truncate_()
    assert dlrt.current_ranks() == {"1": (least,), "4": (least,)}


def test_a_network_without_low_rank_layers_is_trained_from_the_first_step():
    pixels, labels = batch_of(pattern_images())
    model = tiny_mlp()
    losses = steps_on(model, Dlrt(model, settings(lr=1e-2, beta=0.1)), pixels, labels, 5)
    assert losses == sorted(losses, reverse=True)
    assert factored_layers(model) == {}
