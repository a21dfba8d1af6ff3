"""Image files to arrays (METHOD stage 1 step 1, stage 3 step 1): what Pillow's `convert("RGB")` gives."""

import contextlib
import io
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe_stranger, has_hole, open_input, reason, show_path
from ntt_jax.images.apart import decode_apart
from ntt_jax.images.heif import HEIF_ADVICE as HEIF_ADVICE
from ntt_jax.images.heif import HEIF_SUFFIXES as HEIF_SUFFIXES
from ntt_jax.images.heif import can_read_heif as can_read_heif
from ntt_jax.images.heif import heif_rows, heif_size, joined
from ntt_jax.images.remote import Address, fetch
from ntt_jax.images.structure import FORMATS as FORMATS
from ntt_jax.images.structure import RAW, Structure, check_structure, format_of
from ntt_jax.images.tags import check_tags, exif_block, late_orientation

# Endings by which a folder is searched for images.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif")
EXIF = ("upright", "raw")
"""How a photo's orientation tag is read: turned as viewers show it, or the pixels as they are stored."""
MAX_PIXELS = 200_000_000
"""Default limit on height x width, for images and for annotations: 600 MB as RGB."""
MAX_IMAGE_BYTES = 650_000_000
"""Limit on the file: 200 million pixels that are not compressed."""
_AT_ONCE = 2**15
"""Pixels that are converted at once: a second copy of the image costs memory, and time to clear it anew each time."""
_HEADER_BYTES = 2**16
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

    The file is read whole, and looked through (`structure`), before a decoder sees it; JPEG 2000 and compressed TIFF
    are decoded in a process of their own, with limits (`apart`).

    Raises `InputError`, naming the file, if it is missing, a folder, empty, not an image of a known format, truncated,
    of a pixel type without a defined 8-bit meaning (32-bit grey, LAB), of more than `max_pixels` pixels or
    `MAX_IMAGE_BYTES`, or expensive beyond its pixels.
    """
    data = _checked(path, max_pixels)
    if _is_heif(data):
        with _decoding(path):
            return _filled(heif_rows(data, max_pixels), "HEIF", None, _to_rgb, 3)
    with _decoding(path), _open(data, max_pixels) as image:
        header = _header(image, data)
        turn = header.turns(exif, fits)
        pixels = _pixels(image, data, _to_rgb, 3)
        if image.format == "TIFF":  # Pillow turns these itself
            return pixels if turn else turned(pixels, _BACK.get(header.orientation, header.orientation))
        return turned(pixels, header.orientation) if turn else pixels


@contextlib.contextmanager
def open_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The file opened by Pillow, as `read_image` would: whatever goes wrong inside is an `InputError` with its name."""
    data = _checked(path, max_pixels)
    if _is_heif(data):
        with _decoding(path):
            whole = joined(heif_rows(data, max_pixels))
            whole.format = "HEIF"
            yield whole
        return
    with _decoding(path), _open(data, max_pixels) as image:
        if _is_apart(image):
            with _quiet():
                several = getattr(image, "is_animated", False)
            if several:
                raise InputError("the file holds several pages or frames; expected one")
            whole = joined(decode_apart(data, str(image.format), image.width * image.height))
            whole.format, whole.info = image.format, {**image.info, **whole.info}
            yield whole
        else:
            _load(image)
            yield image


def read_index_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image whose pixels are numbers, not colours (palette or 8-bit grey), to those numbers, uint8 `[H, W]`.

    Raises `InputError` as `read_image`, and if the pixels are of another type.
    """
    data = _checked(path, max_pixels)
    with _decoding(path):
        if _is_heif(data):
            raise InputError("expected a palette image (one number a pixel), found a HEIC photo")
        with _open(data, max_pixels) as image:
            return _pixels(image, data, _to_index, None)


def read_header(path: PathLike) -> ImageHeader:
    """Stored size and orientation of an image file, without decoding it. Raises `InputError` as `read_image`."""
    data = _checked(path, None, header=True)
    with _decoding(path):
        if _is_heif(data):
            width, height = heif_size(data)
            return ImageHeader(height, width)
        with _open(data, None) as image:
            return _header(image, data)


def decode_image(data: bytes, name: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A JPEG or PNG that is part of another file, upright: uint8 RGB `[H, W, 3]`, as `read_image`.

    name: of the file, for messages. Raises `InputError` as `read_image`, and for other formats.
    """
    with _embedded(data, name, max_pixels) as image:
        orientation = _header(image, data).orientation
        return turned(_pixels(image, data, _to_rgb, 3), orientation)


