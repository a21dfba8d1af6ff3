"""What became of every detection, kept small, and the curves made from it: shared by the rules of LVIS and VOC."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Overlaps at which a detection counts as found; COCO's, also used by LVIS."""


class Outcomes:
    """Whether each detection was right, wrong or not to be judged, under several settings (threshold, object size).

    A detection takes 8 bytes and two bits per setting, so that the six million of LVIS fit in some hundred megabytes.
    """

    def __init__(self, settings: int):
        self.settings = settings
        self._images: list[int] = []
        self._labels: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._bits: list[np.ndarray] = []  # [n, 2, bytes], uint8

    def add(self, image_id: int, labels: np.ndarray, scores: np.ndarray, true: np.ndarray, ignored: np.ndarray) -> None:
        """Outcomes of one image: labels int32 `[n]`, scores float32 `[n]`, true and ignored bool `[n, settings]`."""
        if len(labels):
            self._images.append(image_id)
            self._labels.append(np.asarray(labels, np.int32))
            self._scores.append(np.asarray(scores, np.float32))
            self._bits.append(np.packbits(np.stack([true, ignored], axis=1), axis=2))

    def by_class(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Class index, true and ignored bool `[settings, n]` of every class that has detections, ascending.

        The detections come by descending score; equal ones by ascending image id and then in the order given.
        """
        if not self._images:
            return
        order = sorted(range(len(self._images)), key=self._images.__getitem__)
        labels = np.concatenate([self._labels[i] for i in order])
        scores = np.concatenate([self._scores[i] for i in order])
        bits = np.concatenate([self._bits[i] for i in order])
        ranked = np.lexsort((-scores, labels))  # stable
        classes, starts = np.unique(labels[ranked], return_index=True)
        for label, rows in zip(classes, np.split(ranked, starts[1:]), strict=True):
            unpacked = np.unpackbits(bits[rows], axis=2, count=self.settings).view(np.bool_)  # [n, 2, settings]
            yield int(label), unpacked[:, 0].T, unpacked[:, 1].T


def overlaps(found: Any, objects: Any) -> np.ndarray:
    """Intersection over union of every pair, float64 `[n, G]`: two lists of RLEs, or of boxes x, y, width, height."""
    iou: Any = mask_api.iou
    return np.asarray(iou(found, objects, [0] * len(objects)), np.float64).reshape(len(found), len(objects))


def precision_recall(true: np.ndarray, ignored: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection that counts, float64 `[m]`, from bool `[n]` by descending score."""
    true = true[~ignored]
    found = np.cumsum(true, dtype=np.float64)
    return found / (np.arange(len(true)) + 1.0), found / positives


def envelope(precision: np.ndarray) -> np.ndarray:
    """The highest precision at this or any later detection, along the last axis."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def defined_mean(values: np.ndarray) -> float | None:
    """Mean of all values that are defined (not NaN), None if there is none."""
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if values.size else None
