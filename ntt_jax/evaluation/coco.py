"""Average precision by COCO's rules, applied by hotcoco or pycocotools (METHOD stage 3, Evaluation)."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation.ground_truth import GroundTruth
from ntt_jax.evaluation.hotcoco_scorer import Curves, HotcocoScorer
from ntt_jax.evaluation.results import ImageDetections, coco_results
from ntt_jax.images.rle import rle_areas

SCORERS = ("hotcoco", "pycocotools")
"""Libraries that apply COCO's rules: hotcoco, which is many times as fast, and the reference."""

# name: (precision or recall, IoU threshold or None for their mean, area range, detections per image)
_METRICS: dict[str, tuple[str, float | None, str, int]] = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}


class CocoScorer:
    """COCO's twelve numbers of boxes and masks. scorer: which library applies the rules, one of `SCORERS`."""

    def __init__(self, ground_truth: GroundTruth, scorer: str = SCORERS[0]):
        self._kinds, self._classes = ground_truth.kinds, len(ground_truth.categories)
        self._library = HotcocoScorer(ground_truth) if scorer == "hotcoco" else PycocotoolsScorer(ground_truth)

    def add(self, image_id: int, record: HostDetections) -> None:
        """Compare the detections of one image with its objects."""
        self._library.add(image_id, record)

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers by kind, and by class and kind (`evaluate.Scorer`)."""
        curves = self._library.curves()
        tables: dict[str, Any] = {}
        rows: list[dict[str, Any]] = [{} for _ in range(self._classes)]
        for kind in self._kinds:
            precision, recall, params = curves[kind]
            tables[kind] = {name: _number(precision, recall, params, spec) for name, spec in _METRICS.items()}
            for k, row in enumerate(rows):
                one_precision, one_recall = precision[:, :, k : k + 1], recall[:, k : k + 1]
                row[kind] = {
                    name: _number(one_precision, one_recall, params, _METRICS[name]) for name in ("AP", "AP50", "AP75")
                }
        return tables, rows


class PycocotoolsScorer:
    """`HotcocoScorer` by COCO's own code. It keeps all detections and takes many times as long."""

    def __init__(self, ground_truth: GroundTruth):
        self._ground_truth = ground_truth
        self._records: list[ImageDetections] = []

    def add(self, image_id: int, record: HostDetections) -> None:
        """Keep the detections of one image."""
        self._records.append((image_id, record))

    def curves(self) -> dict[str, Curves]:
        """By kind."""
        records = sorted(self._records, key=lambda record: record[0])
        return {kind: _run_pycocotools(self._ground_truth, records, kind) for kind in self._ground_truth.kinds}


def _run_pycocotools(ground_truth: GroundTruth, records: Sequence[ImageDetections], kind: Any) -> Curves:
    """COCOeval's precision `[T, R, K, A, M]`, recall `[T, K, A, M]` and parameters."""
    category_ids = [category.id for category in ground_truth.categories]
    entries = [entry for image_id, found in records for entry in coco_results(found, image_id, category_ids)]
    if kind == "segm":
        areas = rle_areas([entry["segmentation"] for entry in entries]).tolist()
    else:
        areas = [entry["bbox"][2] * entry["bbox"][3] for entry in entries]
    found = [
        {**entry, "id": i + 1, "iscrowd": 0, "area": area}
        for i, (entry, area) in enumerate(zip(entries, areas, strict=True))
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its steps with print
        # COCOeval writes into the annotations it is given.
        there = [dict(entry) for entry in ground_truth.of_kind(kind)]
        evaluation = COCOeval(_index(ground_truth, there), _index(ground_truth, found), kind)
        evaluation.params.imgIds = list(ground_truth.image_ids)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"], evaluation.params


def _index(ground_truth: GroundTruth, annotations: list[dict[str, Any]]) -> Any:
    """A pycocotools index over annotations; it needs of images and categories only their ids."""
    coco: Any = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in ground_truth.image_ids],
        "categories": [{"id": category.id, "name": category.name} for category in ground_truth.categories],
        "annotations": annotations,
    }
    coco.createIndex()
    # Masks are compressed already; pycocotools' own conversion would ask each image's entry for its size.
    coco.annToRLE = lambda annotation: annotation["segmentation"]
    return coco


def _number(
    precision: np.ndarray, recall: np.ndarray, params: Any, spec: tuple[str, float | None, str, int]
) -> float | None:
    """One of COCO's numbers: the mean over all defined (not -1) values of a slice, None if there is none."""
    array, threshold, area, limit = spec
    a, m = params.areaRngLbl.index(area), params.maxDets.index(limit)
    values = (precision if array == "precision" else recall)[..., a, m]
    if threshold is not None:
        values = values[np.flatnonzero(np.isclose(params.iouThrs, threshold))]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else None
