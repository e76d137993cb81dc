"""Does a set of tensors fit a network, and if not, where not."""

from collections.abc import Mapping

from torch import Tensor, nn

from lrcompress.errors import ArchitectureError

SHOWN = 4


def _is_counter(key: str) -> bool:
    """Whether the tensor only counts training batches; old checkpoints lack it and inference does not use it."""
    return key.endswith("num_batches_tracked")


def matches(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have the names and shapes of the network's, batch counters aside."""
    return not any(_differences(model, tensors))


def describe_mismatch(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Returns one line that lists missing, unexpected and mis-shaped tensors."""
    missing, unexpected, misshaped = _differences(model, tensors)
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    return "; ".join(parts)


def match_by_order(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the tensors under the network's names, given to it in their order.

    Raises:
        ArchitectureError: if their number or a single shape differs.
    """
    expected = {key: value for key, value in model.state_dict().items() if not _is_counter(key)}
    given = [(key, value) for key, value in tensors.items() if not _is_counter(key)]
    if len(expected) != len(given):
        raise ArchitectureError(
            f"`{source}` has {len(given)} tensors, the architecture {len(expected)}: they cannot match by order",
            hint="check --arch",
        )
    matched = {}
    for position, ((name, value), (key, tensor)) in enumerate(zip(expected.items(), given, strict=True)):
        if value.shape != tensor.shape:
            raise ArchitectureError(
                f"tensor {position} of `{source}` is `{key}` {tuple(tensor.shape)}, "
                f"but the architecture has `{name}` {tuple(value.shape)} there",
                hint="check --arch, and --arch-arg num_classes=N or in_chans=N",
            )
        matched[name] = tensor
    return matched


def _differences(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    expected = model.state_dict()
    missing = [key for key in expected if key not in tensors and not _is_counter(key)]
    unexpected = [key for key in tensors if key not in expected]
    misshaped = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    return missing, unexpected, misshaped
