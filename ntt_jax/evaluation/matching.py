"""COCOeval's matching of detections with objects, for many results, thresholds and area ranges at once."""

import numpy as np


def match_objects(
    overlap: np.ndarray, group: np.ndarray, thresholds: np.ndarray, crowd: np.ndarray, ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of one image and class with its objects, the best detection first (METHOD stage 3).

    overlap: IoU of n detections and G objects `[n, G]`, G at least 1. group: `[n]` integers; detections of one group
    stand together, best first, and each group matches for itself. thresholds: T overlaps that a match needs
    (pycocotools asks for 1 - 1e-10 at most). crowd: `[G]` bool, objects that any number of detections may match.
    ignored: `[A, G]` bool, objects that do not count in each of A area ranges.

    Returns the object of each detection `[n, T, A]` int, -1 for none, and whether it is an ignored one `[n, T, A]`.
    An object that counts is preferred to an ignored one; of equal overlaps the last object is taken.
    """
    count, objects = overlap.shape
    first = np.concatenate([[True], group[1:] != group[:-1]])[:count]
    place = np.arange(count)
    turn = place - np.maximum.accumulate(np.where(first, place, 0))
    lane = np.cumsum(first) - 1
    taken = np.zeros((int(first.sum()), len(thresholds), *ignored.shape), bool)  # [M, T, A, G]
    found = np.full((count, *taken.shape[1:3]), -1)
    for step in range(turn.max(initial=-1) + 1):
        now = np.flatnonzero(turn == step)  # at most one detection of each group
        reached = (overlap[now][:, None] >= thresholds[None, :, None])[:, :, None]  # [s, T, 1, G]
        free = reached & (~taken[lane[now]] | crowd)  # [s, T, A, G]
        counted = free & ~ignored
        free = np.where(counted.any(axis=-1, keepdims=True), counted, free)
        value = np.where(free, overlap[now][:, None, None], -1.0)[..., ::-1]
        best = objects - 1 - value.argmax(axis=-1)  # [s, T, A]
        s, t, a = np.nonzero(free.any(axis=-1))
        found[now[s], t, a] = best[s, t, a]
        taken[lane[now][s], t, a, best[s, t, a]] = True
    return found, (found >= 0) & ignored[np.arange(len(ignored)), found]
