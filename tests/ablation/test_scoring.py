"""Numbers of many memories at once against COCOeval on each of them."""

import dataclasses
import json

import numpy as np
import pytest
from coco_files import annotation
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax.ablation import scoring
from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.datasets.lvis import FederatedLists
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.images.rle import encode_masks, rle_areas, rle_boxes

CLASSES = 3


def rectangles(rng, count, height, width):
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        # Multiples of 8, so that masks and overlaps often are exactly equal.
        y, x = 8 * rng.integers(0, height // 8 - 2), 8 * rng.integers(0, width // 8 - 2)
        mask[y : y + 8 * rng.integers(1, 15), x : x + 8 * rng.integers(1, 15)] = True
    return masks


def world(seed, images=6, memories=5):
    """Ground truth with crowds, small and large objects and repetitions, and detections that nearly repeat it."""
    rng = np.random.default_rng(seed)
    content = {"images": [], "categories": [{"id": 2 * k + 1, "name": f"c{k}"} for k in range(CLASSES)]}
    content["annotations"], detections = [], []
    for image_id in range(3, 3 + images):
        height, width = int(rng.integers(40, 160)), int(rng.integers(40, 160))
        content["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        truth = rectangles(rng, int(rng.integers(0, 7)), height, width)
        for mask, rle in zip(truth, encode_masks(truth), strict=True):
            box = rle_boxes([rle])[0].tolist()
            number, kind = len(content["annotations"]), 1 + 2 * int(rng.integers(CLASSES))
            entry = annotation(number, image_id, kind, box, segmentation=rle, area=int(mask.sum()))
            content["annotations"].append({**entry, "iscrowd": int(rng.random() < 0.2)})
        if rng.random() < 0.15:
            continue
        other = rectangles(rng, int(rng.integers(0, 5)), height, width)
        masks = np.concatenate([truth, np.roll(truth, 3, axis=1), np.roll(truth, 8, axis=2), other])
        masks = masks[masks.any((1, 2))]
        rles = encode_masks(masks)
        boxes = rle_boxes(rles)
        boxes[:, 2:] += boxes[:, :2] - 1
        number, most = len(masks), 12
        chosen = np.full((memories, most), -1, np.int32)
        for row in chosen:
            some = rng.permutation(number)[: rng.integers(0, most + 1)]
            row[: len(some)] = some
        scores = np.where(chosen >= 0, -np.sort(-rng.integers(1, 6, chosen.shape) / 8, axis=1), 0).astype(np.float32)
        labels = np.where(chosen >= 0, rng.integers(0, CLASSES, chosen.shape), -1).astype(np.int32)
        boxes = boxes.astype(np.float32).reshape(-1, 4)
        detections.append(SharedDetections(image_id, height, width, boxes, tuple(rles), chosen, labels, scores))
    dataset = parse_coco(json.dumps(content).encode(), "made.json")
    return prepare_ground_truth(dataset, select_classes(dataset, "all")), detections


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_equals_cocoeval_of_each_memory(seed):
    truth, detections = world(seed)
    found = scoring.evaluate_shared(truth, lambda: detections, 5)
    for memory, metrics in enumerate(found):
        alone = [record.of(memory) for record in detections]
        assert metrics == evaluate_detections(truth, alone, scorer="pycocotools")


def test_scorers_give_the_same_numbers():
    truth, detections = world(2)
    by_pycocotools = scoring.evaluate_shared(truth, lambda: detections, 5, scorer="pycocotools")
    assert by_pycocotools == scoring.evaluate_shared(truth, lambda: detections, 5)
    assert by_pycocotools[0] != by_pycocotools[1]


def test_masks_that_match_nothing_are_shortened_and_keep_their_area():
    """An object where short masks lie: what overlaps it by half, and what a short mask would make overlap it."""
    size = [40, 40]
    masks = np.zeros((4, 40, 40), bool)
    masks[0, :, :10] = True  # overlaps the object in the corner by half
    masks[1, 35:, 35:] = True  # nothing
    masks[2, :, :5] = True  # is the run of its area
    masks[3, 10:30, 30:] = True  # nothing, but the run of its area matches the object in the corner
    rles = tuple(encode_masks(masks))
    corner = np.zeros((1, 40, 40), bool)
    corner[0, :, :5] = True
    zeros = np.zeros((1, 4))
    boxes = np.zeros((4, 4), np.float32)
    record = SharedDetections(1, *size, boxes, rles, np.arange(4)[None], zeros.astype(int), zeros)
    crowd = {"segmentation": encode_masks(corner)[0], "iscrowd": 0}
    shortened = scoring._with_short_masks(record, [crowd])
    assert [one == other for one, other in zip(shortened.rles, rles, strict=True)] == [True, False, True, True]
    assert rle_areas(shortened.rles).tolist() == rle_areas(rles).tolist()
    assert all(len(rle["counts"]) <= 6 for rle in scoring._with_short_masks(record, []).rles)


def test_more_than_a_hundred_of_a_class_and_several_passes(monkeypatch):
    truth, detections = world(7, images=3)
    record = detections[0]
    rng = np.random.default_rng(1)
    count = len(record.rles)
    masks = np.tile(rng.integers(0, count, (1, 150)), (5, 1)).astype(np.int32)
    scores = -np.sort(-rng.random((5, 150)).astype(np.float32), axis=1)
    labels = (rng.random((5, 150)) < 0.1).astype(np.int32)
    many = [dataclasses.replace(record, masks=masks, labels=labels, scores=scores), *detections[1:]]
    monkeypatch.setattr(scoring, "RESULTS_AT_ONCE", 2 * len(truth.image_ids) + 1)
    found = scoring.evaluate_shared(truth, lambda: many, 5)
    assert found == [evaluate_detections(truth, [record.of(memory) for record in many]) for memory in range(5)]
    assert found[0]["segm"]["AR10"] != found[0]["segm"]["AR100"] is not None


@pytest.mark.parametrize("protocol", ["voc", "coco20i", "lvis"])
def test_other_rules_give_the_numbers_of_each_memory_alone(protocol):
    truth, detections = world(5)
    ids = [category.id for category in truth.categories]
    there = {image_id: frozenset(ids[:2]) for image_id in truth.image_ids}
    lists = FederatedLists(there, dict.fromkeys(there, frozenset(ids[1:2])), dict(zip(ids, "rcf", strict=True)))
    truth = dataclasses.replace(truth, protocol=protocol, federated=lists if protocol == "lvis" else None)
    found = scoring.evaluate_shared(truth, lambda: iter(detections), 5)
    assert found == [evaluate_detections(truth, [record.of(memory) for record in detections]) for memory in range(5)]
    assert all(metrics["protocol"] == protocol for metrics in found)
    assert found[0] != found[1]


def test_nothing_found():
    truth, _ = world(3)
    found = scoring.evaluate_shared(truth, list, 2)
    assert found == [evaluate_detections(truth, [])] * 2


def test_bad_detections():
    truth, detections = world(3)
    for bad in (
        [dataclasses.replace(detections[0], image_id=999)],
        [detections[0], detections[0]],
        [dataclasses.replace(detections[0], masks=detections[0].masks[:4])],
    ):
        with pytest.raises(InputError, match=r"evaluation: .*\bimage \d+"):
            scoring.evaluate_shared(truth, lambda bad=bad: bad, 5)
    with pytest.raises(InputError, match="has no category"):
        label = detections[0].labels + (detections[0].masks >= 0) * 3
        scoring.evaluate_shared(truth, lambda: [dataclasses.replace(detections[0], labels=label)], 5)


def test_a_record_comes_back():
    _, detections = world(11)
    for record in detections:
        text = json.dumps(record.to_json())
        other = SharedDetections.from_json(json.loads(text), "here")
        for name in ("boxes", "masks", "labels", "scores"):
            np.testing.assert_array_equal(getattr(other, name), getattr(record, name))
            assert getattr(other, name).dtype == getattr(record, name).dtype
        assert (other.image_id, other.height, other.width, other.rles) == (
            *(record.image_id, record.height, record.width),
            record.rles,
        )


def test_spoilt_records():
    record = next(record for record in world(11)[1] if len(record.rles))
    good = record.to_json()
    more = dataclasses.replace(record, masks=record.masks + 100).to_json()
    for spoilt in (
        [],
        {**good, "extra": 1},
        {key: good[key] for key in good if key != "scores"},
        {**good, "shape": [5]},
        {**good, "shape": [2**20, 2**20]},
        {**good, "shape": [1, 1]},
        {**good, "labels": "?"},
        {**good, "labels": None},
        {**good, "scores": good["scores"][:-8]},
        {**good, "counts": None},
        {**good, "boxes": [[0, 0, 1]]},
        more,
    ):
        with pytest.raises(InputError, match="here") as caught:
            SharedDetections.from_json(spoilt, "here")
        assert "\n" not in str(caught.value)
