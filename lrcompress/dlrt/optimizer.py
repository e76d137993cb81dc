"""DLRT as an optimiser: what a training loop calls after `backward`, whoever wrote the loop."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.dlrt.distributed import agree, average_gradients_, broadcast_
from lrcompress.dlrt.moments import carry_first, carry_second
from lrcompress.dlrt.options import DlrtOptions
from lrcompress.dlrt.penalty import Penalty
from lrcompress.dlrt.ranks import Circumstances, RankControl
from lrcompress.dlrt.step import BasisChange, augment, cut, rotate
from lrcompress.errors import OptionError, TrainingError
from lrcompress.linalg import Factors, core_condition_number
from lrcompress.nn import FactoredLayer, factored_layers


class Dlrt:
    """Rank-adaptive Dynamical Low-Rank Training of a model's factored layers, and of everything dense with them.

    A cycle is one batch whose gradients extend the bases, and s* optimiser steps on the augmented cores, after which
    they are truncated. Each call of `step` after `backward` is whichever of these comes next:

        optimizer = Dlrt(model, DlrtOptions(Budget(fraction=0.1)))
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels) + optimizer.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.freeze_()

    Args:
        model: the network, with the layers that `factorize_for_training` puts in.
        options: the settings.
        circumstances: what ranks are chosen by beside the spectra.

    Raises:
        OptionError: if low-rank layers are of a type in which nothing can be decomposed.

    Attributes:
        inner: torch's optimiser of the cores and of everything dense; learning-rate schedulers take it.
        layers: the factored layers by name.
        frozen: whether bases and ranks are final.

    Source: Schotthöfer, Yang, Schnake 2025 (arXiv 2505.08022), Algorithm 1.
    """

    def __init__(self, model: nn.Module, options: DlrtOptions, *, circumstances: Circumstances | None = None) -> None:
        self.model, self.options = model, options
        self.layers = factored_layers(model)
        _check_types(self.layers)
        self.ranks = RankControl(model, options, circumstances or Circumstances())
        self.regulariser = Penalty.of(model, self.layers, options)
        self.frozen = not self.layers
        self.position = 0  # in the cycle; 0 is the batch that extends the bases
        self.retained: dict[str, tuple[int, ...]] = {}
        with torch.no_grad():
            broadcast_(tensor.detach() for tensor in (*model.parameters(), *model.buffers()))
        self._cut_(self.ranks.choose)
        self.inner = _make_optimizer(model, self.layers, options)
        self._ask_for_basis_gradients_()

    def penalty(self) -> Float[Tensor, ""]:
        """Returns β Σ R, to be added to the loss; zero where there is nothing to condition."""
        device = next(self.model.parameters()).device
        if self.position == 0 and not self.frozen and not self.options.every_gradient:
            return torch.zeros((), device=device)  # no weight moves by this batch
        return self.regulariser.value(self.layers, self.retained).to(device)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        self.inner.zero_grad(set_to_none=True)
        for layer in self.layers.values():
            layer.U.grad = layer.V.grad = None

    def step(self) -> None:
        """Does what comes next in the cycle, with the gradients that `backward` has left.

        Raises:
            TrainingError: if a gradient is not finite, in which case nothing has been changed, or a weight.
        """
        extends = self.position == 0 and not self.frozen
        average_gradients_(self.model.parameters())
        self._check_gradients(extends=extends)
        if not extends or self.options.every_gradient:
            if self.options.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.trained_parameters(), self.options.clip_norm)
            self.inner.step()
        if self.frozen:
            return
        if extends:
            self._augment_()
        self.position += 1
        if self.position > self.options.coefficient_steps:
            self.truncate_()

    def truncate_(self) -> None:
        """Ends the cycle: cuts all layers, in their cores' singular vectors, to the ranks that the policy chooses."""
        before = self.current_ranks()
        self._cut_(lambda rotated: self.ranks.choose(rotated, before))
        self._ask_for_basis_gradients_()
        if self.options.max_kappa is not None:
            self.regulariser.steer_(self.kappas())

    def freeze_(self) -> None:
        """Ends the adaptation: bases and ranks are final, later steps train the cores and everything dense."""
        if self.position > 0:
            self.truncate_()
        self.frozen = True
        self._ask_for_basis_gradients_()

    def trained_parameters(self) -> list[nn.Parameter]:
        """Returns all that the inner optimiser holds."""
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]

    def current_ranks(self) -> dict[str, tuple[int, ...]]:
        """Returns the ranks as of the last truncation: between truncations the bases are up to twice as wide."""
        return {name: self.retained.get(name, layer.ranks) for name, layer in self.layers.items()}

    def kappas(self) -> dict[str, float]:
        """Returns κ = σ₁/σ_r of every core as of the last truncation, the largest of a layer's groups."""
        ranks = self.current_ranks()
        cores = {name: layer.S[:, : ranks[name][0], : ranks[name][-1]] for name, layer in self.layers.items()}
        return {name: core_condition_number(self.layers[name].conditioned(core)) for name, core in cores.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state beside the model's own; both together continue the training exactly."""
        return {
            "inner": self.inner.state_dict(),
            "position": self.position,
            "retained": {name: list(ranks) for name, ranks in self.retained.items()},
            "frozen": self.frozen,
            "betas": dict(self.regulariser.betas),
            "thresholds": {name: list(values) for name, values in self.ranks.thresholds.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, after the model has been given its own."""
        self.inner.load_state_dict(state["inner"])
        self.position, self.frozen = state["position"], state["frozen"]
        self._retain_({name: tuple(ranks) for name, ranks in state["retained"].items()})
        self.regulariser.betas = dict(state["betas"])
        self.ranks.thresholds = {name: tuple(values) for name, values in state["thresholds"].items()}
        self._ask_for_basis_gradients_()

    def _cut_(self, choose: Callable[[Mapping[str, Factors]], dict[str, tuple[int, ...]]]) -> None:
        self._check_cores()
        with torch.no_grad(), self._full_precision():
            rotated = {name: rotate(layer.factors()) for name, layer in self.layers.items()}
            ranks = agree(choose({name: factors for name, (factors, _) in rotated.items()}))
            for name, (factors, change) in rotated.items():
                self._move_(self.layers[name], *cut(factors, change, ranks[name]))
        self.position = 0
        self._retain_({})

    def _full_precision(self) -> torch.autocast:
        """Returns what keeps a caller's autocast away from bases and cores."""
        return torch.autocast(next(self.model.parameters()).device.type, enabled=False)

    def _retain_(self, ranks: dict[str, tuple[int, ...]]) -> None:
        """Keeps the ranks of before an augmentation, none after a truncation."""
        self.retained = ranks
        for name, layer in self.layers.items():
            layer.extended = name in ranks

    def _augment_(self) -> None:
        self._retain_({name: layer.ranks for name, layer in self.layers.items()})
        with torch.no_grad(), self._full_precision():
            for layer in self.layers.values():
                self._move_(layer, *augment(layer.factors(), _gradient(layer.U), _gradient(layer.V)))
        self._ask_for_basis_gradients_(False)

    def _move_(self, layer: FactoredLayer, factors: Factors, change: BasisChange) -> None:
        factors, change = Factors(*map(_own, factors)), BasisChange(*map(_own, change))
        broadcast_([*factors, *change])
        layer.set_factors_(factors)
        inner = getattr(self, "inner", None)
        state = {} if inner is None else inner.state.get(layer.S, {})
        for name in ("exp_avg", "momentum_buffer"):
            if state.get(name) is not None:
                state[name] = carry_first(state[name], change)
        if "exp_avg_sq" in state:
            floor = self.options.moments == "floor"
            state["exp_avg_sq"] = carry_second(state["exp_avg_sq"], change, floor=floor)
        if self.options.moments == "reset":
            for value in state.values():
                if value is not None:
                    value.zero_()

    def _ask_for_basis_gradients_(self, wanted: bool | None = None) -> None:
        for layer in self.layers.values():
            layer.ask_for_basis_gradients_(self.position == 0 and not self.frozen if wanted is None else wanted)

    def _check_cores(self) -> None:
        """Raises an error that names the first core that is not finite: it cannot be decomposed."""
        for name, layer in self.layers.items():
            if not torch.isfinite(layer.S).all():
                raise TrainingError(f"the weight of `{name}` is not finite", hint="lower --lr or --beta")

    def _check_gradients(self, *, extends: bool) -> None:
        """Raises an error that names the first parameter whose gradient is not finite."""
        gradients = {
            name: parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and (extends or parameter.requires_grad)
        }
        # One number first: asking each tensor would make a GPU wait for each.
        if gradients and not torch.isfinite(nn.utils.get_total_norm(gradients.values())):
            wrong = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
            what = f"the gradient of `{wrong[0]}` is not finite" if wrong else "the norm of the gradients is not finite"
            raise TrainingError(what, hint="lower --lr or --beta")


def _check_types(layers: Mapping[str, FactoredLayer]) -> None:
    for name, layer in layers.items():
        if layer.S.dtype not in (torch.float32, torch.float64):
            kind = str(layer.S.dtype).removeprefix("torch.")
            raise OptionError(
                f"`{name}` is {kind}, which bases cannot be made orthonormal in",
                hint="model.float(), and torch.autocast around the forward pass",
            )


def _own(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def _gradient(parameter: nn.Parameter) -> Tensor:
    # A layer that this batch did not reach has no gradient: its basis gets no new direction from it.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _make_optimizer(
    model: nn.Module, layers: Mapping[str, FactoredLayer], options: DlrtOptions
) -> torch.optim.Optimizer:
    """Returns the optimiser of cores and dense parameters. The bases are not in it: decay would break their columns."""
    bases = {id(basis) for layer in layers.values() for basis in (layer.U, layer.V)}
    trained = {name: p for name, p in model.named_parameters() if id(p) not in bases and p.requires_grad}
    # Position embeddings, class tokens and the like are matrices, but no weights.
    # Named `in_proj_weight` or `weight_ih_l0` too.
    last = {name: name.rpartition(".")[2] for name in trained}
    decayed = {name for name, p in trained.items() if p.ndim > 1 and ("weight" in last[name] or last[name] == "S")}
    groups = [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": options.weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    if options.optimizer == "sgd":
        nesterov = options.momentum > 0
        return torch.optim.SGD(groups, lr=options.peak_lr, momentum=options.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=options.peak_lr)
