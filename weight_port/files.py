"""Opening files that a stranger made."""

import hashlib
import pathlib

from ntt_jax.errors import InputError
from ntt_jax.files import open_input, reason, show_path


def sha256(path: pathlib.Path) -> str:
    """sha256 of a file as 64 hexadecimal digits. Raises `InputError` if it cannot be read."""
    try:
        with open_input(path, empty=True) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as e:
        raise InputError(f"{show_path(path)}: cannot be read: {reason(e)}") from None
