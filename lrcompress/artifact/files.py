"""Output files: refused if they exist, written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lrcompress.errors import OutputError


def check_outputs(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raises `OutputError` if a file exists (unless it may be overwritten) or its folder cannot be written to.

    To be called before the work starts, so that hours of it are not lost to a mistyped name.
    """
    for path in paths:
        if path.is_dir():
            raise OutputError(f"`{path}` is a folder", hint="name a file with -o")
        if path.exists() and not overwrite:
            raise OutputError(f"`{path}` exists", hint="name another file with -o, or add --overwrite")
        folder = path.parent
        if not folder.is_dir():
            raise OutputError(f"no folder `{folder}` for `{path.name}`", hint=f"mkdir -p {folder}")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(
                f"cannot write into `{folder}`: {error.strerror}", hint="name another place with -o"
            ) from error


def write_atomically(
    path: Path, content: bytes | Iterable[bytes | memoryview], *, check: Callable[[Path], None] = lambda written: None
) -> None:
    """Writes a file so that it appears whole or not at all.

    Args:
        path: where the content is to be; what is there is replaced.
        content: all of it, or piece by piece.
        check: called with the temporary file before it is renamed; if it raises, nothing is left behind.

    Raises:
        OutputError: if the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in [content] if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}", hint="name another place with -o"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
