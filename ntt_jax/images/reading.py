"""Image files to arrays (METHOD stage 1 step 1, stage 3 step 1): what Pillow's `convert("RGB")` gives."""

import contextlib
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, show_path

# Photograph formats whose decoders run inside Pillow. Others are refused: the EPS reader, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
# Endings by which a folder is searched for images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
MAX_PIXELS = 200_000_000
"""Default limit on height x width, for images and for annotations: 600 MB as RGB."""

_open_lock = threading.Lock()
# What Pillow logs about a damaged file is in the error raised for it; without any handler, Python would print it too.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to uint8 RGB `[H, W, 3]`.

    The content decides the format, not the extension. Grey, palette, 1-bit, CMYK and YCbCr become RGB as Pillow
    converts them; alpha is dropped, not composited; of an animation the first frame is read. 16-bit channels keep
    their high byte: Pillow does so for 16-bit colour, but clips 16-bit grey at 255, which is not done here.
    EXIF orientation is ignored, as COCO's annotations and upstream ignore it (a TIFF's own orientation tag is applied
    by Pillow).

    Raises `InputError`, naming the file, if it is missing, a folder, empty, not an image of a known format, truncated,
    of a pixel type without a defined 8-bit meaning (32-bit grey, LAB), or of more than `max_pixels` pixels.
    """
    with _decoding(path), _open(path, max_pixels) as image:
        if image.format == "TIFF":  # its tags are read late, and may warn
            with _quiet():
                image.load()
        return _to_rgb(image)


def read_index_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image whose pixels are numbers, not colours (palette or 8-bit grey), to those numbers, uint8 `[H, W]`.

    Raises `InputError` as `read_image`, and if the pixels are of another type.
    """
    with _decoding(path), _open(path, max_pixels) as image:
        if image.mode not in ("P", "L"):
            raise InputError(f"expected a palette image (one number a pixel), found pixels of type {image.mode}")
        return np.array(image, dtype=np.uint8)


def open_image_size(path: PathLike) -> tuple[int, int]:
    """Height and width in pixels from the file's header, without decoding it. Raises `InputError` as `read_image`."""
    with _decoding(path), _open(path, None) as image:
        return image.height, image.width


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # A PGM above 8 bits arrives as 32-bit integers, scaled by Pillow so that its white is 65535.
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)  # [H, W]
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise InputError("32-bit grey has no defined 8-bit range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return np.array(image.convert("RGB"), dtype=np.uint8)  # [H, W, 3]


def _open(path: PathLike, max_pixels: int | None) -> Image.Image:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise InputError("expected an image file, found " + ("a folder" if stat.S_ISDIR(info.st_mode) else "a device"))
    if info.st_size == 0:
        raise InputError("expected an image, found an empty file")
    with _quiet():
        image = Image.open(path, formats=FORMATS)
    if max_pixels is not None and image.height * image.width > max_pixels:
        size = f"{image.width} x {image.height}"
        image.close()
        raise InputError(f"the image is {size} pixels, over the limit of {max_pixels:,} pixels; make it smaller")
    return image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings and lift its own pixel limit, which only warns at first and cannot be set per call.

    Both are process-wide settings: hence the lock, and hence only the short reading of the header runs under it.
    """
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _decoding(path: PathLike) -> Iterator[None]:
    """Turn whatever goes wrong while decoding into an `InputError` that starts with the path."""
    shown = show_path(path)
    try:
        yield
    except InputError as error:
        raise InputError(f"{shown}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{shown}: not an image that can be read (formats: {', '.join(FORMATS)})") from error
    except Exception as error:
        # Not only OSError: on bad data Pillow's decoders raise SyntaxError, struct.error, KeyError and more.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        reason = " ".join(ascii(reason)[1:-1].split())[:120]
        raise InputError(f"{shown}: cannot read the image: {reason}") from error
