"""Pictures and masks that somebody sends: decoded as every file from strangers, and gone afterwards."""

import asyncio
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.reading import read_image

T = TypeVar("T")

_DECODING = ThreadPoolExecutor(2, "decoding")
"""Decoded at once: an image of the reader's limit takes a gigabyte."""


async def decoded(data: bytes, what: str, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file with these bytes. Raises `InputError` as it does, with `what` for the file's name."""
    return await asyncio.get_running_loop().run_in_executor(_DECODING, _read, data, what, read)


async def picture(data: bytes, exif: str = "upright") -> np.ndarray:
    """`read_image` of bytes: `[H, W, 3]` uint8 RGB."""
    return await decoded(data, "image", lambda path: read_image(path, exif=exif))


def _read(data: bytes, what: str, read: Callable[[Path], T]) -> T:
    # The readers take paths: they look at a file before they open it, and hand it to processes of their own.
    with tempfile.TemporaryDirectory(prefix="ntt-jax-") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            return read(path)
        except InputError as error:
            raise InputError(str(error).replace(show_path(path), what)) from None
