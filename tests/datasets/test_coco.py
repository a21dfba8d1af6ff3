"""Reading COCO files, class lists."""

import json
import pathlib
import time
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, box_mask, check_message, document, json_values, spoil
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax import evaluation
from ntt_jax.datasets.class_lists import CLASS_LISTS, COCO_CLASSES
from ntt_jax.datasets.coco import load_coco, parse_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.errors import InputError
from ntt_jax.references import sampling


def parse(content: Any) -> CocoDataset:
    return parse_coco(json.dumps(content).encode(), "folder/x.json")


def refused(content: Any, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(content)
    check_message(caught.value, "folder/x.json", *parts)


def test_reads_a_document(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document()))
    dataset = load_coco(path)
    assert list(dataset.images) == [7, 3, 9]
    assert list(dataset.annotations) == [100, 50, 51, 900100000000, 0, 101]
    assert [c.id for c in dataset.categories.values()] == [2, 5, 11]
    assert [a.id for a in dataset.image_annotations[9]] == [900100000000, 0]
    assert dataset.annotations[51].iscrowd and not dataset.annotations[50].iscrowd
    assert dataset.annotations[0].bbox == (30.0, 30.0, 33.0, 34.5)
    assert dataset.annotations[100].area == 2000.5 and dataset.annotations[101].area is None
    assert dataset.image_path("/data", 3) == pathlib.Path("/data/sub/a.jpg")
    with pytest.raises(TypeError):
        dataset.images[1] = None  # pyright: ignore


def test_three_encodings() -> None:
    dataset = parse(document())
    np.testing.assert_array_equal(dataset.mask(dataset.annotations[100]), box_mask(100, 200, 20, 20, 50, 40))
    np.testing.assert_array_equal(dataset.mask(dataset.annotations[50]), box_mask(40, 60, 12, 3, 20, 30))
    np.testing.assert_array_equal(dataset.mask(dataset.annotations[51]), box_mask(40, 60, 0, 0, 1, 40))
    with pytest.raises(InputError, match="annotation 101: has no segmentation"):
        dataset.mask(dataset.annotations[101])


def test_annotation_without_optional_keys() -> None:
    content = document()
    del content["annotations"][0]["iscrowd"]
    content["annotations"][1]["segmentation"] = []
    content["annotations"][2]["isimpossible"] = 1
    dataset = parse(content)
    assert not dataset.annotations[100].iscrowd
    assert dataset.annotations[50].segmentation is None
    assert dataset.annotations[51].isimpossible


