"""Measuring detections by other rules than COCO's: those of LVIS and PASCAL VOC, and the semantic mIoU of COCO-20i.

A scorer takes the detections image by image and keeps only what its numbers need; here its numbers become metrics.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation.ground_truth import GroundTruth, checked
from ntt_jax.evaluation.lvis import LvisScorer
from ntt_jax.evaluation.results import ImageDetections
from ntt_jax.evaluation.semantic import SemanticScorer
from ntt_jax.evaluation.voc import VocScorer


class Scorer(Protocol):
    """Collects what detections mean under one set of rules."""

    def add(self, image_id: int, record: HostDetections) -> None:
        """Take in the detections of one image; each image comes at most once, in any order."""
        ...

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers as tables by name, and the same for every class; None where a number is not defined."""
        ...


def measure(ground_truth: GroundTruth, detections: Iterable[ImageDetections]) -> dict[str, Any]:
    """Metrics by LVIS's or VOC's rules, in the form of `coco.evaluate_detections`, without its "note".

    The detections are taken one image at a time and not kept. Raises `InputError` as `evaluate_detections`.
    """
    scorer: Scorer = LvisScorer(ground_truth) if ground_truth.protocol == "lvis" else VocScorer(ground_truth)
    counts = np.zeros(len(ground_truth.categories), np.int64)
    for image_id, found in checked(ground_truth, detections, counts):
        scorer.add(image_id, found)
    tables, rows = scorer.results()
    objects = dict.fromkeys((category.id for category in ground_truth.categories), 0)
    for entry in ground_truth.entries:
        objects[entry["category_id"]] += not entry["iscrowd"] and not entry["difficult"]
    per_class = [
        {"category_id": c.id, "name": c.name, "ground_truth": objects[c.id], "detections": int(count), **row}
        for c, count, row in zip(ground_truth.categories, counts, rows, strict=True)
    ]
    return {
        **tables,
        "images": len(ground_truth.image_ids),
        "detections": int(counts.sum()),
        "classes": len(per_class),
        "per_class": per_class,
        "protocol": ground_truth.protocol,
    }


def add_semantic(metrics: dict[str, Any], ground_truth: GroundTruth, scorer: SemanticScorer) -> dict[str, Any]:
    """COCO's metrics with the semantic mIoU of COCO-20i under "semantic" and in every class's row."""
    tables, rows = scorer.results()
    per_class = [row | more for row, more in zip(metrics["per_class"], rows, strict=True)]
    return metrics | tables | {"per_class": per_class, "protocol": ground_truth.protocol}
