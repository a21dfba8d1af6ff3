"""Metrics against pycocotools run by its own file readers, and cases whose numbers are known."""

import contextlib
import dataclasses
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, box_mask, check_message, document
from host_detections import host_detections
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_detections import random_content, random_detections

from ntt_jax.ablation.scoring import evaluate_shared
from ntt_jax.datasets.coco import load_coco, parse_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.errors import InputError
from ntt_jax.evaluation import KINDS, SCORERS, GroundTruth, evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.hotcoco_scorer import one_line
from ntt_jax.evaluation.results import ImageDetections, write_results
from ntt_jax.report.matching import match


def parse(content: Any) -> CocoDataset:
    return parse_coco(json.dumps(content).encode(), "folder/x.json")


def from_masks(image_id: int, masks: list[np.ndarray], scores: list[float], labels: list[int]) -> ImageDetections:
    """Detections with the inclusive boxes of their masks."""
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max(), y.max()])
    return image_id, host_detections(np.stack(masks), np.array(boxes), np.array(scores), np.array(labels))


def noisy_detections(dataset: CocoDataset, class_ids: list[int], seed: int) -> list[ImageDetections]:
    """Ground truth shifted, dropped, mislabelled and scored at random."""
    rng = np.random.default_rng(seed)
    records = []
    for image_id in sorted(dataset.images):
        masks, labels = [], []
        for entry in dataset.image_annotations[image_id]:
            mask = np.roll(dataset.mask(entry), int(rng.integers(0, 9)), axis=1)
            if entry.category_id in class_ids and mask.any() and rng.random() < 0.9:
                masks.append(mask)
                right = rng.random() < 0.8
                labels.append(class_ids.index(entry.category_id) if right else int(rng.integers(len(class_ids))))
        if masks:
            # Few distinct scores: ties are where the order of detections shows.
            scores = np.sort(rng.integers(1, 40, len(masks)) / np.float32(40))[::-1].tolist()
            records.append(from_masks(image_id, masks, scores, labels))
    return records


def theirs(annotations: pathlib.Path, results: pathlib.Path, kind: Any, ground_truth: GroundTruth) -> list[float]:
    """The twelve numbers as pycocotools prints them, from the two files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        entries = json.loads(results.read_bytes())
        if kind == "segm":
            for entry in entries:
                del entry["bbox"]
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.params.imgIds = list(ground_truth.image_ids)
        evaluation.params.catIds = [category.id for category in ground_truth.categories]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize(("classes", "seed"), [("novel", 0), ("person,dog,traffic light", 1)])
def test_equals_pycocotools(coco_open: pathlib.Path, tmp_path: pathlib.Path, classes: str, seed: int) -> None:
    path = coco_open / "annotations_val.json"
    dataset = load_coco(path)
    categories = select_classes(dataset, classes)
    class_ids = [category.id for category in categories]
    records = noisy_detections(dataset, class_ids, seed)
    ground_truth = prepare_ground_truth(dataset, categories)
    metrics = evaluate_detections(ground_truth, records)
    write_results(tmp_path / "results.json", records, class_ids)
    for kind in KINDS:
        expected = theirs(path, tmp_path / "results.json", kind, ground_truth)
        assert list(metrics[kind].values()) == expected
        assert 0.1 < metrics[kind]["AP"] < 0.9
    assert list(metrics["bbox"])[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert metrics["images"] == 91 and metrics["classes"] == len(class_ids)
    assert metrics["detections"] == sum(len(one) for _, one in records) > 200
    json.dumps(metrics, allow_nan=False)


def test_per_class_equals_each_class_alone(coco_open: pathlib.Path) -> None:
    dataset = load_coco(coco_open / "annotations_val.json")
    categories = select_classes(dataset, "person,car,chair")
    class_ids = [category.id for category in categories]
    records = noisy_detections(dataset, class_ids, 2)
    table = evaluate_detections(prepare_ground_truth(dataset, categories), records)["per_class"]
    for k, row in enumerate(table):
        alone = [
            (image_id, dataclasses.replace(mine, labels=np.zeros(len(mine), int)))
            for image_id, mine in ((image_id, r.select(r.labels == k)) for image_id, r in records)
        ]
        metrics = evaluate_detections(prepare_ground_truth(dataset, categories[k : k + 1]), alone)
        assert row["detections"] == metrics["detections"] > 0
        assert (row["category_id"], row["name"]) == (categories[k].id, categories[k].name)
        for kind in KINDS:
            assert row[kind] == {name: metrics[kind][name] for name in ("AP", "AP50", "AP75")}
        truth = [a for a in dataset.annotations.values() if a.category_id == class_ids[k] and not a.iscrowd]
        assert row["ground_truth"] == len(truth)


def squares(**more: Any) -> CocoDataset:
    """Two images, one class (and one that never occurs), one 40 x 40 square each."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (1, 2)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [
            annotation(
                i, i + 1, 3, [20, 20, 40, 40], segmentation=[[20, 20, 60, 20, 60, 60, 20, 60]], area=1600, **more
            )
            for i in (0, 1)
        ],
    }
    return parse(content)


