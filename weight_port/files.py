"""Opening files that a stranger made."""

import hashlib
import pathlib
import stat

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
