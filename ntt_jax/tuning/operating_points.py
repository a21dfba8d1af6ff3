"""From which score on to believe a detection: a threshold of each class, with its interval (docs/tune.md)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.detection.thresholds import threshold_at
from ntt_jax.tuning.experiment import interval
from ntt_jax.tuning.scoring import LaneRows

CURVE_POINTS = 100
"""Points of a class's curve at most."""


@dataclass(frozen=True)
class Target:
    """What a threshold gives: the best F1, or it is the lowest with this precision or the highest with this recall."""

    kind: str = "f1"
    value: float = 0.0


def operating_points(
    rows: LaneRows, lanes: list[int], weights: np.ndarray, drawn: np.ndarray, target: Target, names: list[str]
) -> list[dict[str, Any]]:
    """A threshold of every class, where a detection is right at an IoU of 0.5, over the detections of all the lanes.

    Args:
      weights: `[images]`, those that thresholds are chosen on. drawn: `[B, images]`, resamples of them.

    Returns:
      By class `{"class", "threshold", "interval", "precision", "recall", "f1", "objects", "curve"}`; the threshold is
      None where the class has no object or the wish is met nowhere. The interval is the middle 95 % over the resamples,
      None where fewer than two images have an object of the class.
      curve: `CURVE_POINTS` thresholds at most, highest first, with their precision and recall; None without detections.
    """
    found = []
    for k, name in enumerate(names):
        parts = [rows.of(lane, k) for lane in lanes]
        image, score = (np.concatenate([array[p] for p in parts]) for array in (rows.image, rows.score))
        hit, lost = (np.concatenate([array[p] & 1 for p in parts]).astype(bool) for array in (rows.hits, rows.lost))
        order = np.argsort(-score, kind="stable")
        arrays = image[order], score[order], hit[order], lost[order]
        objects = rows.positives[:, k] * len(lanes)
        curve = _curve(*arrays, objects, weights)
        chosen = None if curve is None else _place(curve, target)
        # One image drawn again and again has one threshold.
        drawable = drawn if np.count_nonzero(weights * rows.positives[:, k]) > 1 else drawn[:0]
        others = [one for w in drawable if (one := _curve(*arrays, objects, w)) is not None]
        places = [(one, place) for one in others if (place := _place(one, target)) is not None]
        known = np.array([threshold_at(one.score[place]) for one, place in places])
        found.append(
            {
                "class": name,
                **_numbers(curve, chosen),
                "interval": interval(known),
                "objects": int(weights @ rows.positives[:, k]),
                "curve": None if curve is None else _shown(curve, chosen),
            }
        )
    return found


@dataclass(frozen=True, eq=False)
class _Curve:
    """Precision, recall and F1 of the detections with at least each score, highest first: `[n]` each, n at least 1."""

    score: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def _curve(
    image: np.ndarray, score: np.ndarray, hit: np.ndarray, lost: np.ndarray, objects: np.ndarray, weights: np.ndarray
) -> _Curve | None:
    """The curve on images with these weights; the detections stand best first. None without objects or detections."""
    weight, total = weights[image], float(weights @ objects)
    if total == 0 or not len(score):
        return None
    true, counted = np.cumsum(weight * hit), np.cumsum(weight * ~lost)
    # A threshold takes all detections of equal score or none.
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True) & (counted > 0))
    if not len(last):
        return None
    true, counted, score = true[last], counted[last], score[last]
    return _Curve(score, true / counted, true / total, 2 * true / (counted + total))


def _place(curve: _Curve, target: Target) -> int | None:
    """Where on the curve the wish is met; None where it is not."""
    if target.kind == "f1":
        place = int(np.argmax(curve.f1))
        return place if curve.f1[place] > 0 else None
    reached = np.flatnonzero((curve.precision if target.kind == "precision" else curve.recall) >= target.value)
    return int(reached[-1 if target.kind == "precision" else 0]) if len(reached) else None


def _numbers(curve: _Curve | None, place: int | None) -> dict[str, float | None]:
    if curve is None or place is None:
        return {"threshold": None, "precision": None, "recall": None, "f1": None}
    return {
        "threshold": threshold_at(curve.score[place]),
        "precision": float(curve.precision[place]),
        "recall": float(curve.recall[place]),
        "f1": float(curve.f1[place]),
    }


def _shown(curve: _Curve, place: int | None) -> list[list[float]]:
    """[score, precision, recall] at places spread evenly over the recalls, the chosen one among them."""
    levels = np.linspace(curve.recall[0], curve.recall[-1], CURVE_POINTS - 3)
    places = {0, len(curve.score) - 1, *np.searchsorted(curve.recall, levels).tolist()}
    if place is not None:
        places.add(place)
    return [
        [threshold_at(curve.score[i]), round(float(curve.precision[i]), 5), round(float(curve.recall[i]), 5)]
        for i in sorted(places)
    ]
