"""Mean intersection over union of classes (COCO-20i), from the detections of instances.

The predicted class of a pixel is that of the highest scoring detection that covers it, background if that scores less
than the threshold or there is none. Its true class is that of the smallest object that covers it (smaller ones lie in
front); a pixel that only a crowd covers is left out; whatever is not of the evaluated classes is background.
Intersections and unions are summed over all images before they are divided; the mean is over the classes.
"""

from typing import Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation.average_precision import defined_mean
from ntt_jax.evaluation.ground_truth import GroundTruth
from ntt_jax.images.rle import decode_rle

SCORE_THRESHOLD = 0.5
"""Of the number that is called mIoU: the default of `ntt-jax segment`."""
_THRESHOLDS = np.arange(10, dtype=np.float32) / np.float32(10)


class SemanticScorer:
    """Intersections and unions of every class at ten score thresholds."""

    def __init__(self, ground_truth: GroundTruth):
        self._place = {category.id: k for k, category in enumerate(ground_truth.categories)}
        self._truth: dict[int, list[dict[str, Any]]] = {}
        for entry in ground_truth.of_kind("segm"):
            self._truth.setdefault(entry["image_id"], []).append(entry)
        self._seen: set[int] = set()
        classes = len(self._place)
        self._true = np.zeros(classes, np.int64)  # pixels
        self._predicted = np.zeros((len(_THRESHOLDS), classes), np.int64)
        self._common = np.zeros((len(_THRESHOLDS), classes), np.int64)

    def add(self, image_id: int, record: HostDetections) -> None:
        """Compare the detections of one image with its objects, pixel by pixel."""
        self._seen.add(image_id)
        classes, count = len(self._place), len(record)
        front = np.zeros((record.height, record.width), np.int64)  # 1 + the detection on top, 0 for none
        for row in np.argsort(-record.scores, kind="stable")[::-1]:
            front[decode_rle(record.rles[row])] = row + 1
        truth, known = self._true_classes(image_id, record.height, record.width)
        pairs = np.bincount((truth * (count + 1) + front)[known], minlength=(classes + 1) * (count + 1))
        pairs = pairs.reshape(classes + 1, count + 1)  # pixels of each class and detection; first row: background
        self._true += pairs[1:].sum(axis=1)
        of_class = record.labels[:, None] == np.arange(classes)  # [n, K]
        strong = record.scores >= _THRESHOLDS[:, None]  # [T, n]
        self._predicted += strong @ (pairs[:, 1:].sum(axis=0)[:, None] * of_class)
        self._common += strong @ (pairs[1:, 1:].T * of_class)

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers under "semantic", and each class's IoU (`evaluate.Scorer`). Call once, after the last image."""
        for image_id, entries in self._truth.items():
            if image_id not in self._seen:  # nothing was detected there
                truth, known = self._true_classes(image_id, *entries[0]["segmentation"]["size"])
                self._true += np.bincount(truth[known], minlength=len(self._place) + 1)[1:]
        union = self._predicted + self._true - self._common
        iou = np.where(self._true > 0, self._common / np.maximum(union, 1), np.nan)  # [T, K]
        main = int(np.argmin(abs(_THRESHOLDS - SCORE_THRESHOLD)))
        table = {
            "mIoU": defined_mean(iou[main]),
            "score_threshold": SCORE_THRESHOLD,
            "mIoU_by_threshold": {f"{t:.1f}": defined_mean(row) for t, row in zip(_THRESHOLDS, iou, strict=True)},
        }
        return {"semantic": table}, [{"semantic": {"IoU": defined_mean(np.atleast_1d(value))}} for value in iou[main]]

    def _true_classes(self, image_id: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """1 + class index of every pixel, 0 for background, int64 `[H, W]`; and which pixels count, bool `[H, W]`."""
        truth, crowd = np.zeros((height, width), np.int64), np.zeros((height, width), np.bool_)
        masks = [(decode_rle(entry["segmentation"]), entry) for entry in self._truth.get(image_id, [])]
        for mask, entry in sorted(masks, key=lambda pair: -int(pair[0].sum())):  # equal areas: the later one wins
            if entry["iscrowd"]:
                crowd |= mask
            else:
                truth[mask] = self._place[entry["category_id"]] + 1
        return truth, (truth > 0) | ~crowd
