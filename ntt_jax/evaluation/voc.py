"""Average precision by the rules of PASCAL VOC.

A detection is right if it overlaps by more than the threshold with the object of its class that it overlaps most, and
no higher scoring one has claimed that object before; one whose object is marked difficult does not count. Boxes are
whole pixels, corners included, so a detection's width is x2 - x1 + 1 here (COCO's results have x2 - x1).
AP is the mean of the best precision at recall 0, 0.1, ... 1 and later (VOC 2007's eleven points, by which the few-shot
literature reports nAP50 on VOC 2007 test); `AP50_area` is the area under that curve, VOC's rule since 2010.
Source: Everingham et al., IJCV 2010, and the development kits.
"""

from typing import Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation.average_precision import (
    IOU_THRESHOLDS,
    Outcomes,
    defined_mean,
    envelope,
    overlaps,
    precision_recall,
)
from ntt_jax.evaluation.ground_truth import GroundTruth

# As every published implementation writes it: 0.3, 0.6 and 0.7 lie one rounding above the fraction they mean.
_ELEVEN = np.arange(0.0, 1.1, 0.1)


class VocScorer:
    """VOC's numbers of boxes, and of masks where all objects have one. Only outcomes are kept."""

    def __init__(self, ground_truth: GroundTruth):
        self._kinds = ground_truth.kinds
        place = {category.id: k for k, category in enumerate(ground_truth.categories)}
        self._truth: dict[tuple[int, int], list[dict[str, Any]]] = {}  # by image and class index
        self._positives = np.zeros(len(place), np.int64)
        for entry in ground_truth.entries:
            k = place[entry["category_id"]]
            self._truth.setdefault((entry["image_id"], k), []).append(entry)
            self._positives[k] += not entry["difficult"]
        self._outcomes = {kind: Outcomes(len(IOU_THRESHOLDS)) for kind in self._kinds}

    def add(self, image_id: int, record: HostDetections) -> None:
        """Judge the detections of one image."""
        order = np.argsort(-record.scores, kind="stable")
        boxes = record.boxes.astype(np.float64)
        sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], axis=1)  # [n, 4] xywh
        shape = (len(record), len(IOU_THRESHOLDS))
        for kind in self._kinds:
            true, ignored = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
            for k in np.unique(record.labels).tolist():
                rows = order[record.labels[order] == k]
                if there := self._truth.get((image_id, k)):
                    found = sizes[rows].tolist() if kind == "bbox" else [record.rles[row] for row in rows]
                    objects = [entry["bbox" if kind == "bbox" else "segmentation"] for entry in there]
                    difficult = np.array([entry["difficult"] for entry in there], np.bool_)
                    true[rows], ignored[rows] = _judge(overlaps(found, objects), difficult)
            self._outcomes[kind].add(image_id, record.labels[order], record.scores[order], true[order], ignored[order])

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers by kind, and by class and kind (`evaluate.Scorer`)."""
        tables: dict[str, Any] = {}
        rows: list[dict[str, Any]] = [{} for _ in self._positives]
        for kind in self._kinds:
            eleven, area = (np.where(self._positives > 0, 0.0, np.nan)[:, None].repeat(10, axis=1) for _ in range(2))
            for k, true, ignored in self._outcomes[kind].by_class():
                if self._positives[k]:
                    for t in range(len(true)):
                        precision, recall = precision_recall(true[t], ignored[t], self._positives[k])
                        eleven[k, t] = np.mean([max(precision[recall >= r], default=0.0) for r in _ELEVEN])
                        area[k, t] = np.sum(np.diff(recall, prepend=0.0) * envelope(precision))
            names = {"AP": slice(None), "AP50": 0, "AP75": 5}
            tables[kind] = {name: defined_mean(eleven[:, t]) for name, t in names.items()}
            tables[kind]["AP50_area"] = defined_mean(area[:, 0])
            for k, row in enumerate(rows):
                row[kind] = {name: defined_mean(np.atleast_1d(eleven[k, t])) for name, t in names.items()}
        return tables, rows


def _judge(ious: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and ignored, bool `[n, T]`, of detections by descending score from their overlaps `[n, G]` with objects."""
    best = np.argmax(ious, axis=1)
    reached = ious[np.arange(len(ious)), best][:, None] > IOU_THRESHOLDS  # [n, T]
    ignored = reached & difficult[best][:, None]
    true = np.zeros_like(reached)
    for g in np.flatnonzero(~difficult):
        claims = reached & (best == g)[:, None]
        true |= claims & (np.cumsum(claims, axis=0) == 1)  # the first claim
    return true, ignored
