"""Masks as files: data, not photographs. What counts is each pixel's number, not how it looks.

A path, an opened PIL image and the array of its numbers give the same mask. 16- and 32-bit values and palette indices
keep their numbers; colours become one number each.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe
from ntt_jax.images.reading import open_image, orientation_of, turned
from ntt_jax.notes import Notes

EXPECTED = "expected a mask as bool or 0/1 [H, W], a path or a PIL image"
_MIN_CONTRAST = 64
"""Grey values this far apart may be two values with a soft edge; numbers of instances are closer."""
_LOSSY_NOISE = 40
"""A JPEG's values differ from what was stored by less than this, away from edges."""
_SOFT_WIDTH, _LOSSY_WIDTH = 3, 8
"""Pixels from the border of the mask within which other values are its soft edge."""
_MAX_SHOWN = 8
_MAX_INSTANCES = 10_000
_MAX_WIDE_PIXELS = 64_000_000
"""Pixels of a mask whose numbers take more than a byte: colours, 16 and 32 bits."""
_ROWS = 2**22  # pixels whose colours are numbered at once


@dataclass(frozen=True)
class MaskNumbers:
    """One number per pixel `[H, W]`, 0 for background. colours: they stand for colours. lossy: from a JPEG."""

    values: np.ndarray
    colours: bool = False
    lossy: bool = False

    def mask(self, where: str, notes: Notes) -> np.ndarray:
        """The one instance, bool `[H, W]`: where the number is not 0.

        Soft edges, a few grey pixels between black and one other value, are cut in the middle; `notes` says so.
        Raises `InputError` if there are several values, with the first of them.
        """
        inside = self.values != 0
        numbers = self.values[inside]
        if numbers.size and not np.all(numbers == numbers[0]):
            cut = self._cut()
            if cut is None:
                raise InputError(
                    f"the mask holds several values beside 0 ({self._shown()}); expected the mask of one instance, "
                    "such as (mask == 3) or (mask > 127); instances=True makes a reference of each"
                )
            inside = cut
            notes.add("masks with soft edges, cut in the middle between their two values", where)
        if inside.all():
            question = "masks that cover their whole image (is it the mask of an object, with 0 as background?)"
            notes.add(question, where)
        elif inside[[0, -1]].all() and inside[:, [0, -1]].all():
            question = (
                "masks that mark all four borders of their image (are object and background swapped? 0 is background)"
            )
            notes.add(question, where)
        return inside

    def instances(self) -> list[tuple[int | float, "InstanceMask"]]:
        """Each number beside 0, ascending, and its mask, bool `[H, W]`, made when it is asked for.

        Raises `InputError` for more numbers than a picture of instances has: noise, or a photo.
        """
        numbers = [value.item() for value in np.unique(self.values) if value != 0]
        if len(numbers) > _MAX_INSTANCES:
            raise InputError(f"the mask holds {len(numbers):,} values, over the limit of {_MAX_INSTANCES:,} instances")
        return [(number, InstanceMask(self.values, number)) for number in numbers]

    def _cut(self) -> np.ndarray | None:
        """Black and one other value with a soft edge between them, cut in the middle; None if it is not that."""
        grey = self.values
        if self.colours:
            bands = [((grey >> shift) & 255).astype(np.uint8) for shift in (16, 8, 0)]
            grey = np.maximum(np.maximum(*bands[:2]), bands[2])
        elif grey.dtype != np.uint8:
            return None
        grey = grey.astype(np.int32)
        low, high = int(grey.min()), int(grey.max())
        noise, width = (_LOSSY_NOISE, _LOSSY_WIDTH) if self.lossy else (0, _SOFT_WIDTH)
        if low > noise or high - low < _MIN_CONTRAST:
            return None
        inside = 2 * grey > low + high
        between = np.minimum(grey - low, high - grey) > noise
        return inside if not (between & ~_near_border(inside, width)).any() else None

    def _shown(self) -> str:
        found = np.unique(self.values[self.values != 0])
        texts = [f"#{int(v):06x}" if self.colours else f"{v:g}" for v in found[:_MAX_SHOWN].tolist()]
        return ", ".join(texts) + (f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else "")


class InstanceMask:
    """Where an array of numbers `[H, W]` has this one: an array, bool `[H, W]`, to numpy, made anew each time."""

    ndim = 2

    def __init__(self, values: np.ndarray, number: int | float):
        self._values, self._number = values, number

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._values == self._number, dtype=dtype)


def read_mask(path: PathLike) -> MaskNumbers:
    """The numbers of a mask file. Raises `InputError`, naming it, as `read_image`, or if they are not certain."""
    with open_image(path) as image:
        return numbers_of(image)


