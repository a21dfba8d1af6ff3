"""Files on both sides: opening what a stranger made, and writing so that a reader never sees half a file."""

import contextlib
import hashlib
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator
from typing import IO

from ntt_jax.errors import InputError
from ntt_jax.files import show_path


def regular_file(path: pathlib.Path) -> int:
    """Size in bytes of a regular, non-empty file. Raises `InputError` for anything else (pipes and devices too)."""
    try:
        status = path.stat()
    except (OSError, ValueError) as e:  # ValueError: a NUL character in the name
        raise InputError(f"{show_path(path)}: cannot be read: {reason(e)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{show_path(path)}: is a folder, expected a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{show_path(path)}: not a regular file")
    if status.st_size == 0:
        raise InputError(f"{show_path(path)}: the file is empty; download or write it again")
    return status.st_size


def reason(error: BaseException) -> str:
    """What went wrong, in one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def sha256(path: pathlib.Path) -> str:
    """sha256 of a file as 64 hexadecimal digits. Raises `InputError` if it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise InputError(f"{show_path(path)}: cannot be read: {reason(e)}") from None


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A binary file to write that takes the place of `path` only when the block ends without an error.

    It is written beside `path` under a temporary name, flushed to the disk and renamed; whatever happens before that
    leaves `path` as it was and no temporary file behind. Raises `InputError` if the file system refuses.
    """
    if path.is_dir():
        raise InputError(f"{show_path(path)}: is a folder, expected the name of the file to write")
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
        with os.fdopen(descriptor, "w+b") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes it private; a converted file is an ordinary one
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except (OSError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{show_path(path)}: cannot be written: {reason(e)}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _sync_folder(folder: pathlib.Path) -> None:
    """Make the rename itself durable, where the system can (Windows and some network file systems cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
