"""Can a plan that was read from a file, and may have been edited, be executed on this network?"""

from torch import nn

from lrcompress.errors import OptionError
from lrcompress.nn import dense_matrix, is_matrix_layer
from lrcompress.plan.layers import find_layers
from lrcompress.plan.plan import CompressionPlan, LayerPlan
from lrcompress.plan.policy import useful_rank


def check_plan(plan: CompressionPlan, model: nn.Module, *, input_size: tuple[int, int, int], sha256: str) -> None:
    """Raises `OptionError` unless a plan fits a network: the same checkpoint, the same layers, ranks that are possible.

    Args:
        plan: what is to be done.
        model: the dense network.
        input_size: (channels, height, width) of its images.
        sha256: hash of the checkpoint it came from.
    """
    if plan.source_sha256 != sha256:
        raise OptionError(
            "the plan was made for another checkpoint: its SHA-256 differs", hint="make the plan again for this one"
        )
    candidates = {
        candidate.name: candidate
        for candidate in find_layers(model, input_size, include_first=True, include_classifier=True)
    }
    planned = [layer.name for layer in plan.layers]
    if differing := sorted(set(candidates).symmetric_difference(planned)) or _repeated(planned):
        raise OptionError(
            f"the plan and the network differ in the layer `{differing[0]}`",
            hint="keep every layer of the plan; edit its scheme and rank only",
        )
    for layer in plan.layers:
        candidate = candidates[layer.name]
        if layer.dense_shape != candidate.weight_shape:
            raise OptionError(
                f"the plan has `{layer.name}` with shape {layer.dense_shape}, the network with "
                f"{candidate.weight_shape}",
                hint="make the plan again for this checkpoint",
            )
        if layer.scheme == "dense":
            continue
        if candidate.reason or not is_matrix_layer(candidate.module):
            raise OptionError(f"`{layer.name}` cannot be factorised: {candidate.reason}", hint="plan it as dense")
        _check_rank(layer, *dense_matrix(candidate.module).shape)


def _check_rank(layer: LayerPlan, m: int, n: int) -> None:
    largest, rank = useful_rank(m, n), layer.rank
    if rank is None or not 1 <= rank <= largest:
        hint = (
            f"a rank from 1 to {largest}, which removes parameters, or the scheme dense"
            if largest
            else "the scheme dense"
        )
        raise OptionError(f"`{layer.name}` cannot have rank {rank}", hint=hint)


def _repeated(names: list[str]) -> list[str]:
    return [name for index, name in enumerate(names) if name in names[:index]]
