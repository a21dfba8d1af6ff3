"""The semantic mIoU of COCO-20i against counting pixel by pixel, on random detections."""

import json
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, box_mask
from host_detections import host_detections
from random_detections import parse, random_content, random_detections

from ntt_jax.datasets.class_lists import CLASS_LISTS
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.results import ImageDetections
from ntt_jax.images.rle import decode_rle, encode_masks

FOLD = list(CLASS_LISTS["coco20i-2"])


def slow_iou(dataset: CocoDataset, records: list[ImageDetections], threshold: float) -> list[float | None]:
    """Intersection over union of every class of the fold, pixel by pixel."""
    by_image = dict(records)
    places = {category.id: k for k, category in enumerate(select_classes(dataset, "coco20i-2"))}
    common, union, there = np.zeros((3, len(places)), int)
    for image_id, image in dataset.images.items():
        objects = [a for a in dataset.image_annotations[image_id] if a.category_id in places]
        objects = sorted(((dataset.mask(a), a) for a in objects), key=lambda pair: pair[0].sum(), reverse=True)
        record = by_image.get(image_id)
        masks = [decode_rle(rle) for rle in record.rles] if record else []
        for y in range(image.height):
            for x in range(image.width):
                true, crowd = None, False
                for mask, entry in objects:
                    if mask[y, x]:
                        crowd |= entry.iscrowd
                        true = true if entry.iscrowd else places[entry.category_id]
                if crowd and true is None:
                    continue
                predicted = None
                for row, mask in enumerate(masks):  # by descending score
                    if mask[y, x]:
                        assert record is not None
                        predicted = int(record.labels[row]) if record.scores[row] >= np.float32(threshold) else None
                        break
                if true is not None:
                    there[true] += 1
                for k in {true, predicted} - {None}:
                    union[k] += 1
                    common[k] += true == predicted
    return [c / u if n else None for c, u, n in zip(common, union, there, strict=True)]


def mean(values: list[float | None]) -> float:
    return float(np.mean([v for v in values if v is not None]))


def test_equals_counting_pixels() -> None:
    names = [*FOLD[:4], "person", *FOLD[4:]]  # a class of another fold among them
    content = random_content(4, names=names, images=8, crowds=True)
    for i, entry in enumerate(content["annotations"]):
        entry["category_id"] = 1 + 2 * (i % 5)  # few classes, so that they meet
    dataset = parse(content)
    chosen = select_classes(dataset, "coco20i-2")
    only = parse(
        content
        | {
            "categories": [c for c in content["categories"] if c["name"] != "person"],
            "annotations": [a for a in content["annotations"] if a["category_id"] != 9],
        }
    )
    records = random_detections(only, 4, most=12)
    metrics = evaluate_detections(prepare_ground_truth(dataset, chosen), records)
    expected = slow_iou(dataset, records, 0.5)
    assert metrics["protocol"] == "coco20i"
    assert metrics["semantic"]["mIoU"] == pytest.approx(mean(expected), abs=1e-12)
    assert [row["semantic"]["IoU"] for row in metrics["per_class"]] == pytest.approx(expected, abs=1e-12)
    assert metrics["semantic"]["score_threshold"] == 0.5
    assert metrics["semantic"]["mIoU_by_threshold"]["0.5"] == metrics["semantic"]["mIoU"]
    assert metrics["semantic"]["mIoU_by_threshold"]["0.0"] == pytest.approx(mean(slow_iou(dataset, records, 0)))
    assert 0.1 < metrics["semantic"]["mIoU"] < 0.9 and sum(v is None for v in expected) >= 10
    assert "AP" in metrics["segm"] and "AP" in metrics["bbox"]
    json.dumps(metrics, allow_nan=False)


def dogs_and_cats(*detections: tuple[np.ndarray, float, str]) -> dict[str, Any]:
    """A large dog with a small cat before it, and what is made of these detections."""
    names = list(CLASS_LISTS["coco20i-3"])
    dog, cat = (10, 10, 40, 40), (20, 20, 10, 10)
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            annotation(2, 1, 1, list(cat), segmentation=encode_masks(box_mask(60, 80, *cat)[None])[0]),
            annotation(3, 1, 0, list(dog), segmentation=encode_masks(box_mask(60, 80, *dog)[None])[0]),
        ],
    }
    dataset = parse(content)
    truth = prepare_ground_truth(dataset, select_classes(dataset, "coco20i-3"))
    records = []
    if detections:
        masks, scores, classes = zip(*detections, strict=True)
        labels = np.array([names.index(name) for name in classes])
        boxes = np.zeros((len(masks), 4))
        records = [(1, host_detections(np.stack(masks), boxes, np.array(scores), labels))]
    metrics = evaluate_detections(truth, records)
    return {"mIoU": metrics["semantic"]["mIoU"]} | {
        row["name"]: row["semantic"]["IoU"] for row in metrics["per_class"][:2]
    }


def test_known_cases() -> None:
    names = CLASS_LISTS["coco20i-3"][:2]
    dog, cat = box_mask(60, 80, 10, 10, 40, 40), box_mask(60, 80, 20, 20, 10, 10)
    perfect = dogs_and_cats((cat, 0.9, names[1]), (dog, 0.6, names[0]))
    assert list(perfect.values()) == [1, 1, 1]
    # The dog scores higher: it covers the cat, and its own 1500 pixels are 1500 of 1600.
    hidden = dogs_and_cats((dog, 0.9, names[0]), (cat, 0.6, names[1]))
    assert list(hidden.values()) == [1500 / 1600 / 2, 1500 / 1600, 0]
    weak = dogs_and_cats((dog, 0.49, names[0]))
    assert list(weak.values()) == [0, 0, 0]
    assert list(dogs_and_cats().values()) == [0, 0, 0]


def test_other_choices_of_classes_have_none() -> None:
    dataset = parse(random_content(0, names=FOLD))
    metrics = evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, FOLD[:3])), [])
    assert "semantic" not in metrics and "protocol" not in metrics
    boxes = prepare_ground_truth(dataset, select_classes(dataset, "coco20i-2"), kinds=["bbox"])
    assert "semantic" not in evaluate_detections(boxes, [])
    assert "semantic" in evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "fold3")), [])
