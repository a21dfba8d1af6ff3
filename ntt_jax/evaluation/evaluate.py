"""What detections are worth, by the rules of the data set: those of COCO, LVIS, PASCAL VOC or COCO-20i."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.coco import SCORERS, CocoScorer
from ntt_jax.evaluation.ground_truth import GroundTruth
from ntt_jax.evaluation.lvis import LvisScorer
from ntt_jax.evaluation.results import ImageDetections, check_labels
from ntt_jax.evaluation.semantic import SemanticScorer
from ntt_jax.evaluation.voc import VocScorer

UNDEFINED_NOTE = "null: the evaluated images hold no ground truth of that kind, so the number is not defined"


class Scorer(Protocol):
    """Collects what detections mean under one set of rules, and keeps only what its numbers need."""

    def add(self, image_id: int, record: HostDetections) -> None:
        """Take in the detections of one image; each image comes at most once, in any order."""
        ...

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers as tables by name, and the same for every class; None where a number is not defined."""
        ...


def evaluate_detections(
    ground_truth: GroundTruth, detections: Iterable[ImageDetections], *, scorer: str = SCORERS[0]
) -> dict[str, Any]:
    """Metrics of detections, as JSON-ready data: `Evaluation` of all of them. Errors as `Evaluation.add`."""
    evaluation = Evaluation(ground_truth, scorer=scorer)
    for image_id, found in detections:
        evaluation.add(image_id, found)
    return evaluation.metrics()


class Evaluation:
    """The metrics of detections that come one image at a time, in any order.

    scorer: which library applies COCO's rules, one of `SCORERS`: the numbers are the same to the last digit. hotcoco
    does not keep the detections. Other rules than COCO's do not look at it.
    """

    def __init__(self, ground_truth: GroundTruth, *, scorer: str = SCORERS[0]):
        self._ground_truth, protocol = ground_truth, ground_truth.protocol
        self._scorer: Scorer
        if protocol == "lvis":
            self._scorer = LvisScorer(ground_truth)
        elif protocol == "voc":
            self._scorer = VocScorer(ground_truth)
        else:
            self._scorer = CocoScorer(ground_truth, scorer)
        self._semantic = SemanticScorer(ground_truth) if protocol == "coco20i" else None
        self._known, self._seen = frozenset(ground_truth.image_ids), set[int]()
        self._counts = np.zeros(len(ground_truth.categories), np.int64)

    def add(self, image_id: int, found: HostDetections) -> None:
        """Compare the detections of one image with its objects.

        Raises `InputError` if the image is not evaluated or comes twice, or a label has no category.
        """
        if image_id not in self._known or image_id in self._seen:
            problem = "comes twice" if image_id in self._seen else "is not among the evaluated images"
            raise InputError(f"evaluation: image {image_id} of the detections {problem}")
        self._seen.add(image_id)
        classes = len(self._counts)
        check_labels(found, image_id, classes)
        self._counts += np.bincount(found.labels, minlength=classes)
        self._scorer.add(image_id, found)
        if self._semantic is not None:
            self._semantic.add(image_id, found)

    def metrics(self) -> dict[str, Any]:
        """The metrics of what has come, as JSON-ready data. To be called once, after the last image.

        Returns `{"bbox": {"AP": ..., "AP50": ..., ...}, "segm": {...}, "images": n, "detections": n, "classes": n,
        "per_class": [{"category_id", "name", "ground_truth", "detections", "bbox": {"AP", "AP50", "AP75"}, ...}]}`.
        Numbers are fractions in 0..1: COCO's twelve (AP, AP50, AP75, APs/m/l by object size, AR1/10/100, ARs/m/l).
        "ground_truth" counts a class's instances without crowds and difficult objects. A number without any ground
        truth to measure it on (pycocotools: -1) is None, and `"note"` then says why. An image without detections
        counts as such; without any detection at all every defined number is 0.

        For "segm" the size of a detection, which matters only to APs/m/l, is the area of its mask. (pycocotools'
        `loadRes` takes the box's when a results entry has both; evaluators that rely on it drop the box first, to the
        same effect.)

        By other rules than COCO's, `"protocol"` names them and the tables hold the numbers of `lvis`, `voc` or,
        beside COCO's, `semantic`.
        """
        truth = self._ground_truth
        tables, rows = self._scorer.results()
        objects = dict.fromkeys((category.id for category in truth.categories), 0)
        for entry in truth.entries:
            objects[entry["category_id"]] += not entry["iscrowd"] and not entry["difficult"]
        per_class = [
            {"category_id": c.id, "name": c.name, "ground_truth": objects[c.id], "detections": int(count), **row}
            for c, count, row in zip(truth.categories, self._counts, rows, strict=True)
        ]
        metrics: dict[str, Any] = {
            **tables,
            "images": len(truth.image_ids),
            "detections": int(self._counts.sum()),
            "classes": len(per_class),
            "per_class": per_class,
        }
        if truth.protocol in ("lvis", "voc"):
            metrics["protocol"] = truth.protocol
        measured = [table[kind] for table in (metrics, *per_class) for kind in truth.kinds]
        if any(value is None for table in measured for value in table.values()):
            metrics["note"] = UNDEFINED_NOTE
        if self._semantic is not None:
            semantic, more = self._semantic.results()
            for row, of_class in zip(per_class, more, strict=True):
                row |= of_class
            metrics |= semantic | {"protocol": truth.protocol}
        return metrics
