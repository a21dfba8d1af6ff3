"""LabelMe's JSON: polygons, rectangles, circles and masks of one photo, which lies beside it or in the file itself.

    {"version": ..., "imagePath": "bus1.jpg", "imageData": null or base64, "imageHeight": ..., "imageWidth": ...,
     "shapes": [{"label": "bus", "points": [[x, y], ...], "shape_type": "polygon", "group_id": null or 1}, ...]}

Shapes of one label and one group_id are one object, as in LabelMe's own exports. A rectangle is a box; other shapes are
masks. Lines and points surround nothing and are left out.
"""

import base64
import binascii
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from ntt_jax.datasets.coco_entries import whole
from ntt_jax.errors import InputError
from ntt_jax.files import describe, parse_json, read_bytes
from ntt_jax.images.reading import MAX_PIXELS, decode_image, decoded_size
from ntt_jax.images.rle import decode_rle, rle_areas, segmentation_to_rle
from ntt_jax.images.tree import Tree
from ntt_jax.references.folder.found import Box, FoundReference, Lazy, Part, mentions
from ntt_jax.text import number_in

MAX_BYTES = 512 * 1024**2
_MAX_SHAPES = 20_000
_MAX_POINTS = 100_000
_MAX_COORDINATE = 1e6
_MAX_PAINTED = 10 * MAX_PIXELS
"""Pixels of a photo, times its masks that are pictures of their own; a hundred are read whatever its size."""
_CIRCLE_POINTS = 128
"""A circle becomes a polygon of this many points: off by less than a tenth of a pixel up to a radius of 300."""
_POINTS = {
    "polygon": 3,
    "rectangle": 2,
    "circle": 2,
    "mask": 1,
    "oriented_rectangle": 3,
    "rotation": 3,
    "quadrilateral": 4,
}
"""Shapes that surround something, and how many points they have at least; "rotation" is X-AnyLabeling's turned box."""
_BOXES = ("rectangle", "oriented_rectangle", "rotation")


def is_labelme(data: bytes) -> bool:
    """Whether a JSON file may be LabelMe's, without parsing it."""
    return mentions(data, "shapes")


def read(tree: Tree) -> Part:
    """References of all LabelMe files."""
    part = Part()
    for file in tree.of(".json"):
        try:
            data = read_bytes(file, max_bytes=MAX_BYTES, what="annotation file")
            if not is_labelme(data):
                continue
            content = parse_json(data, file, what="LabelMe file")
            if isinstance(content, dict) and isinstance(content.get("shapes"), list):
                _read_file(file, content, tree, part)
        except InputError as error:
            part.leave_out(file, _reason(error, file))
    return part


def _reason(error: InputError, file: Path) -> str:
    """The message without the file's name, which is said beside it."""
    return str(error).removeprefix(f"{file}: ")


def _read_file(file: Path, content: dict[str, Any], tree: Tree, part: Part) -> None:
    shapes = content["shapes"]
    if len(shapes) > _MAX_SHAPES:
        raise InputError(f"{len(shapes):,} shapes, more than {_MAX_SHAPES:,}")
    if not shapes:
        return
    photo, image, height, width = _photo(file, content, tree)
    painted = sum(isinstance(shape, dict) and shape.get("shape_type") == "mask" for shape in shapes)
    if painted > 100 and painted * height * width > _MAX_PAINTED:
        raise InputError(f"{painted:,} masks of shapes in a photo of {width} x {height} pixels, too many to be read")
    groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for number, shape in enumerate(shapes, 1):
        try:
            label, group = _label(shape), shape.get("group_id")
            if type(group) is float:
                group = int(group) if group.is_integer() else None if group != group else group  # NaN: no group
            if group is not None and type(group) not in (int, str):
                raise InputError(f'"group_id": expected a number, found {describe(group)}')
            kind = shape.get("shape_type") or "polygon"
            if not isinstance(kind, str) or kind not in _POINTS:
                raise InputError(f"a {kind if isinstance(kind, str) else 'shape'} surrounds nothing"[:60])
            _check(shape, kind, height, width)
            groups.setdefault((label, number) if group is None else (label, "group", group), []).append((number, shape))
        except InputError as error:
            part.leave_out(file, error, number)
    for (label, *_), members in groups.items():
        number = members[0][0]
        boxes = [_box(shape) for _, shape in members if _kind(shape) in _BOXES]
        areas = [shape for _, shape in members if _kind(shape) not in _BOXES]
        if not areas and len(boxes) == 1:
            part.references.append(FoundReference(label, photo, file, image, None, boxes[0], number))
            continue
        if not areas:
            part.leave_out(file, "several rectangles of one group", number)
            continue
        lazy = Lazy(partial(_mask, areas, height, width), {"annotations": file.name, "shape": number})
        part.references.append(FoundReference(label, photo, file, image, lazy, number=number))


