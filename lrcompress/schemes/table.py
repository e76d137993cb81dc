"""All schemes by name."""

from collections.abc import Sequence

from lrcompress.errors import OptionError
from lrcompress.nn import LowRankLayer, PlainLayer
from lrcompress.schemes.matrix import Matrix
from lrcompress.schemes.scheme import Scheme
from lrcompress.schemes.spatial import Spatial
from lrcompress.schemes.split import Split
from lrcompress.schemes.tucker2 import Tucker2

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (Matrix(), Spatial(), Tucker2(), Split())}


def find_scheme(name: str) -> Scheme:
    """Returns the scheme of a name.

    Raises:
        OptionError: if there is none.
    """
    if name not in SCHEMES:
        raise OptionError(f"no scheme named `{name}`", hint=f"known are {', '.join(SCHEMES)}")
    return SCHEMES[name]


def schemes_for(layer: PlainLayer, name: str, wanted: str = "auto") -> list[Scheme]:
    """Returns the schemes to choose between for a layer: all that fit, or the wanted one where it does.

    Where the wanted scheme does not fit, the matrix form takes its place: it fits every layer but depthwise ones, for
    which the list is empty.
    """
    fitting = [scheme for scheme in SCHEMES.values() if scheme.fits(layer, name)]
    if wanted == "auto":
        return fitting
    chosen = [scheme for scheme in fitting if scheme is find_scheme(wanted)]
    return chosen or [scheme for scheme in fitting if scheme.name == "matrix"]


def can_have(layer: PlainLayer, name: str, scheme: str, ranks: Sequence[int]) -> bool:
    """Whether a layer, which the network calls `name`, can take a scheme's form at some ranks."""
    found = SCHEMES.get(scheme)
    if found is None or not found.fits(layer, name):
        return False
    largest = found.largest_ranks(layer)
    in_range = all(1 <= rank <= most for rank, most in zip(ranks, largest, strict=False))
    return len(ranks) == len(largest) and in_range


def build_layer(layer: PlainLayer, scheme: str, ranks: Sequence[int]) -> LowRankLayer:
    """Returns a low-rank layer in the place of a dense one, on its device and of its type, its values not yet set."""
    return find_scheme(scheme).build(layer, tuple(ranks))
