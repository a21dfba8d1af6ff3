"""Image files to arrays (METHOD stage 1 step 1, stage 3 step 1): what Pillow's `convert("RGB")` gives."""

import contextlib
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, show_path

# Photograph formats whose decoders run inside Pillow. Others are refused: the EPS reader, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
# Endings by which a folder is searched for images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
EXIF = ("upright", "raw")
"""How a photo's orientation tag is read: turned as viewers show it, or the pixels as they are stored."""
MAX_PIXELS = 200_000_000
"""Default limit on height x width, for images and for annotations: 600 MB as RGB."""

_open_lock = threading.Lock()
# What Pillow logs about a damaged file is in the error raised for it; without any handler, Python would print it too.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says before it is decoded.

    height, width: as stored, in pixels. orientation: EXIF's, 1 to 8; 1 where there is no (sound) tag.
    """

    height: int
    width: int
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as a viewer shows the image."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    def turns(self, exif: str = "upright", fits: tuple[int, int] | None = None) -> bool:
        """Whether the pixels are turned upright: not for "raw", and not where only the stored size is `fits`."""
        if self.orientation == 1 or exif == "raw":
            return False
        return fits is None or self.upright == fits or (self.height, self.width) != fits

    def size(self, exif: str = "upright", fits: tuple[int, int] | None = None) -> tuple[int, int]:
        """Height and width of what `read_image` returns."""
        return self.upright if self.turns(exif, fits) else (self.height, self.width)


def read_image(
    path: PathLike, *, exif: str = "upright", fits: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image file to uint8 RGB `[H, W, 3]`.

    The content decides the format, not the extension. Grey, palette, 1-bit, CMYK and YCbCr become RGB as Pillow
    converts them; alpha is dropped, not composited; of an animation the first frame is read. 16-bit channels keep
    their high byte: Pillow does so for 16-bit colour, but clips 16-bit grey at 255, which is not done here.
    An orientation tag (EXIF or XMP in JPEG, PNG, WebP and AVIF, or a TIFF's own) turns the image upright, as viewers
    and annotation tools show it. fits: height and width of annotations or a mask: where only the stored size is this,
    the pixels stay as stored. exif="raw": they always do. Without a tag nothing is touched.

    Raises `InputError`, naming the file, if it is missing, a folder, empty, not an image of a known format, truncated,
    of a pixel type without a defined 8-bit meaning (32-bit grey, LAB), or of more than `max_pixels` pixels.
    """
    with _decoding(path), _open(path, max_pixels) as image:
        header = _header(image, path)
        turn = header.turns(exif, fits)
        if image.format == "TIFF":  # its tags are read late, and may warn
            with _quiet():
                image.load()
        pixels = _to_rgb(image)
        if image.format == "TIFF":  # Pillow turns these itself
            return pixels if turn else turned(pixels, _BACK.get(header.orientation, header.orientation))
        return turned(pixels, header.orientation) if turn else pixels


@contextlib.contextmanager
def open_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The file opened by Pillow, as `read_image` would: whatever goes wrong inside is an `InputError` with its name."""
    with _decoding(path), _open(path, max_pixels) as image:
        if image.format == "TIFF":  # its tags are read late, and may warn
            with _quiet():
                image.load()
        yield image


def read_index_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image whose pixels are numbers, not colours (palette or 8-bit grey), to those numbers, uint8 `[H, W]`.

    Raises `InputError` as `read_image`, and if the pixels are of another type.
    """
    with _decoding(path), _open(path, max_pixels) as image:
        if image.mode not in ("P", "L"):
            raise InputError(f"expected a palette image (one number a pixel), found pixels of type {image.mode}")
        return np.array(image, dtype=np.uint8)


def read_header(path: PathLike) -> ImageHeader:
    """Stored size and orientation of an image file, without decoding it. Raises `InputError` as `read_image`."""
    with _decoding(path), _open(path, None) as image:
        return _header(image, path)


def open_image_size(path: PathLike, *, exif: str = "upright") -> tuple[int, int]:
    """Height and width in pixels of what `read_image` returns, from the file's header, without decoding it.

    Raises `InputError` as `read_image`.
    """
    return read_header(path).size(exif)


_BACK = {6: 8, 8: 6}  # the orientations that do not undo themselves


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels `[H, W, ...]` turned upright from an EXIF orientation: 2 to 4 keep the size, 5 to 8 swap it."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = {2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of an opened image, 1 where there is no (sound) tag. Does not decode it."""
    try:
        with _quiet():
            # A PNG would be decoded in full to look for a tag behind the pixels: `_header` looks for that itself.
            tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # a damaged tag says nothing
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _header(image: Image.Image, path: PathLike) -> ImageHeader:
    """Of an image that is open and not yet decoded."""
    orientation = orientation_of(image)
    if image.format == "PNG" and orientation == 1 and "exif" not in image.info:
        orientation = _late_orientation(path)
    height, width = image.height, image.width
    if image.format == "TIFF" and orientation >= 5:  # Pillow gives the upright size
        height, width = width, height
    return ImageHeader(height, width, orientation)


def _late_orientation(path: PathLike) -> int:
    """The orientation in an eXIf chunk that stands behind a PNG's pixels."""
    with open(path, "rb") as file:
        file.seek(8)
        for _ in range(100_000):
            head = file.read(8)
            if len(head) < 8:
                break
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf" and length < 2**20:
                exif = Image.Exif()
                try:
                    exif.load(file.read(length))
                    tag = exif.get(ExifTags.Base.Orientation)
                except Exception:
                    return 1
                return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1
            file.seek(length + 4, os.SEEK_CUR)
    return 1


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