SQUARE = box_mask(100, 100, 20, 20, 40, 40)


def test_perfect_masks_score_one() -> None:
    # The annotation ids are 0 and 1: handed to COCOeval as they are, 0 would count as "no match".
    dataset = squares()
    ground_truth = prepare_ground_truth(dataset, select_classes(dataset, "dog"))
    metrics = evaluate_detections(ground_truth, [from_masks(i, [SQUARE], [0.5], [0]) for i in (1, 2)])
    assert metrics["segm"]["AP"] == pytest.approx(1, abs=1e-12)
    assert metrics["segm"]["APs"] is None and metrics["segm"]["APl"] is None and metrics["segm"]["APm"] is not None
    assert "null" in metrics["note"]
    # METHOD's box is one pixel smaller on each side: IoU 39 * 39 / 1600 = 0.950625.
    assert metrics["bbox"]["AP"] == pytest.approx(1, abs=1e-12)
    half = evaluate_detections(ground_truth, [from_masks(1, [SQUARE], [0.5], [0])])
    assert half["segm"]["AR100"] == 0.5 and half["segm"]["AP"] == pytest.approx(51 / 101)


def test_without_detections_every_defined_number_is_zero() -> None:
    dataset = squares()
    metrics = evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), [])
    for kind in KINDS:
        assert {v for v in metrics[kind].values() if v is not None} == {0.0}
        assert metrics[kind]["AP"] == 0
    assert metrics["detections"] == 0 and metrics["images"] == 2
    assert [row["segm"]["AP"] for row in metrics["per_class"]] == [0, None]  # no cat anywhere


def test_without_ground_truth_nothing_is_defined() -> None:
    dataset = squares()
    ground_truth = prepare_ground_truth(dataset, select_classes(dataset, "cat"))
    metrics = evaluate_detections(ground_truth, [from_masks(1, [SQUARE], [0.5], [0])])
    assert all(value is None for kind in KINDS for value in metrics[kind].values())
    assert "note" in metrics
    json.dumps(metrics, allow_nan=False)


def test_other_images_and_classes_do_not_count() -> None:
    dataset = squares()
    dogs = select_classes(dataset, "dog")
    only = prepare_ground_truth(dataset, dogs, [2])
    assert evaluate_detections(only, [from_masks(2, [SQUARE], [0.5], [0])])["segm"]["AR100"] == 1
    for records, part in (([1], "not among"), ([2, 2], "comes twice"), ([5], "not among")):
        with pytest.raises(InputError) as caught:
            evaluate_detections(only, [from_masks(i, [SQUARE], [0.5], [0]) for i in records])
        check_message(caught.value, part)
    with pytest.raises(InputError, match="has no image 5"):
        prepare_ground_truth(dataset, dogs, [5])
    for bad in ([], [1]):
        with pytest.raises(InputError, match="at least one image and one class"):
            prepare_ground_truth(dataset, [] if bad else dogs, bad)


def test_what_matches_a_crowd_is_ignored() -> None:
    dataset = squares(iscrowd=1)
    ground_truth = prepare_ground_truth(dataset, select_classes(dataset, "dog"))
    metrics = evaluate_detections(ground_truth, [from_masks(1, [SQUARE], [0.5], [0])])
    assert metrics["segm"]["AP"] is None and metrics["per_class"][0]["ground_truth"] == 0


def test_the_order_of_images_does_not_matter(coco_open: pathlib.Path) -> None:
    dataset = load_coco(coco_open / "annotations_val.json")
    categories = select_classes(dataset, "person")
    records = noisy_detections(dataset, [1], 3)
    ground_truth = prepare_ground_truth(dataset, categories)
    assert evaluate_detections(ground_truth, records) == evaluate_detections(ground_truth, records[::-1])