def decoded_size(data: bytes, name: PathLike, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width in pixels of what `decode_image` returns, without decoding it. Raises `InputError` as that."""
    with _embedded(data, name, max_pixels) as image:
        return _header(image, data).upright


@contextlib.contextmanager
def _embedded(data: bytes, name: PathLike, max_pixels: int) -> Iterator[Image.Image]:
    with _decoding(name):
        if format_of(data[:16]) not in ("JPEG", "PNG"):
            raise InputError("expected a JPEG or PNG within the file")
        check_structure(data)
        with _open(data, max_pixels) as image:
            yield image


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
        check_tags(exif_block(image))
        with _quiet():
            # A PNG would be decoded in full to look for a tag behind the pixels: `_header` looks for that itself.
            tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # a damaged tag says nothing
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _header(image: Image.Image, data: bytes) -> ImageHeader:
    """Of an image that is open and not yet decoded."""
    orientation = orientation_of(image)
    if image.format == "PNG" and orientation == 1 and "exif" not in image.info:
        orientation = late_orientation(data)
    height, width = image.height, image.width
    if image.format == "TIFF" and orientation >= 5:  # Pillow gives the upright size
        height, width = width, height
    return ImageHeader(height, width, orientation)


def _is_heif(data: bytes) -> bool:
    return format_of(data[:16]) == "HEIF"


def _is_apart(image: Image.Image) -> bool:
    """Whether the decoder runs in a process of its own: of an image that is open and not yet decoded."""
    tiles = getattr(image, "tile", ())
    return image.format in ("JPEG2000", "AVIF") or (image.format == "TIFF" and any(tile[0] != "raw" for tile in tiles))


def _load(image: Image.Image) -> None:
    if image.format == "TIFF":  # its tags are read late, and may warn
        with _quiet():
            image.load()


def _pixels(
    image: Image.Image, data: bytes, convert: Callable[[Image.Image, str], np.ndarray], channels: int | None
) -> np.ndarray:
    """The pixels as `convert` makes them of some rows, uint8 `[H, W]` or `[H, W, channels]`."""
    kind, (width, height) = str(image.format), image.size
    if _is_apart(image):
        parts = decode_apart(data, kind, width * height)
    else:
        _load(image)
        parts = _rows(image)
    return _filled(parts, kind, (height, width), convert, channels)


def _filled(
    parts: Iterator[Image.Image],
    kind: str,
    size: tuple[int, int] | None,
    convert: Callable[[Image.Image, str], np.ndarray],
    channels: int | None,
) -> np.ndarray:
    """The rows, converted, in one array. size: height and width; None where the rows say them."""
    parts = iter(parts)
    first = next(parts)
    height, width = size or first.info["size"][::-1]
    result = np.empty((height, width) if channels is None else (height, width, channels), np.uint8)
    top = 0
    for part in itertools.chain([first], parts):
        if part.width == width and top + part.height <= height:
            result[top : top + part.height] = convert(part, kind)
        top += part.height
    if top != height:
        raise InputError("the decoder finds another size than the header says")
    return result


def _rows(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def _to_rgb(image: Image.Image, kind: str) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        # A PGM above 8 bits arrives as 32-bit integers, scaled by Pillow so that its white is 65535.
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)  # [H, W]
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise InputError("32-bit grey has no defined 8-bit range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    if image.mode != "RGB":  # which would be copied
        image = image.convert("RGB")
    return np.array(image, dtype=np.uint8)  # [H, W, 3]


def _to_index(image: Image.Image, kind: str) -> np.ndarray:
    if image.mode not in ("P", "L"):
        raise InputError(f"expected a palette image (one number a pixel), found pixels of type {image.mode}")
    return np.array(image, dtype=np.uint8)


def _checked(path: PathLike, max_pixels: int | None, *, header: bool = False) -> bytes:
    """The file, looked through; whole, or of a JPEG with `header` perhaps only its start, up to the pixels at least."""
    shown = show_path(path)
    remote = io.BytesIO(fetch(path, max_bytes=MAX_IMAGE_BYTES, what="image")) if isinstance(path, Address) else None
    with remote or open_input(path, what="image", max_bytes=MAX_IMAGE_BYTES) as file:
        try:
            kind = format_of(start := file.read(64))
            if kind is None:
                found = describe_stranger(start)
                raise InputError(
                    f"{shown}: not an image that can be read "
                    + (f"but {found}" if found else f"(formats: {', '.join(FORMATS)})")
                )
            if remote is None and kind not in RAW and has_hole(file):
                raise InputError(f"{shown}: the image has parts that were never written; copy it again")
            file.seek(0)
            short = header and kind == "JPEG"
            # By its size: a buffer of the largest size would be asked for and given back each time.
            size = len(remote.getbuffer()) if remote else os.fstat(file.fileno()).st_size
            data = file.read(_HEADER_BYTES if short else min(size, MAX_IMAGE_BYTES) + 1)
            found = _whole_header(data) if short else None
            if short and found is None:
                data += file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            raise InputError(f"{shown}: cannot read the image: {reason(error)}") from error
    try:
        found = check_structure(data) if found is None else found
        size = None if found.format in ("AVIF", "HEIF") else found.size  # theirs may be cropped
        if max_pixels is not None and size is not None:
            _check_size(*size, max_pixels)
    except InputError as error:
        raise InputError(f"{shown}: {error}") from None
    return data


def _whole_header(data: bytes) -> Structure | None:
    """What the start of a file says, if that goes on to its pixels and is sound."""
    try:
        found = check_structure(data)
    except InputError:  # which the whole file will be refused for
        return None
    return None if found.cut else found


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height}"
        raise InputError(f"the image is {size} pixels, over the limit of {max_pixels:,} pixels; make it smaller")


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    kind = str(format_of(data[:16]))
    with _quiet():
        try:
            image = Image.open(io.BytesIO(data), formats=[kind])
        except KeyError:  # a Pillow that does not know the format
            raise InputError(f"this Pillow reads no {kind}; a newer one does") from None
    if max_pixels is not None:
        try:
            _check_size(image.width, image.height, max_pixels)
        except InputError:
            image.close()
            raise
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
        raise InputError(f"{shown}: cannot read the image: {reason(error)}") from error
