"""Run lengths of masks that lie in a part of a large image, made and compared without a bitmap of the whole image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ntt_jax.images.rle import Rle, rle_areas

_TOGETHER = 128  # under numpy 2, pycocotools (2.0.11) fails on lists of 256 and more


def place_mask(mask: np.ndarray, left: int, top: int, height: int, width: int) -> Rle:
    """The run lengths of an image of height x width pixels whose part from (left, top) on is `mask` `[h, w]` bool.

    Equal to `encode_masks` of the whole bitmap; memory and time are those of the part. The part must lie inside.
    """
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)  # [w, h + 2], as run lengths go
    columns[:, 1:-1] = mask.T
    steps = np.diff(columns, axis=1)
    starts, ends = ((left + x) * height + top + y for x, y in (np.nonzero(steps == sign) for sign in (1, -1)))
    if len(starts):  # a run that fills its column to the image's last row goes on in the next column
        apart = starts[1:] != ends[:-1]
        starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    encoded: Any = mask_api.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return Rle(size=[height, width], counts=encoded["counts"].decode("ascii"))


def rle_intersections(mask: Rle, others: Sequence[Rle], areas: np.ndarray | None = None) -> np.ndarray:
    """Pixels that a mask has in common with each of the others, all of one image: float64 `[n]`.

    areas: pixels of the others, `[n]`, where they are known.
    """
    areas = rle_areas(others) if areas is None else areas
    shares = np.zeros(len(others))
    iou: Any = mask_api.iou
    for start in range(0, len(others), _TOGETHER):
        part = list(others[start : start + _TOGETHER])
        # Of a crowd: the intersection as a share of the first mask, here of each of the others.
        shares[start : start + len(part)] = iou(part, [mask], [1])[:, 0]
    return np.round(shares * areas)
