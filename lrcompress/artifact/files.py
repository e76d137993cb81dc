"""Output files: refused if they exist, written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lrcompress.errors import OutputError


def check_outputs(
    paths: Iterable[Path],
    *,
    overwrite: bool,
    inputs: Iterable[Path | None] = (),
    elsewhere: str = "name another place with -o",
) -> None:
    """Raises `OutputError` if a file exists (unless it may be overwritten) or its folder cannot be written to.

    To be called before the work starts, so that hours of it are not lost to a mistyped name.

    Args:
        paths: of the files that will be written.
        overwrite: whether they may replace others.
        inputs: files that are read, and never replaced.
        elsewhere: what to do where a folder cannot be written to.
    """
    read = [path for path in inputs if path is not None and path.exists()]
    for path in paths:
        if path.is_dir():
            raise OutputError(f"`{path}` is a folder", hint="name a file with -o")
        if path.exists() and not path.is_file():
            raise OutputError(f"`{path}` is a device or a pipe, no file", hint="name a file with -o")
        if path.exists() and any(path.samefile(one) for one in read):
            raise OutputError(f"`{path}` is read by the same command, and is kept", hint="name another file with -o")
        if path.exists() and not overwrite:
            raise OutputError(f"`{path}` exists", hint="name another file with -o, or add --overwrite")
        folder = _target(path).parent
        if not folder.is_dir():
            raise OutputError(f"no folder `{folder}` for `{path.name}`", hint=f"mkdir -p {folder}")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(f"cannot write into `{folder}`: {error.strerror}", hint=elsewhere) from error


def _target(path: Path) -> Path:
    """Returns the file that a symbolic link leads to, any other path as it is."""
    if not path.is_symlink():
        return path
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a ring of links, which is the latter before Python 3.13
        raise OutputError(f"`{path}` is a link that leads nowhere", hint="name another file with -o") from error


def write_atomically(
    path: Path, content: bytes | Iterable[bytes | memoryview], *, check: Callable[[Path], None] = lambda written: None
) -> None:
    """Writes a file so that it appears whole or not at all.

    Args:
        path: where the content is to be; what is there is replaced, and of a symbolic link the file it leads to.
        content: all of it, or piece by piece.
        check: called with the temporary file before it is renamed; if it raises, nothing is left behind.

    Raises:
        OutputError: if the file system refuses.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in [content] if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        temporary.replace(target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}", hint="name another place with -o"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
