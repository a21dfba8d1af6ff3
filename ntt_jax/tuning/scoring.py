"""COCO's average precision of many results that share their masks, on any share of the images, and resampled.

A lane is one result: what one configuration and one memory find in all images. The masks of an image are compared with
its objects once for all lanes. Every number is that of `evaluate_detections` (COCO's rules, all sizes, 100 detections)
on the images with weight 1, but for the rounding of means; larger weights count an image several times, which is a
bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth
from ntt_jax.evaluation.average_precision import envelope
from ntt_jax.evaluation.matching import match_objects
from ntt_jax.evaluation.results import decimals
from ntt_jax.images.rle import Rle

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
MAX_PER_CLASS = 100
_MASKS_AT_ONCE = 128  # pycocotools (2.0.11) fails on some lists of 256 and more
_BITS = 1 << np.arange(len(THRESHOLDS), dtype=np.uint16)


@dataclass(frozen=True, eq=False)
class ObjectOverlaps:
    """The objects of one image and how much the masks of its L candidates overlap them.

    position: of the image among the evaluated ones. labels: `[G]` class indices. ignored: `[G]` bool, crowds and
    difficult objects; crowd: `[G]` bool, those that any number of detections may match. overlap: `[L, G]` float64.
    """

    position: int
    labels: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray
    overlap: np.ndarray


def overlaps_of(
    ground_truth: GroundTruth, kind: str, image_id: int, boxes: np.ndarray, rles: Sequence[Rle]
) -> ObjectOverlaps:
    """Overlaps of candidates with these boxes `[L, 4]` (x1, y1, x2, y2, inclusive) and masks. kind: segm or bbox."""
    index = {category.id: k for k, category in enumerate(ground_truth.categories)}
    entries = [entry for entry in ground_truth.of_kind(kind) if entry["image_id"] == image_id]
    crowd = [int(entry["iscrowd"]) for entry in entries]
    overlap = np.zeros((len(rles), len(entries)))
    if kind == "segm":
        shapes: Any = list(rles)
        truth: Any = [entry["segmentation"] for entry in entries]
    else:
        corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        shapes = np.array([decimals(box) for box in corners], np.float64).reshape(-1, 4)
        truth = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    for start in range(0, len(rles) if entries else 0, _MASKS_AT_ONCE):
        part = np.asarray(mask_api.iou(shapes[start : start + _MASKS_AT_ONCE], truth, crowd))
        overlap[start : start + _MASKS_AT_ONCE] = part.reshape(-1, len(entries))
    return ObjectOverlaps(
        ground_truth.image_ids.index(image_id),
        np.array([index[entry["category_id"]] for entry in entries], int),
        np.array([bool(entry["iscrowd"] or entry["difficult"]) for entry in entries], bool),
        np.array(crowd, bool),
        overlap,
    )


class LaneScorer:
    """Detections of a number of lanes, image by image in ascending order, matched as they come."""

    def __init__(self, ground_truth: GroundTruth, kind: str, lanes: int):
        self.kind, self.lanes = kind, lanes
        self.images, self.classes = len(ground_truth.image_ids), len(ground_truth.categories)
        self.positives = positives(ground_truth, kind)
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(
        self, overlaps: ObjectOverlaps, lane: np.ndarray, label: np.ndarray, score: np.ndarray, mask: np.ndarray
    ) -> None:
        """Match the n detections of one image. They stand by lane, each lane's best first; mask: rows of the overlaps.

        Raises `InputError` for a label that has no class.
        """
        if len(label) and not 0 <= label.min() <= label.max() < self.classes:
            raise InputError(f"tune: a detection has label {label.max()}, but there are {self.classes} classes")
        order = np.lexsort((-score, label, lane))  # stable: equal scores stay in order
        lane, label, score, mask = lane[order], label[order], score[order], mask[order]
        group = lane.astype(np.int64) * self.classes + label
        first = np.concatenate([[True], group[1:] != group[:-1]])[: len(group)]
        place = np.arange(len(group))
        rank = place - np.maximum.accumulate(np.where(first, place, 0))
        kept = rank < MAX_PER_CLASS
        lane, label, score, mask = lane[kept], label[kept], score[kept], mask[kept]
        hits, lost = np.zeros(len(lane), np.uint16), np.zeros(len(lane), np.uint16)
        for k in np.unique(overlaps.labels):
            own = np.flatnonzero(overlaps.labels == k)
            overlap = overlaps.overlap[:, own]
            near = overlap.max(axis=1) >= THRESHOLDS[0]
            rows = np.flatnonzero((label == k) & near[mask])
            if not len(rows):
                continue
            ignored = overlaps.ignored[own][None]
            found, to_ignored = match_objects(
                overlap[mask[rows]], lane[rows], np.minimum(THRESHOLDS, 1 - 1e-10), overlaps.crowd[own], ignored
            )
            lost[rows] = to_ignored[..., 0] @ _BITS
            hits[rows] = ((found[..., 0] >= 0) & ~to_ignored[..., 0]) @ _BITS
        image = np.full(len(lane), overlaps.position, np.int32)
        self._parts.append((lane.astype(np.int32), label.astype(np.int16), score, image, hits, lost))

    def rows(self) -> "LaneRows":
        """All detections, sorted by lane, class and descending score."""
        empty = [np.zeros(0, kind) for kind in (np.int32, np.int16, np.float32, np.int32, np.uint16, np.uint16)]
        lane, label, score, image, hits, lost = (
            np.concatenate(parts) for parts in zip(*(self._parts or [tuple(empty)]), strict=True)
        )
        order = np.lexsort((image, -score, label, lane))  # equal scores by image, as COCOeval leaves them
        group = lane[order].astype(np.int64) * self.classes + label[order]
        bounds = np.searchsorted(group, np.arange(self.lanes * self.classes + 1))
        return LaneRows(
            self.classes, self.positives, bounds, *(array[order] for array in (label, score, image, hits, lost))
        )


@dataclass(frozen=True, eq=False)
class LaneRows:
    """Matched detections by lane, class and descending score; of lane i and class k those from bounds[i * K + k] on.

    positives: `[images, K]` objects that count. label, score, image (position) `[N]`; hits, lost: `[N]` uint16, bit t:
    right, or on an object that does not count, at threshold t.
    """

    classes: int
    positives: np.ndarray
    bounds: np.ndarray
    label: np.ndarray
    score: np.ndarray
    image: np.ndarray
    hits: np.ndarray
    lost: np.ndarray

    def of(self, lane: int, k: int) -> slice:
        """The rows of one lane and class."""
        return slice(self.bounds[lane * self.classes + k], self.bounds[lane * self.classes + k + 1])

    def average_precision(self, lane: int, weights: np.ndarray) -> np.ndarray:
        """AP of each class, `[B, K]`, for `[B, images]` weights of the images; NaN where a class has no object."""
        positives = weights @ self.positives  # [B, K]
        found = np.full(positives.shape, np.nan)
        for k in range(self.classes):
            some = positives[:, k] > 0
            if some.any():
                part = self.of(lane, k)
                arrays = self.image[part], self.hits[part], self.lost[part]
                found[some, k] = _precision(*arrays, weights[some], positives[some, k]).mean(axis=(1, 2))
        return found


def positives(ground_truth: GroundTruth, kind: str) -> np.ndarray:
    """How many objects count in each image, of each class: `[images, K]`."""
    index = {category.id: k for k, category in enumerate(ground_truth.categories)}
    place = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    counts = np.zeros((len(place), len(index)))
    for entry in ground_truth.of_kind(kind):
        if not entry["iscrowd"] and not entry["difficult"]:
            counts[place[entry["image_id"]], index[entry["category_id"]]] += 1
    return counts


def _precision(
    image: np.ndarray, hits: np.ndarray, lost: np.ndarray, weights: np.ndarray, positives: np.ndarray
) -> np.ndarray:
    """COCOeval's precision at every threshold and recall level, `[B, T, R]`, of n detections of a class, best first.

    Precision is looked at where a detection is right: between those it only falls.
    """
    found = np.zeros((len(weights), len(THRESHOLDS), len(RECALL_LEVELS)))
    if not hits.any():
        return found
    counted = np.cumsum(weights[:, image], axis=1)  # [B, n] detections up to here
    for t, bit in enumerate(_BITS):
        right = np.flatnonzero(hits & bit)
        if not len(right):
            break  # who misses at one threshold misses at all higher ones
        true = np.cumsum(weights[:, image[right]], axis=1)  # [B, r]
        total = counted[:, right]
        if np.any(ignored := (lost & bit) != 0):
            total = total - np.cumsum(weights[:, image] * ignored, axis=1)[:, right]
        precision = envelope(true / (total + np.spacing(1)))
        recall = true / positives[:, None]
        for b in range(len(weights)):
            place = np.searchsorted(recall[b], RECALL_LEVELS, side="left")
            reached = place < len(right)
            found[b, t, reached] = precision[b, place[reached]]
    return found


def mean_over_classes(by_class: np.ndarray) -> np.ndarray:
    """The mean of the classes that have objects, over the last axis; NaN where none has."""
    known = np.isfinite(by_class)
    with np.errstate(invalid="ignore"):
        return np.where(known, by_class, 0.0).sum(axis=-1) / known.sum(axis=-1)
