"""From which score on to believe a detection: a threshold of each class, with its interval (docs/tune.md)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.tuning.experiment import interval
from ntt_jax.tuning.scoring import Rows

TARGETS = ("f1", "precision", "recall")


@dataclass(frozen=True)
class Target:
    """What a threshold gives: the best F1, or it is the lowest with this precision or the highest with this recall."""

    kind: str = "f1"
    value: float = 0.0


def operating_points(
    rows: Rows, lanes: list[int], weights: np.ndarray, drawn: np.ndarray, target: Target, names: list[str]
) -> list[dict[str, Any]]:
    """A threshold of every class, where a detection is right at an IoU of 0.5, over the detections of all the lanes.

    Args:
      weights: `[images]`, those that thresholds are chosen on. drawn: `[B, images]`, resamples of them.

    Returns:
      By class `{"class", "threshold", "interval", "precision", "recall", "f1", "objects"}`; the threshold is None where
      the class has no object or the wish is met nowhere. The interval is the middle 95 % over the resamples.
    """
    found = []
    for k, name in enumerate(names):
        parts = [rows.of(lane, k) for lane in lanes]
        image, score = (np.concatenate([array[p] for p in parts]) for array in (rows.image, rows.score))
        hit, lost = (np.concatenate([array[p] & 1 for p in parts]).astype(bool) for array in (rows.hits, rows.lost))
        order = np.argsort(-score, kind="stable")
        arrays = image[order], score[order], hit[order], lost[order]
        objects = rows.positives[:, k] * len(lanes)
        best = _threshold(*arrays, objects, weights, target)
        others = [_threshold(*arrays, objects, one, target)["threshold"] for one in drawn]
        known = np.array([one for one in others if one is not None])
        count = int(weights @ rows.positives[:, k])
        found.append({"class": name, **best, "interval": interval(known), "objects": count})
    return found


def _threshold(
    image: np.ndarray,
    score: np.ndarray,
    hit: np.ndarray,
    lost: np.ndarray,
    objects: np.ndarray,
    weights: np.ndarray,
    target: Target,
) -> dict[str, Any]:
    """The threshold on images with these weights; the detections stand best first."""
    nothing = {"threshold": None, "precision": None, "recall": None, "f1": None}
    weight, total = weights[image], float(weights @ objects)
    if total == 0 or not len(score):
        return nothing
    true, counted = np.cumsum(weight * hit), np.cumsum(weight * ~lost)
    # A threshold takes all detections of equal score or none.
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True) & (counted > 0))
    true, counted, score = true[last], counted[last], score[last]
    if not len(score):
        return nothing
    precision, recall = true / counted, true / total
    f1 = 2 * true / (counted + total)
    if target.kind == "f1":
        place = int(np.argmax(f1))
        met = f1[place] > 0
    else:
        reached = np.flatnonzero((precision if target.kind == "precision" else recall) >= target.value)
        met = len(reached) > 0
        place = int(reached[-1 if target.kind == "precision" else 0]) if met else 0
    if not met:
        return nothing
    return {
        "threshold": float(str(score[place])),
        "precision": float(precision[place]),
        "recall": float(recall[place]),
        "f1": float(f1[place]),
    }