@pytest.mark.parametrize(
    ("where", "value", "parts"),
    [
        (("images",), None, ['"images"', "a list"]),
        (("images", 0), 5, ["images[0]", "object"]),
        (("images", 0, "id"), "7", ["images[0]", '"id"', "'7'"]),
        (("images", 0, "id"), True, ['"id"', "True"]),
        (("images", 0, "id"), 3, ["images: the id 3 occurs more than once"]),
        (("images", 0, "file_name"), "../../etc/passwd", ["images[0] (id 7)", "relative path inside"]),
        (("images", 0, "file_name"), "/etc/passwd", ["relative path inside"]),
        (("images", 0, "file_name"), "a/../../b", ["relative path inside"]),
        (("images", 0, "file_name"), "..\\b", ["relative path inside"]),
        (("images", 0, "file_name"), "C:\\b", ["relative path inside"]),
        (("images", 0, "file_name"), "a\0b", ["relative path inside"]),
        (("images", 0, "file_name"), "\ud800", ["Unicode"]),
        (("images", 0, "file_name"), "", ["file_name"]),
        (("images", 0, "height"), 0, ['"height"', "at least 1"]),
        (("images", 0, "height"), 10**7, ["over the limit"]),
        (("images", 0, "width"), 640.0, ['"width"', "640.0"]),
        (("categories", 1, "name"), 3, ["categories[1] (id 2)", '"name"']),
        (("categories", 1, "id"), 5, ["categories: the id 5"]),
        (("annotations", 1, "id"), 100, ["annotations: the id 100"]),
        (("annotations", 1, "id"), "50", ["annotations[1]", "'50'"]),
        (("annotations", 1, "image_id"), 8, ["annotations[1] (id 50)", "8 is not the id of an image"]),
        (("annotations", 1, "category_id"), 8, ["annotations[1] (id 50)", "8 is not the id of a category"]),
        (("annotations", 1, "bbox"), [1, 2, 3], ['"bbox"', "[1, 2, 3]"]),
        (("annotations", 1, "bbox"), [1, 2, float("nan"), 4], ['"bbox"', "nan"]),
        (("annotations", 1, "bbox"), [1, 2, float("inf"), 4], ['"bbox"', "inf"]),
        (("annotations", 1, "bbox"), [1, 2, 10**400, 4], ['"bbox"', "bits"]),
        (("annotations", 1, "bbox"), [1, 2, -1, 4], ['"bbox"', "-1"]),
        (("annotations", 1, "bbox"), ["1", 2, 1, 4], ['"bbox"']),
        (("annotations", 1, "area"), float("nan"), ['"area"', "nan"]),
        (("annotations", 1, "iscrowd"), 2, ['"iscrowd"', "0 or 1"]),
        (("annotations", 1, "segmentation"), "abc", ["polygons or an RLE", "'abc'"]),
        (("annotations", 1, "segmentation"), {"counts": "abc"}, ['"size"', "null"]),
        (("annotations", 1, "segmentation", "size"), [60, 40], ["size", "[60, 40]", "[40, 60]"]),
        (("annotations", 1, "segmentation", "counts"), 5, ['"counts"']),
        (("annotations", 0, "segmentation"), [[1, 2, 3, 4]], ["annotations[0] (id 100)", "three points"]),
        (("annotations", 0, "segmentation"), [1, 2, 3, 4, 5, 6], ["polygons", "found 1"]),
        (("annotations", 0, "segmentation"), [[1, 2, 3, 4, 5, 6, 7]], ["three points", "a list of 7"]),
    ],
)
def test_refuses_at_reading(where: tuple[Any, ...], value: Any, parts: list[str]) -> None:
    content: Any = document()
    holder = content
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    refused(content, *parts)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_refuses_missing_lists(key: str) -> None:
    content = document()
    del content[key]
    refused(content, f'"{key}" is missing')


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
def test_refuses_missing_annotation_keys(key: str) -> None:
    content = document()
    del content["annotations"][3][key]
    refused(content, "annotations[3]", f'"{key}"', "no such key")


@pytest.mark.parametrize(
    ("segmentation", "part"),
    [
        ({"size": [40, 60], "counts": [0, 40, 2361]}, "sum to 2401"),
        ({"size": [40, 60], "counts": [0, 2**62, 2**62]}, "0..2400"),
        ({"size": [40, 60], "counts": [2**70]}, "list of integers"),
        ({"size": [40, 60], "counts": [-1, 2401]}, "-1"),
        ({"size": [40, 60], "counts": [2400.0]}, "integers"),
        ({"size": [40, 60], "counts": []}, "integers"),
        ({"size": [40, 60], "counts": [[2400]]}, "integers"),
        ({"size": [40, 60], "counts": ""}, "compressed text"),
        ({"size": [40, 60], "counts": "\u00e9"}, "compressed text"),
        ({"size": [40, 60], "counts": "P"}, "compressed text"),
        ({"size": [40, 60], "counts": "oooooooooooooo0"}, "too large"),
        ({"size": [40, 60], "counts": "0"}, "sum to 0"),
        ([[0, 0, 1e8, 0, 0, 1e8]], "within +-1,000,000"),
        ([[-9e5, 0, 9e5, 0, 9e5, 9e5, -9e5, 9e5]], "over the limit"),
        ([[0, 0, float("nan"), 0, 0, 5]], "finite"),
        ([[0, 0, 10**400, 0, 0, 5]], "finite"),
        ([[0, 0, "1", 0, 0, 5]], "finite"),
        ([[0, 0, [1], 0, 0, 5]], "finite"),
    ],
)
def test_refuses_at_decoding(segmentation: Any, part: str) -> None:
    content = document()
    content["annotations"][1]["segmentation"] = segmentation
    dataset = parse(content)
    with pytest.raises(InputError) as caught:
        dataset.mask(dataset.annotations[50])
    check_message(caught.value, "folder/x.json: annotation 50: segmentation", part)


def test_polygon_outside_the_image_is_clipped() -> None:
    content = document()
    content["annotations"][1]["segmentation"] = [[-30, -30, 500, -30, 500, 20, -30, 20]]
    dataset = parse(content)
    np.testing.assert_array_equal(dataset.mask(dataset.annotations[50]), box_mask(40, 60, 0, 0, 60, 20))


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b"{", "line 1 column"),
        (b"\xff\xfe\xfa", "not valid JSON"),
        (b"[" * 100_000, "too deeply"),
        (b'{"images": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b"[]", "a list of 0"),
        (b"null", "null"),
        (b'{"images": []}', "missing"),
    ],
)
def test_refuses_what_is_not_coco(tmp_path: pathlib.Path, data: bytes, part: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_coco(path)
    check_message(caught.value, str(path), part)


def test_size_limit(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document()))
    with pytest.raises(InputError, match="limit of 100 bytes"):
        load_coco(path, max_bytes=100)