def test_area_is_made_where_it_is_missing() -> None:
    content = document()
    for entry in content["annotations"]:
        entry.pop("area", None)
    del content["annotations"][-1]
    dataset = parse(content)
    entries = prepare_ground_truth(dataset, select_classes(dataset, "all")).entries
    areas = {(e["image_id"], e["category_id"]): e["area"] for e in entries}
    assert (
        areas[7, 5] == 2000
        and areas[3, 2] == 600
        and areas[9, 2] == dataset.mask(dataset.annotations[900100000000]).sum()
    )
    boxes = prepare_ground_truth(dataset, select_classes(dataset, "all"), kinds=["bbox"]).entries
    assert {(e["image_id"], e["category_id"]): e["area"] for e in boxes}[9, 11] == 33 * 34.5


def test_lvis_leaves_out_an_object_without_a_mask_and_says_so() -> None:
    dataset = dataclasses.replace(parse(document()), protocol="lvis")
    both = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    assert both.notes == ("objects without a mask, left out: 1 (annotation 101)",)
    assert len(both.entries) == len(both.of_kind("bbox")) == len(both.of_kind("segm")) == 5


def test_objects_that_are_all_crowds_are_pointed_out() -> None:
    """CVAT and datumaro write every object drawn as a mask with iscrowd 1: then nothing is measured."""
    content = document()
    content["annotations"] = [entry | {"iscrowd": 1} for entry in content["annotations"] if "segmentation" in entry]
    dataset = parse(content)
    (line,) = prepare_ground_truth(dataset, select_classes(dataset, "all")).notes
    assert line.startswith("objects, all of them marked as crowds (as CVAT and datumaro write masks)")
    assert "nothing is measured: 5 (the first: annotation 50); set " in line
    content["annotations"][0]["iscrowd"] = 0
    dataset = parse(content)
    assert not prepare_ground_truth(dataset, select_classes(dataset, "all")).notes


def test_boxes_alone_need_no_masks() -> None:
    dataset = parse(document())
    categories = select_classes(dataset, "all")
    both = prepare_ground_truth(dataset, categories)
    assert both.notes == ("objects without a mask, compared by box only: 1 (annotation 101)",)
    assert len(both.entries) == 6 and len(both.of_kind("segm")) == 5
    whole = evaluate_detections(both, [])
    (shared,) = evaluate_shared(both, lambda: iter([]), 1)
    assert whole["segm"]["AP"] == whole["bbox"]["AP"] == 0 and shared == whole
    assert match(both, {}, "segm").objects.sum() + 1 == match(both, {}, "bbox").objects.sum()
    metrics = evaluate_detections(prepare_ground_truth(dataset, categories, kinds=["bbox"]), [])
    assert metrics["bbox"]["AP"] == 0 and "segm" not in metrics


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    dataset = squares()
    evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), [])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", [0, 2, 3, 5, 7, 8])
def test_both_libraries_give_the_same_numbers_to_the_last_digit(seed: int) -> None:
    dataset = parse(random_content(seed, names=list("abcde"), crowds=seed % 2 == 1))
    found = random_detections(dataset, seed, most=140 if seed % 3 == 2 else 30)
    for kinds in (None, ("bbox",)):
        truth = prepare_ground_truth(dataset, list(dataset.categories.values()), kinds=kinds)
        for some in (found, found[:1], []):
            one, other = (json.dumps(evaluate_detections(truth, some, scorer=scorer)) for scorer in SCORERS)
            assert one == other


@pytest.mark.parametrize("crowds", [False, True])
def test_scorers_agree_in_any_order_of_images(crowds: bool) -> None:
    dataset = parse(random_content(0, names=["a", "b", "c"], images=40, crowds=crowds))
    ground_truth = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    records = random_detections(dataset, 0, most=300)
    metrics = evaluate_detections(ground_truth, records, scorer="pycocotools")
    assert evaluate_detections(ground_truth, iter(records[::-1])) == metrics
    assert 0.01 < metrics["segm"]["AP"] < 0.9 and max(len(one) for _, one in records) > 100
    assert evaluate_detections(ground_truth, []) == evaluate_detections(ground_truth, [], scorer="pycocotools")


def test_a_panic_inside_hotcoco_is_one_line() -> None:
    class PanicError(BaseException):
        """As pyo3's PanicException, which is no `Exception`."""

    with (
        pytest.raises(InputError, match=r"hotcoco failed .index out of bounds.*--scorer pycocotools") as caught,
        one_line(),
    ):
        raise PanicError("index out\n of bounds")
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt), one_line():
        raise KeyboardInterrupt
