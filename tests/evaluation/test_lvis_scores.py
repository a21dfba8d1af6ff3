"""LVIS's rules against a slow and obvious implementation of them, on random detections; its files."""

import json
from typing import Any

import numpy as np
import pytest
from coco_files import check_message
from host_detections import host_detections
from pycocotools import mask as mask_api
from random_detections import lvis_content, parse, random_detections

from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.lvis import DETECTIONS_PER_IMAGE
from ntt_jax.evaluation.results import ImageDetections, coco_results

AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def slow_ap(
    content: dict[str, Any], found: list[dict[str, Any]], kind: str, category_id: int, area: str, threshold: float
) -> float | None:
    """Average precision of one category, object size and overlap, step by step as LVIS describes it."""
    low, high = AREAS[area]
    judged: list[tuple[float, bool]] = []  # score, right
    objects = 0
    for image in sorted(content["images"], key=lambda image: image["id"]):
        truth = [a for a in content["annotations"] if (a["image_id"], a["category_id"]) == (image["id"], category_id)]
        truth.sort(key=lambda a: not low <= a["area"] <= high)
        objects += sum(low <= a["area"] <= high for a in truth)
        mine = [d for d in found if d["image_id"] == image["id"]]
        mine = sorted(mine, key=lambda d: -d["score"])[:300]
        mine = [d for d in mine if d["category_id"] == category_id]
        if not truth and category_id not in image["neg_category_ids"]:
            continue
        taken: set[int] = set()
        for detection in mine:
            match, best, counts = None, threshold, False
            for g, entry in enumerate(truth):
                inside = low <= entry["area"] <= high
                if g in taken or (match is not None and counts and not inside):
                    continue
                key = "bbox" if kind == "bbox" else "segmentation"
                ious: Any = mask_api.iou([detection[key]], [entry[key]], [0])
                iou = float(ious[0, 0])
                if iou >= best:
                    match, best, counts = g, iou, inside
            if match is not None:
                taken.add(match)
                if counts:
                    judged.append((detection["score"], True))
                continue
            box = detection["bbox"]
            size = box[2] * box[3] if kind == "bbox" else float(mask_api.area(detection["segmentation"]))
            if low <= size <= high and category_id not in image["not_exhaustive_category_ids"]:
                judged.append((detection["score"], False))
    if not objects:
        return None
    judged.sort(key=lambda pair: -pair[0])
    points, right = [], 0
    for n, (_, correct) in enumerate(judged, 1):
        right += correct
        points.append((right / objects, right / n))
    return float(np.mean([max((p for r, p in points if r >= level), default=0) for level in np.linspace(0, 1, 101)]))


