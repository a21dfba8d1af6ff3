"""Masks as polygons: traced along the borders of pixels, simplified within stated errors, holes and parts joined.

Coordinates are COCO's: pixel (row i, column j) is the square from (x, y) = (j, i) to (j + 1, i + 1), so the whole image
is the rectangle from (0, 0) to (width, height). A traced ring runs along the borders of pixels and is exact: its area
is the number of pixels, and pycocotools draws the mask again from it. (OpenCV's contours run through the centres of
the outermost pixels instead, half a pixel inside.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POLYGON_ERROR = 1.0
"""Default limit, in pixels, on the distance of a mask's border from its polygon."""
AREA_ERROR = 0.02
"""Limit on the share of its area by which a ring may change when it is simplified."""
_CORNER = math.sqrt(2) / 4  # distance of a corner of pixels from the line that cuts it off
_FINEST = 0.5  # pixels: below this little is gained, the stairs stay
_FEW = 8  # corners that stay as they are: of rectangles, of small things
_MANY = 256  # rings whose closest points are looked for, in a time that grows with the square of their number
_PAIRS = 2**22  # pairs of points whose distances are in memory at once


@dataclass(frozen=True, eq=False)
class Part:
    """One connected part of a mask. Rings are float64 `[n, 2]` x, y in pixels, not closed by a repeated point.

    outer: its outer border, clockwise on the screen. holes: the borders of what is missing inside, counter-clockwise.
    """

    outer: np.ndarray
    holes: tuple[np.ndarray, ...]

    def ring(self) -> np.ndarray:
        """The part as one ring `[n, 2]`: each hole is cut open along a line that is walked there and back."""
        return _joined(self.outer, sorted(self.holes, key=lambda hole: (*hole.min(axis=0), len(hole))))

    @property
    def area(self) -> float:
        """In square pixels, without the holes."""
        return ring_area(self.outer) + sum(ring_area(hole) for hole in self.holes)


def trace_parts(mask: np.ndarray) -> list[Part]:
    """The connected parts (pixels that touch at a corner are connected) of a mask bool `[H, W]`, exactly.

    In the order of their topmost, then leftmost pixels; an empty mask has none. Rings have a point at each corner and
    none on straight lines.
    """
    mask = np.asarray(mask, np.bool_)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)  # all borders lie within
    rings = _rings(inside)
    parts: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for corners, parent in rings:
        points = corners[:, ::-1] + np.array([left, top], np.float64)
        if parent is None:
            parts.append((points, []))
        else:
            parts[parent][1].append(points)
    return [Part(outer, tuple(holes)) for outer, holes in parts]


def mask_parts(mask: np.ndarray, error: float = POLYGON_ERROR) -> list[Part]:
    """The parts of a mask with as few points as the errors allow.

    error: the border of the mask and its ring are nowhere farther apart than this, in pixels; 0 keeps every corner.
    Beside that, no ring's area changes by more than `AREA_ERROR` of it, so that small objects and holes stay.
    """
    parts = trace_parts(mask)
    if error <= 0:
        return parts
    return [Part(simplify_ring(p.outer, error), tuple(simplify_ring(hole, error) for hole in p.holes)) for p in parts]


def join_parts(parts: Sequence[Part]) -> np.ndarray:
    """All parts as one ring `[n, 2]`, joined by lines that are walked there and back: for formats with one ring each.

    Raises `ValueError` without a part.
    """
    if not parts:
        raise ValueError("join_parts: expected at least one part, found none")
    first, *others = (part.ring() for part in parts)
    return _joined(first, others)


def ring_area(ring: np.ndarray) -> float:
    """The area inside a ring `[n, 2]`, in square pixels: positive where it runs clockwise on the screen."""
    x, y = (ring - ring[0]).T
    return 0.5 * float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def simplify_ring(ring: np.ndarray, error: float) -> np.ndarray:
    """A ring `[n, 2]` traced along pixels with fewer points: neither border is farther than `error` from the other.

    First each corner is cut half a pixel before and after it, which makes a straight line of the stairs that a slope
    is; then Douglas and Peucker's method drops points. Where that would change the area by more than `AREA_ERROR` of
    it, half the error is tried, and below half a pixel the ring stays as it is. So do rings of up to 8 corners.
    """
    area = ring_area(ring)
    while error > _FINEST and len(ring) > _FEW:
        cut = _without_corners(ring)
        kept = cut[_douglas_peucker(cut, error - _CORNER)]
        if len(kept) >= 3 and abs(ring_area(kept) - area) <= AREA_ERROR * abs(area):
            return kept
        error /= 2
    return ring


def _without_corners(ring: np.ndarray) -> np.ndarray:
    """The ring with two points, half a pixel before and after it, in place of each corner; one where two meet."""
    ahead = np.roll(ring, -1, axis=0) - ring
    step = 0.5 * np.sign(ahead)
    points = np.stack([ring + step, ring + ahead - step], axis=1)  # [n, 2, 2] of each edge
    twice = np.abs(ahead).max(axis=1) == 1  # the edge is one pixel long: both are its middle
    keep = np.stack([np.ones_like(twice), ~twice], axis=1)
    return points[keep]


