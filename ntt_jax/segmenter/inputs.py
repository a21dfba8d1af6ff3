"""Images, masks, references and constants as people hand them over. Host only."""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.compiled.prompt_masker import Prompt
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, lists_for_tuples
from ntt_jax.images.mask_files import mask_numbers
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.preprocess import mask_to_grid, reference_crop
from ntt_jax.images.reading import ImageHeader, orientation_of, read_header, read_image, turned
from ntt_jax.images.rle import encode_masks, rle_boxes
from ntt_jax.memory.aggregate import check_reference
from ntt_jax.notes import Notes

Crop = tuple[np.ndarray, np.ndarray]
"""A reference as the encoder gets it: `[E, E, 3]` float32 normalised, mask `[g, g]` float32 in [0, 1]."""


def is_image(value: Any) -> bool:
    """Whether a value is one image, good or not, and not a collection of them."""
    return isinstance(value, (str, os.PathLike, Image.Image)) or hasattr(value, "__array__")


def as_image(value: Any, exif: str = "upright", fits: tuple[int, int] | None = None) -> np.ndarray:
    """An image `[H, W, 3]` uint8 RGB from an array of that form, a path, or a PIL image.

    exif, fits: as for `read_image`, for both files and PIL images.
    Raises `InputError` for anything else, and for a file that cannot be read.
    """
    if isinstance(value, (str, os.PathLike)):
        return read_image(value, exif=exif, fits=fits)
    array = from_pillow(value) if isinstance(value, Image.Image) else _as_array(value)
    if array is None or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        found = describe(value) if array is None else f"{array.dtype} {list(array.shape)}"
        raise InputError(f"expected an image as uint8 [H, W, 3], a path or a PIL image, found {found}")
    if (header := _header_of(value)) is not None and header.turns(exif, fits):
        return turned(array, header.orientation)
    return array


def as_mask(value: Any, notes: Notes | None = None, where: str = "the mask") -> np.ndarray:
    """A mask of one instance, bool `[H, W]`, from an array, a path, or a PIL image: 0, or one other value (or colour).

    More values are refused, but for the soft edge of black and one other value, which is cut in the middle; `notes`
    hears of that, and of a mask that covers everything. Raises `InputError`.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.ndim == 2 and not value.all():
        return value
    return mask_numbers(value).mask(where, Notes() if notes is None else notes)


def _header_of(value: Any) -> ImageHeader | None:
    """Size and orientation of an image that is not an array, None of one that is. Pillow turns TIFFs itself."""
    if isinstance(value, (str, os.PathLike)):
        return read_header(value)
    if isinstance(value, Image.Image):
        return ImageHeader(value.height, value.width, orientation_of(value))
    return None


def as_box(value: Any) -> tuple[float, float, float, float]:
    """A COCO box as four finite floats x, y, width, height in pixels. Raises `InputError`."""
    try:
        x, y, width, height = (float(v) for v in value)
        if not isinstance(value, (str, bytes)) and np.all(np.isfinite([x, y, width, height])):
            return x, y, width, height
    except (TypeError, ValueError, OverflowError):
        pass
    found = [str(v)[:20] for v in value] if isinstance(value, (list, tuple, np.ndarray)) else describe(value)
    raise InputError(f"expected a box of four finite numbers x, y, width, height in pixels, found {str(found)[:120]}")


def from_pillow(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image in RGB, as stored. Raises `InputError` if it cannot be decoded, or has no such form."""
    if image.mode.startswith(("I", "F")):
        raise InputError(f'a PIL image of mode "{image.mode}" has no certain 8-bit range; convert it to "RGB"')
    try:
        image.load()  # whatever tags stand behind the pixels are known now
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"the PIL image cannot be decoded: {' '.join(str(error).split())[:120]}") from error


