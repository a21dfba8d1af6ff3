"""The forms in which people's files write segmentations, made COCO's: polygons, or one run-length object.

What lies inside (coordinates, runs) is checked when the mask is asked for; here only the form is put right.
"""

import itertools
import json
import re
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.images.rle import merge_rles, rle_boxes, segmentation_to_rle
from ntt_jax.notes import Notes
from ntt_jax.text import numbers_in, numbers_of

_NUMBERS = (int, float)
_MAX_WRITTEN = 2_000_000  # characters of a segmentation or of run lengths written as a text
_DEEPEST = 4
"""Pairs of brackets too many that are taken off a polygon."""
_CODES = range(48, 112)
"""Characters of compressed run lengths."""
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
        written, segmentation = segmentation, _from_text(segmentation)
        if segmentation is None:
            notes.add("segmentations that cannot be read, left out", f"{where}: {describe(written)}")
            return None
    if isinstance(segmentation, list) and segmentation:
        return _from_list(segmentation, height, width, where, notes)
    if isinstance(segmentation, dict) and segmentation:
        return _from_object(segmentation, height, width, where, notes)
    if segmentation is not None and segmentation != [] and segmentation != {}:
        notes.add("segmentations that cannot be read, left out", f"{where}: {describe(segmentation)}")
    return None


def _from_text(text: str) -> Any:
    """What a segmentation that is a text says: JSON, as Python prints it, or numbers alone; None if it is neither."""
    for read in (json.loads, _from_printed, numbers_in)[: 3 if len(text) <= _MAX_WRITTEN else 1]:
        try:
            return read(text)
        except (ValueError, RecursionError):
            pass
    return None


def _from_printed(text: str) -> Any:
    """Lists, tuples, numbers and an object of a few texts or bytes, as Python prints them.

    Python's own reader of these takes gigabytes for a text of 10 MB. Run lengths have no brackets, commas or quotes.
    """
    text = _LAST_COMMA.sub("", text.replace("(", "[").replace(")", "]"))
    return json.loads(_QUOTED.sub(_in_json, text, count=8))


_LAST_COMMA = re.compile(r",(?=\s*[]}])")
_QUOTED = re.compile(r"""b?(['"])[^'"]*\1""")


def _in_json(quoted: re.Match[str]) -> str:
    text = quoted[0]
    return json.dumps(text if text[0] == "b" else text[1:-1].replace("\\\\", "\\"))


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
    unwrapped = _unwrapped(given, _DEEPEST)
    if unwrapped is not given:
        notes.add("polygons in more brackets than COCO's", where)
    for polygon in unwrapped:
        if type(polygon) is str and len(polygon) <= _MAX_WRITTEN:
            polygon = numbers_in(polygon)
            if polygon is not None:
                notes.add("polygons whose numbers are written as text", where)
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
    found = numbers_of(texts) if all(type(text) is str for text in texts) else None
    return texts if found is None else found


def _unwrapped(given: list[Any], deepest: int) -> list[Any]:
    """The polygons of a list in which some stand in more brackets than COCO's; the same list if none does."""
    if not deepest or not any(_is_wrapped(one) for one in given):
        return given
    flat = [part for one in given for part in (one if _is_wrapped(one) else [one])]
    return _unwrapped(flat, deepest - 1)


def _is_wrapped(polygon: Any) -> bool:
    """Whether this is a list of polygons, not one: in each list in it are lists again, or numbers enough for one."""
    return (
        type(polygon) is list
        and bool(polygon)
        and all(type(part) is list and bool(part) for part in polygon)
        and all(type(part[0]) is list or (len(part) >= 6 and type(part[0]) in (*_NUMBERS, str)) for part in polygon)
    )


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
    counts: Any = given.get("counts")
    size: Any = given.get("size")
    if type(counts) is str and counts[:2] in ("b'", 'b"'):  # how Python prints bytes
        closed = len(counts) > 3 and counts[-1] == counts[1]
        counts = counts[2:-1].replace("\\\\", "\\") if closed else None
        if closed:
            notes.add("run lengths written as Python prints bytes", where)
    spaced = type(counts) is str and len(counts) < _MAX_WRITTEN and ("," in counts or " " in counts[1:-1])
    if spaced and re.fullmatch(r"\[?[\d, ]+\]?", counts, re.ASCII):  # compressed text has no spaces and no commas
        counts = counts.strip("[]").replace(",", " ").split()
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
    if type(counts) is list and _is_bytes(counts, height * width):
        counts = "".join(map(chr, counts))
        notes.add("run lengths written as the numbers of their characters", where)
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


def _is_bytes(counts: list[Any], pixels: int) -> bool:
    """Whether a list is the characters of compressed run lengths: as lengths it would not fill the image."""
    return bool(pixels and counts) and all(type(v) is int and v in _CODES for v in counts) and sum(counts) != pixels


def in_pixels(segmentation: Any, height: int, width: int) -> Any:
    """Polygons whose numbers are shares of the image's size, in pixels; any other segmentation as it is."""
    if type(segmentation) is not list or not height:
        return segmentation
    numbers = list(itertools.chain.from_iterable(segmentation))
    if not all(_is_number(v) and -0.01 <= v <= 1.01 for v in numbers):
        return segmentation
    return [[v * (height if i % 2 else width) for i, v in enumerate(polygon)] for polygon in segmentation]


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