def _douglas_peucker(ring: np.ndarray, error: float) -> np.ndarray:
    """Which points of a closed ring stay (Douglas and Peucker, 1973), ascending: two that are far apart always do."""
    count = len(ring)
    closed = np.concatenate([ring, ring[:1]])
    farthest = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    keep = np.zeros(count + 1, np.bool_)
    keep[[0, farthest, count]] = True
    open_spans = [(0, farthest), (farthest, count)]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > error:
            middle = first + 1 + worst
            keep[middle] = True
            open_spans += [(first, middle), (middle, last)]
    return np.flatnonzero(keep[:count])


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points `[n, 2]` from the line segment between two."""
    along = end - start
    length = float(along @ along)
    offsets = points - start
    if length == 0:
        return np.hypot(*offsets.T)
    place = np.clip(offsets @ along / length, 0, 1)
    return np.hypot(*(offsets - place[:, None] * along).T)


def _joined(ring: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Rings as one, each joined where it is closest to those before; very many are strung together as they come."""
    if len(others) <= _MANY:
        for other in others:
            ring = _spliced(ring, other)
        return ring
    along = [piece for other in (ring, *others) for piece in (other, other[:1])]
    return np.concatenate([*along, *(other[:1] for other in others[-2::-1])])


def _spliced(ring: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`ring` that makes a detour, where the two are closest, to `other`, round it, and back the same way."""
    here, there = _closest(ring, other)
    detour = np.concatenate([other[there:], other[: there + 1]])
    return np.concatenate([ring[: here + 1], detour, ring[here:]])


def _closest(ring: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The indices of the two closest points, one of each ring; the first of equals."""
    best, found = math.inf, (0, 0)
    rows = max(1, _PAIRS // len(other))
    for start in range(0, len(ring), rows):
        piece = ring[start : start + rows]
        distances = ((piece[:, None] - other[None]) ** 2).sum(axis=2)
        place = int(distances.argmin())
        if distances.flat[place] < best:
            best, found = float(distances.flat[place]), (start + place // len(other), place % len(other))
    return found


def _rings(inside: np.ndarray) -> list[tuple[np.ndarray, int | None]]:
    """The borders of a mask that has background all round it: corners int `[n, 2]` row, column of the unpadded mask.

    Second: None for an outer border, for a hole the index, among the outer ones, of the border of its part.

    A corner is where one or three of four pixels are inside. Where two are that touch there alone, two rings pass, or
    one ring twice: two corners. Corners of a row belong together in pairs, first to second, third to fourth, and so on
    (horizontal edges), and so do those of a column. A ring is walked by taking the partner in the row, then in the
    column, and so on.
    """
    nw, ne, sw, se = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
    touching = (nw == se) & (ne == sw) & (nw != ne)
    falling = touching & nw  # inside at top left and bottom right
    count = (nw ^ ne ^ sw ^ se).astype(np.int8) + 2 * touching
    flat = np.repeat(np.arange(count.size), count.ravel())  # by row, then column
    rows, columns = np.divmod(flat, count.shape[1])
    second = np.concatenate([[False], flat[1:] == flat[:-1]])  # of two: the one whose horizontal edge goes right
    # Of two corners, the pixels inside stay connected where the border turns round each of the two outside. The one
    # whose edge goes right has its vertical edge upwards where the inside falls, else downwards.
    upwards = np.where(falling.ravel()[flat], second, ~second)
    by_column = np.lexsort((~upwards, rows, columns))  # an edge that ends here (upwards) before one that begins
    partner = np.empty(len(flat), np.int64)
    partner[by_column[0::2]], partner[by_column[1::2]] = by_column[1::2], by_column[0::2]
    vertical = partner.tolist()

    ring_of = [-1] * len(flat)
    found: list[tuple[list[int], bool]] = []
    below = se.ravel()[flat].tolist()  # whether the pixel below an edge that goes right is inside
    for start in range(len(flat)):
        if ring_of[start] >= 0:
            continue
        # The first corner of a ring is at its top left: its edge goes right, to the next corner of the row.
        walk, here, number = [], start, len(found)
        while ring_of[here] < 0:
            beside = here ^ 1
            ring_of[here] = ring_of[beside] = number
            walk += (here, beside)
            here = vertical[beside]
        found.append((walk, below[start]))
    return _with_parents(found, ring_of, inside, rows, columns, by_column)


def _with_parents(
    found: list[tuple[list[int], bool]],
    ring_of: list[int],
    inside: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    by_column: np.ndarray,
) -> list[tuple[np.ndarray, int | None]]:
    """The rings of `_rings` with the part that each hole belongs to."""
    height = inside.shape[0]
    starts = by_column[0::2]  # upper ends of the vertical edges, by column, then row
    keys = columns[starts] * height + rows[starts]
    part_of: list[int] = []  # of each ring
    rings: list[tuple[np.ndarray, int | None]] = []
    parts = 0
    for walk, outer in found:
        corners = np.stack([rows[walk], columns[walk]], axis=1)
        if outer:
            part_of.append(parts)
            rings.append((corners, None))
            parts += 1
            continue
        # The pixel above a hole's top left corner is inside. The border left of it in its row was found before.
        row, column = int(corners[0, 0]) - 1, int(corners[0, 1])
        outside = np.flatnonzero(~inside[row + 1, : column + 1])
        edge = int(np.searchsorted(keys, int(outside[-1]) * height + row, side="right")) - 1
        part = part_of[ring_of[starts[edge]]]
        part_of.append(part)
        rings.append((np.roll(corners[::-1], 1, axis=0), part))
    return rings