def images_ahead(
    images: Iterable[Any], ahead: int, exif: str = "upright", skipped: Notes | None = None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Each image with where it came from: its path, or the array itself. Files are read by threads, in order.

    skipped: hears of images that cannot be used, which are then left out.

    Raises `InputError` at the turn of an image that cannot be used, naming its place.
    """

    read = functools.partial(as_image, exif=exif)

    def jobs() -> Iterator[Callable[[], tuple[Any, np.ndarray]]]:
        try:
            for index, image in enumerate(images):
                # Pillow decodes on first use, which two threads must not do to one image: here, not in the threads.
                image = _placed(index, read, image) if isinstance(image, Image.Image) else image
                yield functools.partial(_placed, index, functools.partial(_with_source, exif=exif), image)
        except Exception as error:  # at its turn, after the images before it
            yield functools.partial(_raise, error)

    if skipped is None:
        return map_ahead(operator.call, jobs(), ahead=ahead)
    every = map_ahead(functools.partial(_or_skipped, skipped), jobs(), ahead=ahead)
    return (found for found in every if found is not None)


def _or_skipped(skipped: Notes, job: Callable[[], Any]) -> Any:
    try:
        return job()
    except InputError as error:
        skipped.add("images that cannot be read, left out", str(error))


def as_prompt(value: Any) -> Prompt | None:
    """What a reference gives in place of a mask: a box of four numbers, a list of points, a `Prompt`; None for a mask.

    Raises `InputError` for what looks like a box or points and is none.
    """
    if isinstance(value, Prompt):
        return value
    if hasattr(value, "__array__") and not isinstance(value, Image.Image) and np.ndim(value) == 1:
        value = np.asarray(value).tolist()
    if not isinstance(value, (list, tuple)):
        return None
    if value and all(isinstance(v, (list, tuple, np.ndarray)) for v in value):
        return Prompt(points=tuple(value))
    return Prompt(box=as_box(value))


def reference_crops(name: str, references: Sequence[Any], **options: Any) -> Iterator[Crop]:
    """What `reference_jobs` reads, read by threads, in order. Raises `InputError` at the turn of one."""
    return map_ahead(operator.call, reference_jobs(name, references, **options), ahead=4)


def reference_jobs(
    name: str,
    references: Sequence[Any],
    *,
    input_size: int,
    grid: int,
    make_masks: Callable[[np.ndarray, Sequence[Prompt]], tuple[np.ndarray, np.ndarray]],
    notes: Notes,
    exif: str = "upright",
) -> Iterator[Callable[[], Crop]]:
    """What reads each of the references of the class `name`, `(image, mask)` or `(image, mask, box)`, for the encoder.

    Without a box it is the mask's own, the COCO way: x, y of the first pixel, width and height in pixels. In place of a
    mask there may be a box or points (`as_prompt`): make_masks (`PromptMasker`) makes the mask; the box stays the one
    that was given. Photos are turned as `exif` says, and as their masks fit; what is doubtful goes to `notes`.
    They raise `InputError` naming class and position of one that cannot be used.
    """

    def opened(where: str, image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray | Prompt]:
        prompt = as_prompt(mask)
        if prompt is not None:
            return as_image(image, exif), prompt
        inside = as_mask(mask, notes, where)
        _note_orientation(image, exif, (inside.shape[0], inside.shape[1]), where, notes)
        return as_image(image, exif, (inside.shape[0], inside.shape[1])), inside

    def read(where: str, image: Any, mask: Any, box: Any = None) -> Crop:
        with _naming(where):
            pixels, inside = opened(where, image, mask)
            if isinstance(inside, Prompt):
                box = inside.box if box is None else box
                _question_box(box, pixels, where, notes)
                inside = make_masks(pixels, [inside])[0][0]
                if not inside.any():
                    raise InputError("SAM 2 finds nothing there; give a mask, or other points or another box")
            elif box is not None:
                _question_box(box, pixels, where, notes)
            if inside.shape != pixels.shape[:2]:
                found, expected = (f"{a.shape[1]} x {a.shape[0]}" for a in (inside, pixels))
                raise InputError(f"the mask is {found} pixels, its image {expected}; they must be of one size")
            if not inside.any():
                raise InputError("the mask is empty; it must mark the pixels of the object")
            edges = as_box(rle_boxes(encode_masks(inside[None]))[0] if box is None else box)
            crop, soft = reference_crop(pixels, inside, edges, input_size)
        on_grid = mask_to_grid(soft, grid)
        check_reference(on_grid, where)
        return crop, on_grid

    for index, reference in enumerate(references):
        where = f"{index} of class {describe(name)}"
        if not isinstance(reference, (tuple, list)) or len(reference) not in (2, 3):
            found = f"{len(reference)} values" if isinstance(reference, (tuple, list)) else describe(reference)
            raise InputError(
                f"reference {where}: expected (image, mask), (image, box) or (image, mask, box), found {found}"
            )
        image, mask, *box = reference
        if isinstance(image, Image.Image) or isinstance(mask, Image.Image):
            with _naming(where):  # PIL images here, as in `images_ahead`
                image, mask = opened(where, image, mask)
        yield functools.partial(read, where, image, mask, *box)


def each_instance(name: Any, references: Iterable[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """References of the class `name`, and where each came from; masks with numbers of instances are taken apart.

    Each number beside 0 becomes a reference. Those with a prompt or a box stay as they are. Raises `InputError`.
    """
    for index, reference in enumerate(references):
        with _naming(f"{index} of class {describe(name)}"):
            pair = isinstance(reference, (tuple, list)) and len(reference) == 2
            if not pair or as_prompt(reference[1]) is not None:
                yield reference, origin(reference) if isinstance(reference, (tuple, list)) else {}
                continue
            found = mask_numbers(reference[1]).instances()
            if not found:
                raise InputError("the mask is empty; it must mark the pixels of objects")
        for number, mask in found:
            yield (reference[0], mask), {**origin(reference), "instance": number}


def _note_orientation(image: Any, exif: str, fits: tuple[int, int], where: str, notes: Notes) -> None:
    header = _header_of(image)
    if header is None or header.orientation == 1 or exif != "upright":
        return
    if not header.turns(exif, fits):
        notes.add("photos with an EXIF orientation whose mask fits the stored pixels: not turned", where)
    elif header.upright == (header.height, header.width):
        what = (
            "photos with an EXIF orientation that fits their mask both ways (180 degrees, mirrored or square): upright"
        )
        notes.add(what, where, 'exif="raw" takes the pixels as they are stored')


def _question_box(box: Any, pixels: np.ndarray, where: str, notes: Notes) -> None:
    """A box that leaves the image, and would not as two corners, is doubtful."""
    if box is None:
        return
    x, y, width, height = as_box(box)
    high, wide = pixels.shape[:2]
    leaves = x + width > wide + 1 or y + height > high + 1
    if leaves and x < width <= wide + 1 and y < height <= high + 1:
        question = "boxes that leave their image; a box is x, y, width, height: did you give two corners?"
        notes.add(question, f"{where}: {[round(v, 2) for v in (x, y, width, height)]} in {wide} x {high} pixels")
    elif leaves or x < -1 or y < -1:
        notes.add("boxes that leave their image, cut at its border", where)


def origin(reference: Sequence[Any]) -> dict[str, Any]:
    """Where a reference came from, as JSON data: the names of its files, without their folders, and its box."""
    image, mask, *box = reference
    prompt = as_prompt(mask)
    names: dict[str, Any] = {
        key: Path(value).name.encode("utf-8", "replace").decode()
        for key, value in (("image", image), ("mask", mask))
        if isinstance(value, (str, os.PathLike))
    }
    for value in (image, mask):
        names |= getattr(value, "origin", {})
    given: dict[str, Any] = {"box": list(as_box(box[0]))} if box and box[0] is not None else {}
    if prompt is not None:
        given |= {"prompt": {"box": prompt.box, "points": list(prompt.points), "labels": prompt.labels}}
    return lists_for_tuples({**names, **given})


def merged_config(
    config: DetectConfig | None, thresholds: dict[str, Any], method: PathLike | None = None
) -> DetectConfig:
    """The constants with single ones replaced by name. Raises `InputError` for unknown names and impossible values.

    method: file of the constants, in place of `config`.
    """
    if config is not None and method is not None:
        raise InputError("Segmenter: give config or method, not both")
    config = DetectConfig() if config is None else config
    config = config if method is None else DetectConfig.from_file(method)
    if not isinstance(config, DetectConfig):
        raise InputError(f"Segmenter: config: expected a DetectConfig, found {describe(config)}")
    known = [field.name for field in dataclasses.fields(DetectConfig)]
    if unknown := sorted(set(thresholds) - set(known)):
        raise InputError(f"Segmenter: unknown argument {unknown[0]!r}; constants are {', '.join(known)}")
    return dataclasses.replace(config, **thresholds)


def _as_array(value: Any) -> np.ndarray | None:
    return np.asarray(value) if hasattr(value, "__array__") else None


def _with_source(image: Any, exif: str) -> tuple[Any, np.ndarray]:
    pixels = as_image(image, exif)
    return image if isinstance(image, (str, os.PathLike)) else pixels, pixels


def _raise(error: Exception) -> Any:
    raise error


def _placed(index: int, function: Callable[[Any], Any], image: Any) -> Any:
    try:
        return function(image)
    except InputError as error:
        # The message of a file starts with its path, which says more than a number.
        if isinstance(image, (str, os.PathLike)):
            raise
        raise InputError(f"image {index}: {error}") from None


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"reference {where}: {error}") from None
