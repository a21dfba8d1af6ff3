"""The forms in which people's files write boxes, made COCO's: x, y, width, height in pixels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ntt_jax.datasets.dataset import CocoAnnotation, CocoImage
from ntt_jax.datasets.segmentations import extent, in_pixels
from ntt_jax.files import describe
from ntt_jax.notes import Notes
from ntt_jax.text import number_in, numbers_in

Box = tuple[float, float, float, float]
MAX_COORDINATE = 1e9
_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
ROUNDING = 1.5
"""Pixels by which a box and the extent of its mask may differ and be the same."""


def number(value: Any) -> Any:
    """A bearable finite number, also as text; comparing is also what refuses NaN, infinities and huge integers."""
    found: Any = number_in(value) if type(value) is str else value
    return found if type(found) in (float, int) and -MAX_COORDINATE <= found <= MAX_COORDINATE else None


def read_box(written: Any, where: str, notes: Notes) -> Box | None:
    """The box of an annotation; None if it has none of four finite numbers. where: of the entry, for `notes`."""
    box = written
    if type(box) is not list or len(box) != 4:
        box = _four(written)
        if box is None:
            if written is not None and written != []:
                notes.add("boxes that are not four finite numbers, not used", f"{where}: {describe(written)}")
            return None
        notes.add("boxes that are objects, text or points", f"{where}: {describe(written)}")
    x, y, width, height = (number(value) for value in box)
    if x is None or y is None or width is None or height is None:
        notes.add("boxes that are not four finite numbers, not used", f"{where}: {describe(box)}")
        return None
    if width < 0 or height < 0:  # drawn from another corner
        notes.add("boxes of negative width or height, turned round", f"{where}: {describe(box)}")
        x, y, width, height = min(x, x + width), min(y, y + height), abs(width), abs(height)
    return float(x), float(y), float(width), float(height)


def _four(written: Any) -> list[Any] | None:
    """x, y, width, height of a box that is not simply a list of them, as they are written; None if that is not sure."""
    if type(written) is dict:
        for keys in _SIDES:
            if all(key in written for key in keys):
                return [written[key] for key in keys]
        for keys in _CORNERS:
            if all(key in written for key in keys):
                return _between([written[key] for key in keys])
        return None
    if type(written) is str:
        found = numbers_in(written.strip().strip("[]()")) if len(written) <= 200 else None
        return found if found is not None and len(found) == 4 else None
    if type(written) is list and len(written) == 1 and type(written[0]) is list and len(written[0]) == 4:
        return written[0]
    if type(written) is list and len(written) == 2 and all(type(v) is list and len(v) == 2 for v in written):
        return _between([*written[0], *written[1]])
    return None


def _between(corners: list[Any]) -> list[Any] | None:
    """x, y, width, height of a box given by two corners."""
    x1, y1, x2, y2 = (number(value) for value in corners)
    return None if x1 is None or y1 is None or x2 is None or y2 is None else [x1, y1, x2 - x1, y2 - y1]


def without_doubt(
    annotations: Mapping[int, CocoAnnotation], images: Mapping[int, CocoImage], notes: Notes
) -> dict[int, CocoAnnotation]:
    """Annotations, by id, whose numbers mean something else than they do in COCO's files, as COCO writes them.

    For a file in which a box leaves its image, or no box is larger than a pixel. Two corners in place of corner and
    size are read so where the masks prove it, shares of the image's size where all of the file is such; else
    everything stays, and `notes` asks.
    """
    if all(max(one.bbox[2:]) <= 1 for one in annotations.values()):
        return _from_shares(annotations, images, notes)
    boxes = _from_corners(annotations, images, notes)
    return {number: dataclasses.replace(annotations[number], bbox=box) for number, box in boxes.items()}


def _from_shares(
    annotations: Mapping[int, CocoAnnotation], images: Mapping[int, CocoImage], notes: Notes
) -> dict[int, CocoAnnotation]:
    changed: dict[int, CocoAnnotation] = {}
    for one in annotations.values():
        image = images[one.image_id]
        x, y, width, height = one.bbox
        polygons = in_pixels(one.segmentation, image.height, image.width)
        box = None if polygons is None else extent(polygons, image.height, image.width)
        if box is None and image.height and min(x, y) >= 0 and max(x + width, y + height) <= 1.001:
            box = x * image.width, y * image.height, width * image.width, height * image.height
        if box is None:
            notes.add("boxes smaller than a pixel, as all of the file", f"annotation {one.id}", "are they in pixels?")
            return {}
        # An area in shares says nothing in pixels.
        changed[one.id] = dataclasses.replace(one, bbox=box, segmentation=polygons, area=None)
    first = next(iter(annotations.values()))
    what = "boxes in shares of the image's size (all are smaller than a pixel), read in pixels"
    notes.add(what, f"annotation {first.id}: {describe(list(first.bbox))}", count=len(changed))
    return changed


def _from_corners(
    annotations: Mapping[int, CocoAnnotation], images: Mapping[int, CocoImage], notes: Notes
) -> dict[int, Box]:
    """Boxes that are two corners, as x, y, width, height, by annotation id. Boxes without masks are read alike where
    all others that can be compared are corners."""
    corners: dict[int, Box] = {}
    alone: dict[int, Box] = {}
    doubtful: list[CocoAnnotation] = []
    sides = 0
    for one in annotations.values():
        image = images[one.image_id]
        x, y, width, height = one.bbox
        turned = (x, y, width - x, height - y)
        mask = extent(one.segmentation, image.height, image.width) if one.segmentation is not None else None
        if mask is None:
            alone[one.id] = turned
            if image.height and _leaves(one.bbox, image):
                doubtful.append(one)
        elif _same(one.bbox, mask):
            sides += not _same(turned, mask)
        elif _same(turned, mask) and min(turned[2:]) > 0:
            corners[one.id] = turned
    if corners and not sides and all(min(box[2:]) > 0 for box in alone.values()):
        corners |= alone
    elif doubtful:
        first = doubtful[0]
        notes.add(
            "boxes that leave their image and would fit as two corners, taken as x, y, width, height",
            f"annotation {first.id}: {describe(list(first.bbox))}",
            "if they are x1, y1, x2, y2, write x2 - x1 and y2 - y1 in their place",
            count=len(doubtful),
        )
    if corners:
        first = annotations[next(iter(corners))]
        what = "boxes that are two corners, as the masks prove, read so"
        notes.add(what, f"annotation {first.id}: {describe(list(first.bbox))}", count=len(corners))
    return corners


def _leaves(box: Box, image: CocoImage) -> bool:
    """Whether a box leaves its image and would fit as two corners: x1, y1, x2, y2."""
    x, y, width, height = box
    beyond = x + width > image.width + ROUNDING or y + height > image.height + ROUNDING
    return beyond and x < width <= image.width + ROUNDING and y < height <= image.height + ROUNDING


def _same(one: Box, other: Box) -> bool:
    """Whether two boxes are the same, rounding aside."""
    near = max(abs(one[0] - other[0]), abs(one[1] - other[1]))
    far = max(abs(one[0] + one[2] - other[0] - other[2]), abs(one[1] + one[3] - other[1] - other[3]))
    return max(near, far) <= ROUNDING