def _photo(file: Path, content: dict[str, Any], tree: Tree) -> tuple[Path, Path | Lazy, int, int]:
    """The photo's file, the photo as references take it, and its height and width in pixels."""
    written = content.get("imagePath")
    name = PureWindowsPath(written).name if isinstance(written, str) else ""  # parts at both kinds of slashes
    size = _size(content)
    places: list[Path] = []
    if isinstance(written, str) and written and "\0" not in written:
        places = [file.parent / written.replace("\\", "/"), file.parent / name]
    photo = next((found for place in places if (found := tree.photo_at(Path(os.path.normpath(place))))), None)
    photo = photo or (tree.photo_named(os.path.splitext(name)[0], file) if name else None)
    photo = photo or tree.photo_named(file.stem, file)
    embedded = content.get("imageData")
    if photo is not None:
        if size is None:
            return photo, photo, *tree.size(photo)
        try:
            tree.check_size(photo, *size)
            return photo, photo, *size
        except InputError:
            if not embedded:
                raise
    if isinstance(embedded, str) and embedded:
        data = _decoded(embedded, '"imageData"')
        found = decoded_size(data, file)
        if size not in (None, found):
            raise InputError(f'"imageData" is {found[1]} x {found[0]} pixels, the file says {size[1]} x {size[0]}')
        return file, Lazy(partial(_embedded, file), {"image": file.name}, 3), *found
    where = f" ({name})" if name else ""
    raise InputError(f"its photo{where} is not in the folders given, or there are several of this name")


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels as the file says them; None where it does not."""
    height, width = whole(content.get("imageHeight")), whole(content.get("imageWidth"))
    if height is None or width is None or min(height, width) < 1:
        return None
    if height * width > MAX_PIXELS:
        raise InputError(f"over the limit of {MAX_PIXELS:,} pixels")
    return height, width


def _embedded(file: Path) -> np.ndarray:
    content = parse_json(read_bytes(file, max_bytes=MAX_BYTES, what="LabelMe file"), file, what="LabelMe file")
    return decode_image(_decoded(content["imageData"], '"imageData"'), file)


def _decoded(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError, TypeError):
        raise InputError(f"{what}: expected base64, found {describe(text)}") from None


def _label(shape: Any) -> str:
    if not isinstance(shape, dict):
        raise InputError(f"expected a shape, found {describe(shape)}")
    label = shape.get("label")
    if type(label) is int:
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"a shape without a label, found {describe(label)}")
    return label.strip()


def _kind(shape: dict[str, Any]) -> str:
    return shape.get("shape_type") or "polygon"


def _points(shape: dict[str, Any]) -> list[tuple[float, float]]:
    points = shape.get("points")
    if not isinstance(points, list) or len(points) > _MAX_POINTS:
        raise InputError(f'"points": expected [[x, y], ...], found {describe(points)}')
    points = [_pair(point) for point in points]
    for point in points:
        sound = isinstance(point, list) and len(point) == 2 and all(type(v) in (int, float) for v in point)
        if not sound or not all(abs(v) <= _MAX_COORDINATE for v in point):  # NaN as well
            raise InputError(f'"points": expected [[x, y], ...] in pixels, found {describe(point)}')
    return [(float(x), float(y)) for x, y in points]


def _pair(point: Any) -> Any:
    """A point as [x, y], also if it is an object of the two, or its numbers are text."""
    if isinstance(point, dict) and "x" in point and "y" in point:
        point = [point["x"], point["y"]]
    if isinstance(point, list) and len(point) == 2:
        return [number_in(value) if isinstance(value, str) else value for value in point]
    return point


def _check(shape: dict[str, Any], kind: str, height: int, width: int) -> None:
    """Raise `InputError` for a shape that cannot be used."""
    points = _points(shape)
    if len(points) < _POINTS[kind] or (kind == "circle" and len(points) != 2):
        raise InputError(f"a {kind} of {len(points)} points")
    if kind in _BOXES:
        if min(_box(shape)[2:]) <= 0:
            raise InputError("a rectangle without a size")
    elif kind == "mask":
        if not _painted(shape, height, width).any():
            raise InputError("a mask without a pixel in the photo")
    elif not rle_areas([segmentation_to_rle([_ring(shape)], height, width, kind)])[0]:
        raise InputError(f"a {kind} without a pixel in the photo")


def _box(shape: dict[str, Any]) -> Box:
    xs, ys = zip(*_points(shape), strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _mask(shapes: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """The pixels of all shapes together, bool `[H, W]`."""
    rings = [_ring(shape) for shape in shapes if _kind(shape) != "mask"]
    drawn = decode_rle(segmentation_to_rle(rings, height, width, "shapes")) if rings else None
    result = np.zeros((height, width), np.bool_) if drawn is None else drawn
    for shape in shapes:
        if _kind(shape) == "mask":
            result |= _painted(shape, height, width)
    return result


def _ring(shape: dict[str, Any]) -> list[float]:
    """The outline of a shape that is no mask: x, y of each point."""
    points = _points(shape)
    if _kind(shape) == "rectangle":
        x, y, w, h = _box(shape)
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    if _kind(shape) == "circle":  # by its centre and a point on it
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        angles = 2 * np.pi * np.arange(_CIRCLE_POINTS) / _CIRCLE_POINTS
        return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).ravel().tolist()
    return [value for point in points for value in point]


def _painted(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    """A mask as a PNG of its own, whose first pixel lies at the shape's first point."""
    data = _decoded(shape.get("mask"), '"mask"')
    size = decoded_size(data, "a mask")
    if size[0] > height + 1 or size[1] > width + 1:
        raise InputError("a mask that leaves its photo")
    pixels = decode_image(data, "a mask")[:, :, 0] != 0
    left, top = (round(value) for value in _points(shape)[0])
    if left < 0 or top < 0 or top + pixels.shape[0] > height + 1 or left + pixels.shape[1] > width + 1:
        raise InputError("a mask that leaves its photo")
    result = np.zeros((height, width), np.bool_)
    pixels = pixels[: height - top, : width - left]
    result[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return result
