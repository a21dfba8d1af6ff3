"""Masks as COCO run-length encodings: encoding, checked decoding, polygons.

A COCO RLE is `{"size": [height, width], "counts": ...}`: lengths of alternating runs of background and foreground,
column by column, as a list of integers or as pycocotools' compressed text. pycocotools trusts what it is given, so
everything from a file is checked here first. Results always carry compressed ASCII text, which JSON can hold.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as mask_api

from ntt_jax.errors import InputError
from ntt_jax.files import describe


class Rle(TypedDict):
    """One compressed mask: `size` is [height, width], `counts` ASCII text."""

    size: list[int]
    counts: str


# pycocotools draws polygons at five times the resolution, point by point along the edges: 20 bytes per unit of
# max(|dx|, |dy|) and more. The limit keeps one annotation under about 300 MB.
MAX_POLYGON_LENGTH = 4_000_000
MAX_POLYGONS = 100_000
"""Polygons of one annotation."""
MAX_COORDINATE = 1_000_000
MAX_TEXT = 16_000_000
"""Characters of one mask's text: pure noise over 30 million pixels. Masks of objects have thousands."""
_TOGETHER = 64  # polygons that one call into C draws, so that Ctrl-C is heard between two
_PIECE = 2**18  # characters of compressed text decoded at once
_MAX_CHARACTERS_PER_COUNT = 7  # 5 bits each: room for 2**31 with its sign


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """Boolean masks `[n, H, W]` to compressed RLEs, in order."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise InputError(f"masks: expected bool [n, H, W], found {masks.dtype} {list(masks.shape)}")
    rles = []
    for mask in masks:
        # One transposed copy per mask stays in the cache: a transposed copy of the whole stack takes longer.
        columns = np.ascontiguousarray(mask.T).view(np.uint8)  # [W, H]
        rles.append(_compressed(mask_api.encode(np.asfortranarray(columns.T))))
    return rles


def decode_rle(rle: Rle) -> np.ndarray:
    """One compressed RLE to a boolean mask `[H, W]`. Raises `InputError` if it is not sound."""
    height, width = rle["size"]
    # pycocotools' own decoder raises a DeprecationWarning under numpy 2.
    return np.ascontiguousarray(_columns(rle["counts"], height, width).T)


def decode_rles(rles: Sequence[Rle], height: int, width: int) -> np.ndarray:
    """Bool `[n, H, W]` of n masks of one size in pixels; the way back from `encode_masks`."""
    masks = np.zeros((len(rles), height, width), np.bool_)
    for mask, rle in zip(masks, rles, strict=True):
        mask[:] = decode_rle(rle)
    return masks


def sample_rle(rle: Rle, height: int, width: int) -> Rle:
    """The mask on a grid of height x width pixels, each the value at its centre. Raises `InputError` if unsound."""
    full_height, full_width = rle["size"]
    if (full_height, full_width) == (height, width):
        return rle
    inside = _columns(rle["counts"], full_height, full_width).view(np.uint8)
    rows = (np.arange(height) * 2 + 1) * full_height // (2 * height)
    columns = (np.arange(width) * 2 + 1) * full_width // (2 * width)
    # Column by column throughout, as run lengths are: nothing is transposed in memory.
    sampled = np.take(inside[columns], rows, axis=1)  # [width, height]
    return _compressed(mask_api.encode(sampled.T))


def rle_areas(rles: Sequence[Rle]) -> np.ndarray:
    """Foreground pixels of each RLE, int64 `[n]`."""
    # One at a time: under numpy 2, pycocotools (2.0.11) fails on lists of 256 and more.
    area: Any = mask_api.area
    return np.array([int(area(rle)) for rle in rles], np.int64)


def rle_boxes(rles: Sequence[Rle]) -> np.ndarray:
    """COCO's boxes `[n, 4]` float64 as x, y, width, height in pixels, where the width counts pixels (last - first + 1).

    METHOD's boxes of detections are one smaller in width and height: they are not these.
    """
    untyped: Any = list(rles)
    return np.asarray(mask_api.toBbox(untyped), np.float64) if rles else np.zeros((0, 4))


def segmentation_to_rle(segmentation: Any, height: int, width: int, where: str) -> Rle:
    """Any of COCO's three segmentations (polygons, list RLE, compressed RLE) as a checked, compressed RLE.

    segmentation: the JSON value, untrusted. height, width: of its image, in pixels. where: start of error messages
    (file and entry). Polygons are drawn and clipped to the image by pycocotools; several are united.

    Raises `InputError` unless the value has one of the three forms, an RLE is of the image's size with runs that are
    not negative and fill the image exactly, and polygons have at least three points of finite coordinates.
    """
    if isinstance(segmentation, list):
        return _polygons_to_rle(segmentation, height, width, where)
    if not isinstance(segmentation, dict):
        raise InputError(f"{where}: segmentation: expected polygons or an RLE object, found {describe(segmentation)}")
    check_rle_size(segmentation, height, width, where)
    counts = segmentation["counts"]
    if isinstance(counts, str):
        for _ in _runs(counts, height * width, where):
            pass
        return Rle(size=[height, width], counts=counts)
    if len(counts) > height * width + 2:
        raise InputError(f"{where}: segmentation: {len(counts)} RLE runs, more than an image of this size can have")
    runs = _integers(counts, where)
    _check_runs(runs, where, height * width)
    encoded = mask_api.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return _compressed(encoded)


def merge_rles(rles: Sequence[Rle]) -> Rle:
    """The union of compressed masks of one size."""
    untyped: Any = list(rles)
    return _compressed(mask_api.merge(untyped))


def check_rle_size(segmentation: dict[str, Any], height: int, width: int, where: str) -> None:
    """The quick part of the check of an RLE object: its keys, their types, and the size against the image's."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(counts, (str, list)):
        raise InputError(f'{where}: segmentation: RLE "counts": expected text or a list, found {describe(counts)}')
    if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int for v in size)):
        raise InputError(f'{where}: segmentation: RLE "size": expected [height, width], found {describe(size)}')
    if size != [height, width]:
        raise InputError(
            f"{where}: segmentation: RLE size [height, width] is {describe(size)}, but its image is {[height, width]}"
        )


