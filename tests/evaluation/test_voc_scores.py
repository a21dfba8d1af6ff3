"""VOC's rules against a slow and obvious implementation of them, on random detections."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from host_detections import host_detections
from random_detections import parse, random_content, random_detections

from ntt_jax.datasets.class_lists import VOC_CLASSES
from ntt_jax.datasets.dataset import CocoDataset, make_dataset, select_classes
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.results import ImageDetections
from ntt_jax.images.rle import decode_rle

NAMES = list(VOC_CLASSES[:5])


def voc_dataset(seed: int, *, difficult: float = 0.3) -> CocoDataset:
    """Random objects under VOC's rules, some of them difficult."""
    generator = np.random.default_rng(seed)
    made = parse(random_content(seed, names=NAMES))
    annotations = {
        i: dataclasses.replace(a, isimpossible=bool(generator.random() < difficult))
        for i, a in made.annotations.items()
    }
    return make_dataset("x", "0", dict(made.images), annotations, dict(made.categories), protocol="voc")


def overlap(a: Any, b: Any, kind: str) -> float:
    """Of boxes x1, y1, x2, y2 that hold the pixels of both corners, or of masks."""
    if kind == "segm":
        return (a & b).sum() / (a | b).sum()
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = max(w, 0) * max(h, 0)
    return common / sum(((x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)), -common)


def slow_curve(dataset: CocoDataset, records: list[ImageDetections], kind: str, k: int, threshold: float) -> Any:
    """Recall and precision after every detection of a class that counts; None without an object to find."""
    category_id = list(dataset.categories)[k]
    objects = [a for a in dataset.annotations.values() if a.category_id == category_id]
    found = []
    for image_id, record in sorted(records, key=lambda r: r[0]):
        for row in np.flatnonzero(record.labels == k):
            found.append((record, row, image_id))
    found.sort(key=lambda pair: -pair[0].scores[pair[1]])
    total = sum(not a.isimpossible for a in objects)
    taken, right, wrong, points = set(), 0, 0, []
    for record, row, image_id in found:
        best, match = -1.0, None
        for entry in objects:
            if entry.image_id != image_id:
                continue
            x, y, w, h = entry.bbox
            theirs = dataset.mask(entry) if kind == "segm" else (x, y, x + w - 1, y + h - 1)
            mine = decode_rle(record.rles[row]) if kind == "segm" else record.boxes[row].tolist()
            if (value := overlap(mine, theirs, kind)) > best:
                best, match = value, entry
        if match is not None and best > threshold:
            if match.isimpossible:
                continue
            right, wrong = (right, wrong + 1) if match.id in taken else (right + 1, wrong)
            taken.add(match.id)
        else:
            wrong += 1
        points.append((right / total if total else 0, right / (right + wrong)))
    return points if total else None


def eleven_points(points: list[tuple[float, float]]) -> float:
    return sum(max((p for r, p in points if r >= level), default=0) for level in np.arange(0, 1.1, 0.1)) / 11


def area(points: list[tuple[float, float]]) -> float:
    corners = [(0.0, 0.0), *points, (1.0, 0.0)]
    best = [max(p for _, p in corners[i:]) for i in range(len(corners))]
    return sum((corners[i + 1][0] - corners[i][0]) * best[i + 1] for i in range(len(corners) - 1))


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_rules_spelled_out(seed: int) -> None:
    dataset = voc_dataset(seed)
    records = random_detections(dataset, seed)
    metrics = evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), records)
    thresholds = np.linspace(0.5, 0.95, 10)
    for kind in ("bbox", "segm"):
        curves = {(k, t): slow_curve(dataset, records, kind, k, t) for k in range(len(NAMES)) for t in thresholds}
        eleven = {key: eleven_points(points) for key, points in curves.items() if points is not None}

        def mean(threshold: float, values: dict[Any, float] = eleven) -> float:
            return float(np.mean([v for (_, t), v in values.items() if abs(t - threshold) < 1e-9]))

        expected = {
            "AP": float(np.mean(list(eleven.values()))),
            "AP50": mean(0.5),
            "AP75": mean(0.75),
            "AP50_area": mean(0.5, {key: area(points) for key, points in curves.items() if points is not None}),
        }
        assert metrics[kind] == pytest.approx(expected, abs=1e-12)
        assert 0.05 < metrics[kind]["AP"] < metrics[kind]["AP50"] < 0.95
        for k, row in enumerate(metrics["per_class"]):
            assert row[kind]["AP50"] == pytest.approx(eleven.get((k, 0.5)), abs=1e-12)
    assert metrics["protocol"] == "voc" and metrics["per_class"][-1]["bbox"]["AP"] is None and "note" in metrics
    counts = [row["ground_truth"] for row in metrics["per_class"]]
    assert sum(counts) == sum(not a.isimpossible for a in dataset.annotations.values()) < len(dataset.annotations)
    json.dumps(metrics, allow_nan=False)


def test_boxes_alone_where_not_every_object_has_a_mask() -> None:
    made = voc_dataset(0)
    first = next(iter(made.annotations))
    annotations = dict(made.annotations) | {first: dataclasses.replace(made.annotations[first], segmentation=None)}
    dataset = make_dataset("x", "0", dict(made.images), annotations, dict(made.categories), protocol="voc")
    truth = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    assert truth.kinds == ("bbox",)
    both = prepare_ground_truth(made, select_classes(made, "all"))
    records = random_detections(made, 0)
    assert evaluate_detections(truth, records)["bbox"] == evaluate_detections(both, records)["bbox"]


def test_a_box_that_fits_exactly_overlaps_by_one() -> None:
    # x1 = 20 and x2 = 59 are 40 pixels: a detection with COCO's width of 39 would reach no more than .95.
    content = random_content(0, names=NAMES[:2], images=1)
    content["annotations"] = [
        {"id": 1, "image_id": 5, "category_id": 1, "bbox": [20, 20, 40, 10], "area": 400, "iscrowd": 0}
    ]
    made = parse(content)
    dataset = make_dataset("x", "0", dict(made.images), dict(made.annotations), dict(made.categories), protocol="voc")
    mask = np.zeros((1, 60, 80), np.bool_)
    record = host_detections(mask, np.array([[20, 20, 59, 29]]), np.array([0.5]), np.array([0]))
    metrics = evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), [(5, record)])
    assert metrics["bbox"] == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "AP50_area": 1})
    nothing = evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), [])
    assert set(nothing["bbox"].values()) == {0.0} and nothing["detections"] == 0
