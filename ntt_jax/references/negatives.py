"""Negative references (METHOD section 4): instances that look like a class and are none. Host only.

They are COCO annotations like any others; an annotation's category is the class that it is mistaken for. People draw
them, or they are the false positives of a first pass, which is how they are chosen here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ntt_jax.datasets.bank_classes import same_categories
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.ground_truth import GroundTruth
from ntt_jax.evaluation.results import ImageDetections, coco_results
from ntt_jax.files import describe, show_path
from ntt_jax.images.rle import rle_areas
from ntt_jax.notes import Notes
from ntt_jax.references.sampling import MIN_BOX_SIDE, ClassReferences, Reference, ReferenceSet, check_references

MAX_SHARE = 0.1
"""A false positive of a class has no more than this part of its pixels on objects of the class."""


def false_positives(
    ground_truth: GroundTruth, detections: Iterable[ImageDetections], per_class: int
) -> list[ImageDetections]:
    """The false positives with the best scores, at most `per_class` of each class, each from another image.

    Not merely badly cut: at most `MAX_SHARE` of the mask lies on objects of the class, crowds and difficult ones
    included. Boxes narrower or lower than a reference's may be are left out. LVIS: only in images in which all objects
    of the class are known. Returns what is left of the detections, by ascending image id.
    """
    index = {category.id: k for k, category in enumerate(ground_truth.categories)}
    objects: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in ground_truth.entries:
        objects.setdefault((entry["image_id"], index[entry["category_id"]]), []).append(entry)
    records = dict(detections)
    chosen: dict[int, list[int]] = {}
    for label in range(len(index)):
        rows = [(i, int(row)) for i, record in records.items() for row in np.flatnonzero(record.labels == label)]
        rows.sort(key=lambda place: (-records[place[0]].scores[place[1]], place))
        taken: set[int] = set()
        for image_id, row in rows:
            if len(taken) == per_class:
                break
            own = objects.get((image_id, label), [])
            if image_id not in taken and _is_false(ground_truth, image_id, records[image_id], row, own):
                taken.add(image_id)
                chosen.setdefault(image_id, []).append(row)
    return [(image_id, records[image_id].select(sorted(rows))) for image_id, rows in sorted(chosen.items())]


def _is_false(
    ground_truth: GroundTruth, image_id: int, record: HostDetections, row: int, objects: list[dict[str, Any]]
) -> bool:
    x1, y1, x2, y2 = record.boxes[row]
    if min(x2 - x1, y2 - y1) < MIN_BOX_SIDE:
        return False
    if (lists := ground_truth.federated) is not None:
        category_id = ground_truth.categories[record.labels[row]].id
        known = bool(objects) or category_id in lists.negative[image_id]
        if not known or category_id in lists.not_exhaustive[image_id]:
            return False
    if not objects:
        return True
    masks = [entry.get("segmentation") or _box_rle(entry["bbox"], record) for entry in objects]
    iou: Any = mask_api.iou
    # With a crowd, pycocotools gives the share of the detection inside it.
    return bool(np.sum(iou([record.rles[row]], masks, [1] * len(masks))) <= MAX_SHARE)


def _box_rle(box: Sequence[float], record: HostDetections) -> Any:
    made: Any = mask_api.frPyObjects
    return made(np.array([box], np.float64), record.height, record.width)[0]


def as_coco(detections: Sequence[ImageDetections], dataset: CocoDataset, category_ids: Sequence[int]) -> dict[str, Any]:
    """Detections as a COCO file of their own, each with its score. category_ids: by class index."""
    annotations: list[dict[str, Any]] = []
    for image_id, found in detections:
        for entry in coco_results(found, image_id, category_ids):
            area = int(rle_areas([entry["segmentation"]])[0])
            annotations.append({"id": len(annotations) + 1, **entry, "area": area, "iscrowd": 0})
    images = [dataset.images[image_id] for image_id, _ in detections]
    return {
        "images": [{"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images],
        "categories": [{"id": i, "name": dataset.categories[i].name} for i in category_ids],
        "annotations": annotations,
    }


def negative_set(dataset: CocoDataset, references: ReferenceSet, notes: Notes | None = None) -> ReferenceSet:
    """All annotations of a file of negatives, but crowds, by the classes of the references (which may have none).

    A class is the category of its id and name; where the two disagree, the only category of its name, which `notes`
    hear.
    Raises `InputError` if the category of a class's id has another name and none has the class's, none of its
    annotations is of these classes, or one cannot be used (`check_references`).
    """
    notes = Notes() if notes is None else notes
    given = [(chosen.category_id, chosen.name) for chosen in references.classes]
    # The category of a class in this file; where it has none, that of the class's id, which is refused below.
    theirs = [
        category_id if isinstance(category, int) else category.id
        for (category_id, _), category in zip(given, same_categories(given, dataset, notes, "references"), strict=True)
    ]
    found: dict[int, list[Reference]] = {category_id: [] for category_id in theirs}
    for annotation in dataset.annotations.values():
        if annotation.category_id in found and not annotation.iscrowd:
            found[annotation.category_id].append(Reference(annotation.image_id, annotation.id))
    if not any(found.values()):
        names = ", ".join(describe(chosen.name) for chosen in references.classes[:10])
        raise InputError(
            f"{show_path(dataset.path)}: no annotation is of a class of the references ({names}); the category of a "
            "negative reference is the class that it is mistaken for"
        )
    both = list(zip(theirs, references.classes, strict=True))
    named = tuple(ClassReferences(i, one.name, tuple(found[i])) for i, one in both if i in dataset.categories)
    shots = max(map(len, found.values()))
    check_references(ReferenceSet(named, shots), dataset)
    classes = tuple(ClassReferences(one.category_id, one.name, tuple(found[i])) for i, one in both)
    return ReferenceSet(classes, shots, annotations_sha256=dataset.sha256)
