"""The forms in which people's files write segmentations, made COCO's: polygons, or one run-length object.

What lies inside (coordinates, runs) is checked when the mask is asked for; here only the form is put right.
"""

import ast
import itertools
import json
import re
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.images.rle import merge_rles, rle_boxes, segmentation_to_rle
from ntt_jax.notes import Notes

_NUMBERS = (int, float)
_MAX_WRITTEN = 2_000_000  # characters of run lengths written as a text of numbers
_DEGENERATE = "polygons of fewer than three points, or an odd count of numbers, left out"


def is_plain(segmentation: Any) -> bool:
    """Whether this is a list of polygons as COCO writes them; quick, for files of a million."""
    for polygon in segmentation:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2 or type(polygon[0]) not in _NUMBERS:
            return False
    return True


def tidy(segmentation: Any, height: int, width: int, where: str, notes: Notes) -> Any:
    """The same mask in COCO's form: a list of polygons, or an object with "size" and "counts"; None if there is none.

    height, width: of the image, 0 if not known. where: of the entry, for `notes`, which hear what was done.
    """
    if type(segmentation) is str:
        try:
            segmentation = json.loads(segmentation)
        except (ValueError, RecursionError):
            notes.add("segmentations that cannot be read, left out", f"{where}: {describe(segmentation)}")
            return None
    if isinstance(segmentation, list) and segmentation:
        return _from_list(segmentation, height, width, where, notes)
    if isinstance(segmentation, dict) and segmentation:
        return _from_object(segmentation, height, width, where, notes)
    if segmentation is not None and segmentation != [] and segmentation != {}:
        notes.add("segmentations that cannot be read, left out", f"{where}: {describe(segmentation)}")
    return None


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS


def _is_point(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and _is_number(value[0]) and _is_number(value[1])


def _from_list(given: list[Any], height: int, width: int, where: str, notes: Notes) -> Any:
    if is_plain(given):
        return given
    if all(map(_is_number, given)):
        if height and all(type(v) is int and v >= 0 for v in given) and sum(given) == height * width:
            notes.add("segmentations that are bare run lengths", where)
            return {"size": [height, width], "counts": given}
        if len(given) >= 6 and len(given) % 2 == 0:
            notes.add("polygons without the outer pair of brackets", where)
            return [given]
        notes.add(_DEGENERATE, where)
        return None
    if all(type(v) is dict and ("counts" in v or "size" in v) for v in given):
        return _united(given, height, width, where, notes)
    if len(given) >= 3 and all(_is_point(v) or _is_xy(v) for v in given):
        notes.add("polygons written as pairs of numbers", where)
        return [_flat(given)]
    polygons: list[Any] = []
    for polygon in given:
        if type(polygon) is list and polygon and all(_is_point(v) or _is_xy(v) for v in polygon):
            polygon = _flat(polygon)
            if len(polygon) >= 6:
                notes.add("polygons written as pairs of numbers", where)
        if type(polygon) is list and len(polygon) >= 6 and type(polygon[0]) is str:
            written, polygon = polygon, _numbers(polygon)
            if polygon is not written:
                notes.add("polygons whose numbers are written as text", where)
        if type(polygon) is list and len(polygon) >= 6 and len(polygon) % 2 == 0 and _is_number(polygon[0]):
            polygons.append(polygon)
        else:
            notes.add(_DEGENERATE, where)
    if not polygons:
        notes.add("annotations left without a mask", where)
    return polygons or None


def _numbers(texts: list[Any]) -> list[Any]:
    """The numbers that texts are, if all of them are; otherwise the same list."""
    if not all(type(text) is str and len(text) < 40 for text in texts):
        return texts
    try:
        return [float(text) for text in texts]
    except ValueError:
        return texts


def _is_xy(value: Any) -> bool:
    return type(value) is dict and _is_number(value.get("x")) and _is_number(value.get("y"))


def _flat(points: list[Any]) -> list[float]:
    pairs = ((p["x"], p["y"]) if type(p) is dict else p for p in points)
    return list(itertools.chain.from_iterable(pairs))


def _united(given: list[dict[str, Any]], height: int, width: int, where: str, notes: Notes) -> Any:
    try:
        parts = [_from_object(one, height, width, where, notes) for one in given]
        rles = [segmentation_to_rle(part, height, width, where) for part in parts if part is not None]
    except InputError as error:
        notes.add("segmentations that cannot be read, left out", str(error))
        return None
    if rles and len(given) > 1:
        notes.add("segmentations of several run lengths, united", where)
    return merge_rles(rles) if rles else None


def _from_object(given: dict[str, Any], height: int, width: int, where: str, notes: Notes) -> Any:
    counts, size = given.get("counts"), given.get("size")
    if type(counts) is str and counts[:2] in ("b'", 'b"'):  # how Python prints bytes
        try:
            counts = ast.literal_eval(counts).decode("ascii")
        except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError):
            counts = None
        else:
            notes.add("run lengths written as Python prints bytes", where)
    if type(counts) is str and len(counts) < _MAX_WRITTEN and " " in counts[1:-1] and re.fullmatch(r"[\d ]+", counts):
        counts = counts.split()  # compressed text has no spaces
    if type(counts) is list and counts and type(counts[0]) is str:
        written, counts = counts, _numbers(counts)
        if counts is not written:
            notes.add("run lengths whose numbers are written as text", where)
    if type(size) is list and len(size) == 2 and type(size[0]) is str:
        size = _numbers(size)
    if type(counts) is list and any(type(v) is float and v.is_integer() for v in counts):
        counts = [int(v) if type(v) is float and v.is_integer() else v for v in counts]
    if type(size) is list and all(type(v) is float and v.is_integer() for v in size):
        size = [int(v) for v in size]
    if size is None and height and counts is not None:
        size = [height, width]
        notes.add("run lengths without a size, taken for their image's", where)
    sound = type(size) is list and len(size) == 2 and all(type(v) is int and v > 0 for v in size)
    if type(counts) not in (str, list) or not sound:
        notes.add("segmentations that cannot be read, left out", f"{where}: {describe(given)}")
        return None
    if height and size != [height, width]:
        what = "masks of another size than their image, left out"
        notes.add(what, f"{where}: [height, width] is {describe(size)}, the image's {[height, width]}")
        return None
    if counts is given.get("counts") and size is given.get("size"):
        return given
    return {"size": size, "counts": counts}


def extent(segmentation: Any, height: int, width: int) -> tuple[float, float, float, float] | None:
    """The box x, y, width, height around polygons or run lengths, as COCO writes boxes; None if there is none."""
    if isinstance(segmentation, list):
        numbers = [(polygon[0::2], polygon[1::2]) for polygon in segmentation]
        xs, ys = ([v for pair in numbers for v in pair[axis]] for axis in (0, 1))
        if not all(_is_number(v) and -1e9 < v < 1e9 for v in (*xs, *ys)):
            return None
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        if height:
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if right <= left or bottom <= top:
            return None
        return float(left), float(top), float(right - left), float(bottom - top)
    try:
        height, width = segmentation["size"]
        rle = segmentation_to_rle(segmentation, height, width, "")
    except (InputError, TypeError, MemoryError):
        return None
    x, y, w, h = (float(v) for v in rle_boxes([rle])[0])
    return (x, y, w, h) if w > 0 and h > 0 else None
