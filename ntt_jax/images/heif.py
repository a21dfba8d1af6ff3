"""HEIC, the photos of phones: opened and decoded by pillow-heif, in a process of its own (`apart`).

A HEIC says how it is turned in properties of the image, not in a tag beside it, and its decoder obeys them. So the
pixels always arrive upright, the EXIF tag that phones write as well is not obeyed a second time, and "raw" makes no
difference.
"""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images.apart import decode_apart, size_apart
from ntt_jax.images.structure import check_structure

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
"""Photos of phones, read where pillow-heif is installed."""
HEIF_ADVICE = 'pip install "ntt-jax[heif]" (pillow-heif) makes it readable'
_UNKNOWN = 1_000_000  # pixels, where the file names no size


def can_read_heif() -> bool:
    """Whether the library that reads HEIC is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def heif_size(data: bytes) -> tuple[int, int]:
    """Width and height of what `heif_rows` returns, without decoding it. Raises `InputError` without the library."""
    return size_apart(data, "HEIF", _pixels(data), more_paths=(_library(),))


def heif_rows(data: bytes, max_pixels: int) -> Iterator[Any]:
    """The image as Pillow images of some rows each, as `decode_apart`. Raises `InputError` without the library."""
    return decode_apart(data, "HEIF", _pixels(data), allowed=max_pixels, more_paths=(_library(),))


def joined(parts: Iterator[Any]) -> Image.Image:
    """The rows of `decode_apart` as one image. Raises `InputError` if it is one of several frames."""
    whole, top = None, 0
    for part in parts:
        if whole is None:
            if part.info["frames"] > 1:
                raise InputError(f"the file holds {part.info['frames']} pages or frames; expected one")
            whole = Image.new(part.mode, part.info["size"])
            if part.palette is not None:
                whole.putpalette(part.getpalette("RGB") or [], "RGB")
            whole.info |= {key: value for key, value in part.info.items() if key == "transparency"}
        whole.paste(part, (0, top))
        top += part.height
    if whole is None:
        raise InputError("the decoder returns no pixels")
    return whole


def _pixels(data: bytes) -> int:
    width, height = check_structure(data).size or (_UNKNOWN, 1)
    return width * height


def _library() -> str:
    found = importlib.util.find_spec("pillow_heif")
    if found is None or not found.origin:
        raise InputError(f"a HEIC photo; {HEIF_ADVICE}")
    return os.path.dirname(os.path.dirname(os.path.abspath(found.origin)))
