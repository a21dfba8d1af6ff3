"""The rule by which detections of tiles and of the whole image become those of the image (docs/tiles.md). Host only.

A view is a tile or the whole image. Of a detection with mask M:

    cut     its box reaches an inner border of its tile: it may go on there
    large   found in the whole image, and no tile has room for it
    rank    0, or 1 if cut; by rank, then by score, the best first

Walked through in this order, a detection j is dropped if there is a kept one i of its class and of another view with

    |Mi and Mj| / d >= merge_threshold,    d = |Mj| if j is large, otherwise min(|Mi|, |Mj|)

So a cut object gives way to whoever sees it whole, of several that see it whole the best rated stays, and a part of a
large object gives way to it, but a large object never to its part. Detections of one view do not meet here: the method
has merged those.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.images.rle import Rle, decode_rle, rle_areas
from ntt_jax.images.rle_crops import place_mask, rle_intersections
from ntt_jax.tiles.layout import Tile


@dataclass(frozen=True, eq=False)
class Views:
    """The detections of all views of one image, side by side, in pixels of the image.

    boxes: `[n, 4]` float32, as `HostDetections`. scores: `[n]` float32. labels: `[n]` int32. view: `[n]` int, 0 for the
    whole image and then the tiles. cut, large: `[n]` bool. rles: of the image's size.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    view: np.ndarray
    cut: np.ndarray
    large: np.ndarray
    rles: tuple[Rle, ...]


def gather(
    height: int,
    width: int,
    whole: HostDetections,
    factor: int,
    tiles: Sequence[Tile],
    found: Sequence[HostDetections],
    mask_side: int,
) -> Views:
    """The detections of the views of an image.

    whole: of the whole image, `factor` times smaller. tiles, found: the tiles and the detections of each. mask_side: of
    SAM 2's masks; what comes nearer to a border of a tile than one of their pixels reaches it.
    """
    views = [(Tile(0, 0, width, height), whole, factor), *((t, f, 1) for t, f in zip(tiles, found, strict=True))]
    boxes, cut, rles = [], [], []
    for number, (tile, one, scale) in enumerate(views):
        own = one.boxes * scale
        own[:, 2:] += scale - 1  # corners are inclusive
        boxes.append(own + np.array([tile.left, tile.top] * 2, np.float32))
        cut.append(np.zeros(len(one), np.bool_) if number == 0 else ~_inside(boxes[-1], tile, height, width, mask_side))
        rles.extend(_placed(rle, box, tile, scale, height, width) for rle, box in zip(one.rles, one.boxes, strict=True))
    fits = np.zeros(len(whole), np.bool_)
    for tile in tiles:
        fits |= _inside(boxes[0], tile, height, width, mask_side)
    lengths = [len(one) for _, one, _ in views]
    return Views(
        height,
        width,
        np.concatenate(boxes),
        np.concatenate([one.scores for _, one, _ in views]),
        np.concatenate([one.labels for _, one, _ in views]),
        np.repeat(np.arange(len(views)), lengths),
        np.concatenate(cut),
        np.concatenate([~fits, np.zeros(sum(lengths[1:]), np.bool_)]),
        tuple(rles),
    )


def _inside(boxes: np.ndarray, tile: Tile, height: int, width: int, mask_side: int) -> np.ndarray:
    """Whether boxes `[n, 4]` lie in a tile and away from those of its borders that are not the image's: bool `[n]`."""
    across, down = (tile.right - tile.left) / mask_side, (tile.bottom - tile.top) / mask_side
    return (
        (boxes[:, 0] >= tile.left + across * (tile.left > 0))
        & (boxes[:, 1] >= tile.top + down * (tile.top > 0))
        & (boxes[:, 2] <= tile.right - 1 - across * (tile.right < width))
        & (boxes[:, 3] <= tile.bottom - 1 - down * (tile.bottom < height))
    )


def _placed(rle: Rle, box: np.ndarray, tile: Tile, scale: int, height: int, width: int) -> Rle:
    """A mask of a view as one of the image; `scale`: pixels of the image along one of the view's."""
    if rle["size"] == [height, width]:
        return rle
    x1, y1, x2, y2 = (int(v) for v in box)
    part = decode_rle(rle)[y1 : y2 + 1, x1 : x2 + 1]
    if scale > 1:
        part = part.repeat(scale, axis=0).repeat(scale, axis=1)
    return place_mask(part, tile.left + x1 * scale, tile.top + y1 * scale, height, width)


def merged(views: Views, threshold: float, limit: int) -> HostDetections:
    """The best `limit` of the detections that the rule leaves, by score."""
    order = np.lexsort((-views.scores, views.cut))
    areas = rle_areas(views.rles)
    kept: list[int] = []
    for label in np.unique(views.labels):
        kept += _of_class(views, order[views.labels[order] == label], areas, threshold)
    rows = np.array(kept, np.intp)
    # Ties by view, as everything here: the same detections always come in the same order.
    rows = rows[np.lexsort((rows, -views.scores[rows]))][:limit]
    return HostDetections(
        views.height,
        views.width,
        views.boxes[rows],
        views.scores[rows],
        views.labels[rows],
        tuple(views.rles[row] for row in rows),
    )


def _of_class(views: Views, rows: np.ndarray, areas: np.ndarray, threshold: float) -> list[int]:
    """Those of the detections of one class, in order, that the rule keeps."""
    kept: list[int] = []
    boxes = np.zeros((len(rows), 4), np.float32)  # of those kept
    for row in rows:
        box, before = views.boxes[row], boxes[: len(kept)]
        near = (before[:, :2] <= box[2:]).all(axis=1) & (before[:, 2:] >= box[:2]).all(axis=1)
        near &= views.view[kept] != views.view[row] if kept else near
        others = np.array(kept, np.intp)[near]
        if len(others):
            common = rle_intersections(views.rles[row], [views.rles[i] for i in others], areas[others])
            smaller = areas[row] if views.large[row] else np.minimum(areas[row], areas[others])
            if (common >= threshold * smaller).any():
                continue
        boxes[len(kept)] = box
        kept.append(int(row))
    return kept