def check_polygons(polygons: list[Any], where: str) -> None:
    """The quick part of the check of polygons: lists of x, y pairs, at least three of them each."""
    for polygon in polygons:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2:
            raise InputError(
                f"{where}: segmentation: expected polygons [[x1, y1, x2, y2, x3, y3, ...], ...] of at least three"
                f" points, found {describe(polygon)}"
            )


def _compressed(encoded: Any) -> Rle:
    """pycocotools' result with its text as `str`."""
    return Rle(size=list(encoded["size"]), counts=encoded["counts"].decode("ascii"))


def _polygons_to_rle(polygons: list[Any], height: int, width: int, where: str) -> Rle:
    if not polygons:
        raise InputError(f"{where}: segmentation: expected polygons, found an empty list")
    if len(polygons) > MAX_POLYGONS:
        raise InputError(f"{where}: segmentation: {len(polygons)} polygons, over the limit of {MAX_POLYGONS:,}")
    check_polygons(polygons, where)
    try:
        points = np.asarray(list(chain.from_iterable(polygons)))  # x, y, x, y, ... of all polygons
    except ValueError:
        points = np.zeros((0, 0))  # ragged: refused by its rank
    # Integers beyond 64 bits, strings and nested lists end here as other kinds or ranks, NaN by comparing.
    if points.ndim != 1 or points.dtype.kind not in "iuf" or not _bearable(points):
        raise InputError(
            f"{where}: segmentation: polygon coordinates must be finite numbers within +-{MAX_COORDINATE:,}"
        )
    corners = points.astype(np.float64).reshape(-1, 2)  # [n, 2]
    ends = np.cumsum([len(polygon) // 2 for polygon in polygons])
    following = np.arange(1, len(corners) + 1)
    following[ends - 1] = np.concatenate([[0], ends[:-1]])  # the last corner of each leads to its first
    length = float(np.abs(corners[following] - corners).max(axis=1).sum())
    if length > MAX_POLYGON_LENGTH:
        raise InputError(
            f"{where}: segmentation: polygon edges sum to {length:.3g} pixels, over the limit of {MAX_POLYGON_LENGTH}"
        )
    drawn = [
        mask_api.merge(mask_api.frPyObjects(polygons[start : start + _TOGETHER], height, width))
        for start in range(0, len(polygons), _TOGETHER)
    ]
    # United like a tree, not one after the other, which takes the square of their number. The union is the same.
    while len(drawn) > 1:
        drawn = [mask_api.merge(drawn[start : start + 2]) for start in range(0, len(drawn), 2)]
    return _compressed(drawn[0])


def _bearable(points: np.ndarray) -> bool:
    return bool((np.abs(points.astype(np.float64)) <= MAX_COORDINATE).all())


def _integers(counts: list[Any], where: str) -> np.ndarray:
    try:
        runs = np.asarray(counts)
    except ValueError:
        runs = np.zeros((0, 0))  # ragged: refused by its rank
    if runs.ndim != 1 or runs.dtype.kind != "i":
        raise InputError(f'{where}: segmentation: RLE "counts" must be a list of integers')
    return runs


def _columns(counts: str, height: int, width: int) -> np.ndarray:
    """The mask of compressed text, column by column: bool `[W, H]`. Raises `InputError` if it is not sound."""
    pixels = height * width
    if len(counts) <= _PIECE:
        (runs,) = _runs(counts, pixels, "RLE")
        return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height)
    flat, place, inside = np.zeros(pixels, np.bool_), 0, 0
    for runs in _runs(counts, pixels, "RLE"):
        piece = np.repeat((np.arange(runs.size) + inside) % 2 == 1, runs)
        flat[place : place + piece.size] = piece
        place, inside = place + piece.size, (inside + runs.size) % 2
    return flat.reshape(width, height)


def _runs(counts: str, pixels: int, where: str) -> Iterator[np.ndarray]:
    """Run lengths, int64, from pycocotools' text, checked, in pieces: they are not negative and fill `pixels` exactly.

    5 bits per character, least significant first, bit 5 = "goes on". The last character's bit 4 is the sign; from the
    fourth number on, each is a difference to the one two before.

    A mask has at most one run per pixel, and one character more for each 16 that a run differs from the one two before
    it: text beyond 9/8 of the pixels is refused before it is decoded.
    """
    if len(counts) > MAX_TEXT:
        raise InputError(
            f'{where}: segmentation: RLE "counts" has {len(counts):,} characters, the limit is {MAX_TEXT:,}'
        )
    if len(counts) > pixels + pixels // 8 + 16:
        raise InputError(
            f'{where}: segmentation: RLE "counts" has {len(counts):,} characters, more than a mask of {pixels:,} '
            "pixels can need"
        )
    total, index, start = 0, 0, 0
    before = [0, 0]  # the last numbers of even and of odd place: what a difference is added to
    while True:
        values, end = _decompress(counts, start, where)
        own = min(max(1 - index, 0), values.size)  # the very first number is no difference, and nobody's base
        for parity in (0, 1):
            chosen = values[own:][(parity - index - own) % 2 :: 2]
            if chosen.size:
                chosen[0] += before[parity]
                np.cumsum(chosen, out=chosen)
                before[parity] = int(chosen[-1])
        _check_runs(values, where, pixels, total, last=end == len(counts))
        total, index, start = total + int(values.sum()), index + values.size, end
        yield values
        if end == len(counts):
            return


def _decompress(counts: str, start: int, where: str) -> tuple[np.ndarray, int]:
    """Whole numbers of the text from `start` on, int64, and where the next one begins."""
    try:
        codes = np.frombuffer(counts[start : start + _PIECE].encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        codes = np.array([-1])
    last = start + codes.size >= len(counts)
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or (last and codes[-1] & 32):
        raise InputError(f'{where}: segmentation: RLE "counts" is not valid compressed text')
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    lengths = ends - starts + 1
    if not ends.size or lengths.max() > _MAX_CHARACTERS_PER_COUNT:
        raise InputError(f'{where}: segmentation: RLE "counts" holds a number that is too large')
    codes = codes[: ends[-1] + 1]
    position = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * position), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    return values, start + codes.size


def _check_runs(runs: np.ndarray, where: str, pixels: int, before: int = 0, *, last: bool = True) -> None:
    if runs.size and (runs.min() < 0 or runs.max() > pixels):
        raise InputError(
            f"{where}: segmentation: RLE runs must lie in 0..{pixels} (height x width),"
            f" found {runs.min()}..{runs.max()}"
        )
    total = before + int(runs.sum())
    if total > pixels or (last and total != pixels):
        more = "" if last else " and more"
        raise InputError(f"{where}: segmentation: RLE runs sum to {total}{more}, expected height x width = {pixels}")
