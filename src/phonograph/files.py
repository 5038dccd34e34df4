"""Writing files so that nothing half-written is ever left under the final name.

    with atomic_write("out.wav") as file:
        file.write(data)

The data goes to a hidden temporary file in the same folder, which takes the final name only after it has been flushed to the
disk. On any error, or an interrupt, the temporary file is removed and an older file of that name stays as it was.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from phonograph.errors import OutputError

__all__ = ["atomic_write", "make_folder", "output_error"]


def output_error(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """The typed, one-line form of an OSError met while writing `path`."""
    reason = error.strerror or str(error)
    return OutputError(f"cannot write {os.fspath(path)}: {reason}; choose another place or make room there")


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder to write into, with its parents; one that exists is left as it is.

    Raises:
        OutputError: it can't be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file for writing bytes; rename it to `path` when the block ends without an error.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise output_error(target, error) from error
    try:
        with cast(BinaryIO, os.fdopen(handle, "w+b")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _new_file_mode(target))
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise output_error(target, error) from error
        raise


def _new_file_mode(target: Path) -> int:
    """mkstemp makes files private; the result gets the mode of the file it replaces, or the umask's."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
