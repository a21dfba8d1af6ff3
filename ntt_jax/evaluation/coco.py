"""What detections are worth: COCO's average precision by hotcoco or pycocotools (METHOD stage 3, Evaluation).

Data sets with rules of their own (LVIS, VOC, COCO-20i) are measured by those: `protocols`.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ntt_jax.evaluation.ground_truth import GroundTruth, checked
from ntt_jax.evaluation.hotcoco_scorer import Curves, HotcocoScorer
from ntt_jax.evaluation.protocols import add_semantic, measure
from ntt_jax.evaluation.results import ImageDetections, coco_results
from ntt_jax.evaluation.semantic import SemanticScorer
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
UNDEFINED_NOTE = "null: the evaluated images hold no ground truth of that kind, so the number is not defined"


def evaluate_detections(
    ground_truth: GroundTruth, detections: Iterable[ImageDetections], *, scorer: str = SCORERS[0]
) -> dict[str, Any]:
    """Metrics of detections, as JSON-ready data.

    scorer: which library applies COCO's rules, one of `SCORERS`: the numbers are the same to the last digit. hotcoco
    takes the detections one image at a time and does not keep them. Other rules than COCO's do not look at it.

    Returns `{"bbox": {"AP": ..., "AP50": ..., ...}, "segm": {...}, "images": n, "detections": n, "classes": n,
    "per_class": [{"category_id", "name", "ground_truth", "detections", "bbox": {"AP", "AP50", "AP75"}, ...}]}`.
    Numbers are fractions in 0..1: COCO's twelve (AP, AP50, AP75, APs/m/l by object size, AR1/10/100, ARs/m/l).
    "ground_truth" counts a class's instances without crowds. A number without any ground truth to measure it on
    (pycocotools: -1) is None, and `"note"` then says why. An image without detections counts as such; without any
    detection at all every defined number is 0.

    For "segm" the size of a detection, which matters only to APs/m/l, is the area of its mask. (pycocotools' `loadRes`
    takes the box's when a results entry has both; evaluators that rely on it drop the box first, to the same effect.)

    By other rules than COCO's, `"protocol"` names them and the tables hold the numbers of `lvis`, `voc` or,
    beside COCO's, `semantic`.

    Raises `InputError` if a detection is of an image that is not evaluated, or an image comes twice.
    """
    if ground_truth.protocol in ("lvis", "voc"):
        return _with_note(measure(ground_truth, detections), ground_truth.kinds)
    counts = np.zeros(len(ground_truth.categories), np.int64)
    semantic = SemanticScorer(ground_truth) if ground_truth.protocol == "coco20i" else None
    streamed = HotcocoScorer(ground_truth) if scorer == "hotcoco" else None
    kept: list[ImageDetections] = []
    for image_id, found in checked(ground_truth, detections, counts):
        if semantic is not None:
            semantic.add(image_id, found)
        if streamed is not None:
            streamed.add(image_id, found)
        else:
            kept.append((image_id, found))
    kept.sort(key=lambda record: record[0])
    if streamed is not None:
        curves = streamed.curves()
    else:
        curves = {kind: _run_pycocotools(ground_truth, kept, kind) for kind in ground_truth.kinds}
    metrics = assemble_metrics(ground_truth, curves, counts.tolist())
    return add_semantic(metrics, ground_truth, semantic) if semantic is not None else metrics


def assemble_metrics(
    ground_truth: GroundTruth, curves: Mapping[str, Curves], detections: Sequence[int]
) -> dict[str, Any]:
    """What `evaluate_detections` returns, from COCOeval's arrays.

    curves: per kind precision `[T, R, K, A, M]`, recall `[T, K, A, M]`, -1 where not defined, and the parameters that
    name their axes. detections: number of detections of each of the K classes.
    """
    metrics: dict[str, Any] = {}
    per_class = [
        {"category_id": c.id, "name": c.name, "ground_truth": 0, "detections": count}
        for c, count in zip(ground_truth.categories, detections, strict=True)
    ]
    rows = {row["category_id"]: row for row in per_class}
    for entry in ground_truth.entries:
        rows[entry["category_id"]]["ground_truth"] += not entry["iscrowd"]
    for kind in ground_truth.kinds:
        precision, recall, params = curves[kind]
        metrics[kind] = {name: _number(precision, recall, params, spec) for name, spec in _METRICS.items()}
        for k, row in enumerate(per_class):
            one_precision, one_recall = precision[:, :, k : k + 1], recall[:, k : k + 1]
            row[kind] = {
                name: _number(one_precision, one_recall, params, _METRICS[name]) for name in ("AP", "AP50", "AP75")
            }
    metrics |= {"images": len(ground_truth.image_ids), "detections": sum(detections), "classes": len(per_class)}
    metrics["per_class"] = per_class
    return _with_note(metrics, ground_truth.kinds)


def _with_note(metrics: dict[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """The metrics, with "note" if a number is not defined."""
    tables = [table[kind] for table in (metrics, *metrics["per_class"]) for kind in kinds]
    undefined = any(value is None for table in tables for value in table.values())
    return metrics | ({"note": UNDEFINED_NOTE} if undefined else {})


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
