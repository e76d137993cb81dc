"""Names of architectures, and the networks they stand for.

A name is `timm/NAME`, `torchvision/NAME`, a bare NAME (timm's if timm knows it, else torchvision's), or
`package.module:factory` / `file.py:factory` for one's own network.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrcompress.errors import ArchitectureError
from lrcompress.models.preprocessing import Preprocessing
from lrcompress.nn import ConvGeometry

# Arguments of timm's and torchvision's factories that fetch or read files: names in a checkpoint must not reach them.
NOT_TAKEN = frozenset(
    {
        "weights",
        "weights_backbone",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
    }
)
_BUILDING = threading.Lock()
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """A network without its weights: enough to build it again.

    Attributes:
        framework: "timm", "torchvision" or "custom".
        name: the framework's name, or where the factory is.
        arguments: what the factory is called with, `num_classes` and `in_chans` among it; JSON types only.
    """

    framework: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as the user writes it after `--arch`."""
        return self.name if self.framework == "custom" else f"{self.framework}/{self.name}"


def is_custom_name(name: str) -> bool:
    """Whether the name points to a factory of the user's own."""
    return ":" in name


@functools.cache
def known_architectures() -> dict[str, frozenset[str]]:
    """Returns the names of all classification architectures, by framework."""
    import timm
    import torchvision

    return {
        "timm": frozenset(timm.list_models()),
        "torchvision": frozenset(torchvision.models.list_models(module=torchvision.models)),
    }


def nearest_names(name: str, count: int = 5) -> list[str]:
    """Returns the known names most like `name`, best first."""
    known = known_architectures()
    bare = name.split("/", 1)[-1].split(".", 1)[0]
    matches = difflib.get_close_matches(bare, known["timm"] | known["torchvision"], n=count, cutoff=0.5)
    return [match if match in known["timm"] else f"torchvision/{match}" for match in matches]


def parse_name(name: str, arguments: Mapping[str, Any] | None = None) -> Architecture:
    """Returns the architecture a name stands for.

    A tag of pretrained weights (`resnet50.a1_in1k`) is dropped.

    Raises:
        ArchitectureError: if neither framework knows the name.
    """
    arguments = dict(arguments or {})
    if is_custom_name(name):
        return Architecture("custom", name, arguments)
    prefix, _, rest = name.rpartition("/")
    bare = rest.split(".", 1)[0]
    known = known_architectures()
    frameworks = (prefix,) if prefix else ("timm", "torchvision")
    for framework in frameworks:
        if bare in known.get(framework, ()):
            return Architecture(framework, bare, arguments)
    near = ", ".join(nearest_names(bare))
    raise ArchitectureError(
        f"no architecture named `{name}` in timm or torchvision",
        hint=f"did you mean {near}?" if near else "give a timm or torchvision name, or file.py:factory",
    )