def test_a_validation_set_loads_quickly() -> None:
    rng = np.random.default_rng(0)
    polygon = rng.uniform(20, 400, 60).round(2).tolist()
    content = {
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": 480, "width": 640} for i in range(5000)],
        "categories": [{"id": i, "name": name} for i, name in COCO_CLASSES.items()],
        "annotations": [
            annotation(i, i % 5000, 1 + i % 11, [20.5, 20.5, 380, 380], area=1.0, segmentation=[polygon])
            for i in range(36_000)
        ],
    }
    data = json.dumps(content).encode()
    start = time.perf_counter()
    dataset = parse_coco(data, "x.json")
    assert time.perf_counter() - start < 20  # 1 s on an idle core; the machine may be shared
    assert len(dataset.annotations) == 36_000


def exercise(data: bytes, seed: int) -> None:
    """Every use of an annotation file either works or raises `InputError`."""
    dataset = parse_coco(data, "x.json")
    for entry in dataset.annotations.values():
        try:
            dataset.mask(entry)
        except InputError as error:
            check_message(error, "x.json", str(entry.id))
    classes = select_classes(dataset, "all")
    if seed % 8 == 0:
        evaluation.evaluate_detections(evaluation.prepare_ground_truth(dataset, classes, kinds=["bbox"]), [])
    references = sampling.sample_references(dataset, classes, 1 + seed % 2, seed, allow_fewer=True)
    sampling.check_references(references, dataset)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), json_values)
def test_spoiled_files_only_raise_input_errors(seed: int, value: Any) -> None:
    for i in range(seed, seed + 10):
        try:
            exercise(spoil(document(), i, value), i)
        except InputError as error:
            check_message(error)


def test_class_lists_are_the_published_ones() -> None:
    assert [len(CLASS_LISTS[name]) for name in ("novel", "base")] == [20, 60]
    assert len(COCO_CLASSES) == 80
    assert set(CLASS_LISTS["novel"]) | set(CLASS_LISTS["base"]) == set(COCO_CLASSES.values())
    assert CLASS_LISTS["novel"][0] == "person" and CLASS_LISTS["novel"][-1] == "tv"
    folds = [CLASS_LISTS[f"fold{f}"] for f in (1, 2, 3, 4)]
    assert sorted(name for fold in folds for name in fold) == sorted(COCO_CLASSES.values())
    assert [fold[:2] for fold in folds] == [
        ("person", "airplane"),
        ("bicycle", "bus"),
        ("car", "train"),
        ("motorcycle", "truck"),
    ]


def test_selects_classes(coco_open: pathlib.Path) -> None:
    dataset = load_coco(coco_open / "annotations_val.json")
    assert {c.id: c.name for c in dataset.categories.values()} == dict(COCO_CLASSES)
    assert len(select_classes(dataset, "all")) == 80
    assert tuple(c.name for c in select_classes(dataset, "novel")) == CLASS_LISTS["novel"]
    assert [c.id for c in select_classes(dataset, "tv, dog ,1,potted plant,")] == [1, 18, 64, 72]
    assert [c.id for c in select_classes(dataset, ["dog", 1, "18"])] == [1, 18]
    assert len(select_classes(dataset, "novel,truck,dog")) == 21


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        ("brd", ["'brd'", "did you mean 'bird'", '"all"', "fold1"]),
        ("12", ["12"]),
        ("9" * 5000, ["unknown class"]),
        ("\u0664", ["unknown class"]),
        (" , ", ["no class"]),
        ([], ["no class"]),
        ([None], ["null"]),
        ([1.0], ["1.0"]),
        ("novel", ["folder/x.json has no category 'person'", "18 of its 20"]),
    ],
)
def test_refuses_unknown_classes(classes: Any, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        select_classes(parse(document()), classes)
    check_message(caught.value, *parts)


def test_refuses_ambiguous_names() -> None:
    content = document()
    content["categories"][2]["name"] = "dog"
    dataset = parse(content)
    with pytest.raises(InputError, match="use an id \\(5, 11\\)"):
        select_classes(dataset, "dog")
    assert [c.id for c in select_classes(dataset, "5")] == [5]
