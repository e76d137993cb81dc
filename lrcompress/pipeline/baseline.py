"""From an artifact back to the checkpoint that was compressed."""

from pathlib import Path

from lrcompress.artifact import Manifest
from lrcompress.checkpoint import LoadedModel, LoadOptions, file_sha256, find_weights, load_checkpoint
from lrcompress.errors import LRCompressError, OptionError
from lrcompress.models import is_hub_name

REPORT_PLACE = "the report lies beside the compressed file: copy that to a folder that can be written to"


def find_baseline(
    path: Path, manifest: Manifest, *, explicit: str | None = None, arch: str | None = None
) -> tuple[LoadedModel | None, str]:
    """Returns the original of an artifact, or None and the reason why it is not at hand.

    Looks at the recorded path, from here and, whole or its last parts, from the artifact's folder. The file must have
    the recorded hash. Nothing is fetched unless `explicit` asks for it.

    Args:
        path: the artifact.
        manifest: the artifact's.
        explicit: where the user says it is; anything wrong with it is then an error.
        arch: factory of one's own network.

    Raises:
        LRCompressError: if `explicit` cannot be read or is another file.
    """
    recorded = str(manifest.source["path"])
    parts = Path(recorded).parts
    beside = [str(path.parent.joinpath(*parts[index:])) for index in range(len(parts))]
    # An artifact must not be able to name something to be fetched, in whatever spelling.
    local = [place for place in (recorded, *beside) if not is_hub_name(place)]
    places = [explicit] if explicit else local
    reason = f"`{recorded}` is not there (name it with --baseline)"
    for place in dict.fromkeys(places):
        try:
            if file_sha256(find_weights(place)) == manifest.source["sha256"]:
                return load_checkpoint(place, _baseline_options(manifest, arch)), ""
        except LRCompressError as error:
            if explicit:
                raise
            if Path(place).exists():
                reason = error.message
            continue
        reason = f"`{place}` is not the file that was compressed: its SHA-256 differs"
        if explicit:
            raise OptionError(reason, hint="name the original checkpoint with --baseline")
    return None, reason


def _baseline_options(manifest: Manifest, arch: str | None) -> LoadOptions:
    architecture, source = manifest.architecture, manifest.source
    return LoadOptions(
        arch=arch or architecture.label,
        arch_arguments=architecture.arguments,
        match_by_order=source["match"] == "by order",
        weights_key=source["wrapper"] or None,
        preprocessing=manifest.preprocessing.to_json(),
    )