def build_model(architecture: Architecture, *, without_weights: bool = False) -> nn.Module:
    """Returns the network with initial weights, in eval mode.

    Args:
        architecture: which one.
        without_weights: leave its parameters on the meta device, where they need neither memory nor time; buffers are
            real, since some are computed and stored nowhere. One's own networks are always built whole.

    Raises:
        ArchitectureError: if the factory does not exist or refuses its arguments.
    """
    if refused := NOT_TAKEN & architecture.arguments.keys():
        raise ArchitectureError(
            f"`{min(refused)}` is no argument of an architecture, weights come from the checkpoint",
            hint="leave it out of --arch-arg",
        )
    known = known_architectures().get(architecture.framework)
    if known is not None and architecture.name not in known:
        # timm would take `hf-hub:…` or `local-dir:…` for a name, and fetch what it says.
        raise ArchitectureError(
            f"`{architecture.label}` is no architecture of the installed {architecture.framework}",
            hint=f"similar names: {', '.join(nearest_names(architecture.name)) or 'none'}",
        )
    if architecture.framework not in _BUILDERS:
        raise ArchitectureError(
            f"no framework named `{architecture.framework}`", hint=f"known are {', '.join(_BUILDERS)}"
        )
    build = functools.partial(_BUILDERS[architecture.framework], architecture.name)
    if without_weights and known is not None:
        # Some need values of their parameters while they are built, or make buffers where their parameters are; those
        # are built whole, and what is wrong told then.
        with contextlib.suppress(Exception), _parameters_on_meta():
            model = build(dict(architecture.arguments))
            if not any(tensor.is_meta for tensor in _other_tensors(model)):
                return model.eval()
    try:
        model = build(dict(architecture.arguments))
    except ArchitectureError:
        raise
    # A factory may raise anything on arguments it does not take.
    except Exception as error:
        shown = ", ".join(f"{key}={value}" for key, value in architecture.arguments.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArchitectureError(
            f"cannot build `{architecture.label}` with {shown or 'no arguments'}: {reason}",
            hint="check --arch and --arch-arg KEY=VALUE",
        ) from error
    return model.eval()


def assign_tensors_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Makes the tensors the model's, without copying them; parameters that are one stay one.

    Args:
        model: changed in place.
        tensors: one for each name in the state dict, of its shape.
    """
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    state: Any = OrderedDict(tensors)
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # versions, which some modules ask for
    model.load_state_dict(state, strict=True, assign=True)
    for first, *others in tied.values():
        for name in others:
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, model.get_parameter(first))


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Moves every parameter that this thread registers in a module to the meta device; others go on as they are."""
    with _BUILDING:
        yield from _register_on_meta(threading.get_ident())


def _register_on_meta(thread: int) -> Iterator[None]:
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if threading.get_ident() == thread and param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _other_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yields all tensors that modules hold beside their parameters, stored or not."""
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def default_preprocessing(architecture: Architecture, model: nn.Module) -> Preprocessing:
    """Returns the input size and statistics the framework documents for the architecture.

    For one's own network: `model.default_cfg` if it has one in timm's form, otherwise 224×224 images of `in_chans`
    channels that are not normalised.
    """
    channels = int(architecture.arguments.get("in_chans", 3))
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if architecture.framework == "torchvision":
        size = 299 if architecture.name == "inception_v3" else 224
        base = Preprocessing((3, size, size), IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear", "torchvision's defaults")
        return base.for_channels(channels)
    if isinstance(config, Mapping) and config.get("input_size"):
        base = Preprocessing((3, 224, 224), IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear", "timm's defaults")
        preprocessing = base.updated(f"timm's configuration of {architecture.name}", config).for_channels(channels)
        size = _image_size(architecture)
        return preprocessing if size is None else preprocessing.updated("--arch-arg", {"input_size": (channels, *size)})
    return Preprocessing((channels, 224, 224), (0.0,) * channels, (1.0,) * channels, 1.0, "bilinear", "assumed")


def _image_size(architecture: Architecture) -> tuple[int, int] | None:
    """Returns the (height, width) the architecture was built for, if that was asked for."""
    size = architecture.arguments.get("img_size")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _build_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return model


def _build_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    import torchvision

    channels = arguments.pop("in_chans", 3)
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False} | arguments
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    if channels != 3:
        _change_input_channels_(model, channels)
    return model


def _change_input_channels_(model: nn.Module, channels: int) -> None:
    """Gives the first convolution another number of input channels; torchvision has no argument for it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            bias = module.bias is not None
            replacement = ConvGeometry.of(module).make(channels, module.out_channels, bias=bias)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replacement)
            return


def _build_custom(name: str, arguments: dict[str, Any]) -> nn.Module:
    model = _find_factory(name)(**arguments)
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"`{name}` returned {type(model).__name__}, not a torch.nn.Module",
            hint="name a function or class that returns the network",
        )
    return model


def _find_factory(name: str) -> Any:
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).expanduser()
        if not path.is_file():
            raise ArchitectureError(f"no file `{place}`", hint="--arch takes file.py:factory or package.module:factory")
        spec = importlib.util.spec_from_file_location(f"lrcompress_custom_{path.stem}", path)
        assert spec is not None and spec.loader is not None  # always so for an existing .py file
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ArchitectureError(
                f"cannot import `{place}`: {error}", hint="--arch takes file.py:factory or package.module:factory"
            ) from error
    if not hasattr(module, attribute):
        raise ArchitectureError(f"`{place}` has no `{attribute}`", hint="name the function that returns the network")
    return getattr(module, attribute)


_BUILDERS = {"timm": _build_timm, "torchvision": _build_torchvision, "custom": _build_custom}