def evaluate(dataset: CocoDataset, records: list[ImageDetections]) -> dict[str, Any]:
    return evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), records)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_rules_spelled_out(seed: int) -> None:
    content = lvis_content(seed)
    dataset = parse(content)
    records = random_detections(dataset, seed)
    ids = list(dataset.categories)
    found = [entry for image_id, one in records for entry in coco_results(one, image_id, ids)]
    metrics = evaluate(dataset, records)
    assert metrics["protocol"] == "lvis" and metrics["detections"] == len(found)
    for kind in ("bbox", "segm"):
        table = {
            (i, area, t): slow_ap(content, found, kind, i, area, t)
            for i in ids
            for area in AREAS
            for t in np.linspace(0.5, 0.95, 10)
        }

        def mean(keep: Any, table: dict[Any, float | None] = table) -> float | None:
            values = [v for key, v in table.items() if v is not None and keep(*key)]
            return float(np.mean(values)) if values else None

        expected = {
            "AP": mean(lambda i, a, t: a == "all"),
            "AP50": mean(lambda i, a, t: a == "all" and t == 0.5),
            "AP75": mean(lambda i, a, t: a == "all" and abs(t - 0.75) < 1e-9),
            **{f"AP{size}": mean(lambda i, a, t, size=size: a == size) for size in "sml"},
            **{f"AP{f}": mean(lambda i, a, t, f=f: a == "all" and "rccffc"[ids.index(i)] == f) for f in "rcf"},
        }
        assert {name: metrics[kind][name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert 0.05 < metrics[kind]["AP"] < 0.95 and len(set(expected.values())) >= 7
        for row in metrics["per_class"]:
            assert row[kind]["AP50"] == pytest.approx(table[row["category_id"], "all", 0.5], abs=1e-12)
    assert metrics["per_class"][0]["frequency"] == "r" and metrics["per_class"][-1]["bbox"]["AP"] is None
    assert "note" in metrics
    assert evaluate(dataset, records[::-1]) == metrics  # the order of the images does not matter
    json.dumps(metrics, allow_nan=False)


def one_object(lists: dict[str, list[int]]) -> CocoDataset:
    content = lvis_content(3, images=2)
    for image in content["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []} | lists
    content["annotations"] = content["annotations"][:1]
    return parse(content)


def test_what_is_not_known_does_not_count() -> None:
    dataset = one_object({})
    entry = next(iter(dataset.annotations.values()))
    mask = dataset.mask(entry)
    label = list(dataset.categories).index(entry.category_id)
    x, y, w, h = entry.bbox
    wrong = np.zeros_like(mask)
    wrong[-3:, -3:] = True

    def records(image_id: int, labels: list[int]) -> list[ImageDetections]:
        masks, scores = np.stack([wrong, mask]), np.array([0.9, 0.5], np.float32)
        boxes = np.array([[77, 57, 79, 59], [x, y, x + w - 1, y + h - 1]])
        return [(image_id, host_detections(masks, boxes, scores, np.array(labels)))]

    other = (label + 1) % len(dataset.categories)
    # A higher scoring detection of a category about which nothing is known costs nothing ...
    assert evaluate(dataset, records(entry.image_id, [other, label]))["segm"]["AP50"] == pytest.approx(1)
    # ... nor does one of the object's own category, where not all instances are marked; else it halves the precision.
    assert evaluate(dataset, records(entry.image_id, [label, label]))["segm"]["AP50"] == pytest.approx(0.5)
    incomplete = one_object({"not_exhaustive_category_ids": [entry.category_id]})
    assert evaluate(incomplete, records(entry.image_id, [label, label]))["segm"]["AP50"] == pytest.approx(1)


def test_three_hundred_detections_of_an_image_count() -> None:
    dataset = one_object({})
    entry = next(iter(dataset.annotations.values()))
    label = list(dataset.categories).index(entry.category_id)
    count = DETECTIONS_PER_IMAGE + 1
    masks = np.repeat(np.roll(dataset.mask(entry), 25, axis=0)[None], count, axis=0)
    masks[-1] = dataset.mask(entry)
    scores = np.linspace(0.9, 0.1, count, dtype=np.float32)
    record = host_detections(masks, np.zeros((count, 4)), scores, np.full(count, label))
    assert evaluate(dataset, [(entry.image_id, record)])["segm"]["AP50"] == 0
    better = record.select(np.arange(1, count))
    assert evaluate(dataset, [(entry.image_id, better)])["segm"]["AP50"] == pytest.approx(1 / 300)


def test_images_are_found_by_their_address() -> None:
    content = lvis_content(0, images=2)
    dataset = parse(content)
    first = content["images"][0]
    assert dataset.images[first["id"]].file_name == f"val2017/{first['id']:012}.jpg"
    first["file_name"] = "plain.jpg"  # what minival files have beside
    assert parse(content).images[first["id"]].file_name == "plain.jpg"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["images"][1].pop("neg_category_ids"), ["images[1]", '"neg_category_ids"', "no such key"]),
        (lambda c: c["images"][1].update(neg_category_ids=[99]), ["images[1]", "a list of category ids", "[99]"]),
        (lambda c: c["images"][0].update(not_exhaustive_category_ids=None), ["images[0]", "not_exhaustive", "null"]),
        (lambda c: c["categories"][2].pop("frequency"), ["categories[2]", '"frequency"', "no such key"]),
        (lambda c: c["categories"][2].update(frequency=["r"]), ["categories[2]", "r, c, f", "a list of 1"]),
    ],
)
def test_refuses_broken_lists(change: Any, parts: list[str]) -> None:
    content = lvis_content(0, images=3)
    change(content)
    with pytest.raises(InputError) as caught:
        parse(content)
    check_message(caught.value, "folder/x.json", *parts)


def test_refuses_what_evaluation_refuses() -> None:
    dataset = one_object({})
    record = random_detections(dataset, 0)[0]
    for records, part in (([record, record], "comes twice"),):
        with pytest.raises(InputError, match=part):
            evaluate(dataset, records)
    few = prepare_ground_truth(dataset, select_classes(dataset, "all")[:1])
    image_id, one = record
    high = HostDetections(60, 80, one.boxes[:1], one.scores[:1], np.array([1]), one.rles[:1])
    with pytest.raises(InputError, match="label 1 has no category"):
        evaluate_detections(few, [(image_id, high)])