def mask_numbers(value: Any) -> MaskNumbers:
    """The numbers of a mask: a path, a PIL image, an array `[H, W]`, `[H, W, 1]`, `[1, H, W]`, uint8 `[H, W, 3 or 4]`.

    Raises `InputError` for anything else.
    """
    if isinstance(value, (str, os.PathLike)):
        return read_mask(value)
    if isinstance(value, Image.Image):
        try:
            return numbers_of(value)
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the PIL image cannot be decoded: {' '.join(str(error).split())[:120]}") from error
    array = np.asarray(value) if hasattr(value, "__array__") else None
    if array is not None and array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    elif array is not None and array.ndim == 3 and array.shape[0] == 1 and array.shape[2] > 4:
        array = array[0]  # one mask of several, as SAM's own predictor returns them
    if array is not None and array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        return numbers_of(Image.fromarray(array))
    if array is None or array.ndim != 2 or array.dtype.kind not in "biuf":
        found = describe(value) if array is None else f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{EXPECTED}, found {found}")
    return MaskNumbers(array)


def numbers_of(image: Image.Image) -> MaskNumbers:
    """The numbers of an opened image. Raises `InputError` if they are not certain, and what Pillow raises."""
    deep = _deep_colour(image)
    # Not their number, for which Pillow would go through all of them.
    if getattr(image, "is_animated", False) and image.format not in ("JPEG", "MPO"):
        raise InputError("the mask file holds several pages or frames; expected one")
    lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and "A" not in image.mode)
    if image.mode not in ("1", "L", "P") and image.width * image.height > _MAX_WIDE_PIXELS:
        size = f"{image.width} x {image.height}"
        raise InputError(
            f"a mask of {size} pixels in colours or more than 8 bits, over the limit of {_MAX_WIDE_PIXELS:,} pixels; "
            "save it as a palette image or 8-bit grey"
        )
    image.load()
    orientation = orientation_of(image)
    if deep:
        raise InputError(
            "16-bit colours lose their low bytes when they are read; save the numbers as one channel (16-bit grey)"
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        found = _with_alpha(image)
    elif image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.dtype.kind == "f":
            values = _whole(values)
        found = MaskNumbers(values, lossy=lossy and image.mode == "L")
    else:
        found = MaskNumbers(_colour_numbers(image), colours=True, lossy=lossy)
    return MaskNumbers(turned(found.values, orientation), found.colours, found.lossy)


def _deep_colour(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", None) or []
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in tiles)


def _whole(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise InputError("the mask holds fractions; expected whole numbers, such as (mask > 0.5)")
    return values.astype(np.int64) if np.abs(values).max(initial=0) < 2**62 else values


def _colour_numbers(image: Image.Image) -> np.ndarray:
    """One number per colour, int32 `[H, W]`."""
    numbers = np.empty((image.height, image.width), np.int32)
    rows = max(1, _ROWS // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows)))
        bands = np.asarray(part.convert("RGB")).astype(np.int32)
        numbers[top : top + part.height] = bands @ np.array([65536, 256, 1], np.int32)
    return numbers


def _with_alpha(image: Image.Image) -> MaskNumbers:
    """The mask of an image with alpha: in its colours, or in the alpha channel where the colours say nothing."""
    alpha = np.asarray(image.getchannel("A" if "A" in image.getbands() else "a"))
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "PA":
        grey, colours = np.asarray(image.getchannel("P")), False
    elif image.mode == "LA":
        grey, colours = np.asarray(image.getchannel("L")), False
    else:
        grey, colours = _colour_numbers(image), True
    if alpha.min() == alpha.max():
        return MaskNumbers(grey, colours)
    shown = grey[alpha != 0]
    if (grey == grey.flat[0]).all() or (shown.size and (shown == shown[0]).all() and not _agree(grey, alpha)):
        return MaskNumbers(alpha)
    if _agree(grey, alpha):
        return MaskNumbers(grey, colours)
    raise InputError(
        "the mask's colours and its alpha channel say different things; give one of them, such as "
        'image.getchannel("A")'
    )


def _agree(grey: np.ndarray, alpha: np.ndarray) -> bool:
    return bool(((grey != 0) == (alpha != 0)).all())


def _near_border(inside: np.ndarray, width: int) -> np.ndarray:
    """Pixels within `width` (chessboard) of the other side, bool `[H, W]`."""
    grown, shrunk = inside, ~inside
    for axis in (0, 1):
        grown, shrunk = _spread(grown, width, axis), _spread(shrunk, width, axis)
    return grown & shrunk


def _spread(mask: np.ndarray, width: int, axis: int) -> np.ndarray:
    result = mask.copy()
    near = np.moveaxis(mask, axis, 0)
    out = np.moveaxis(result, axis, 0)  # a view
    for step in range(1, min(width, len(near) - 1) + 1):
        out[step:] |= near[:-step]
        out[:-step] |= near[step:]
    return result
