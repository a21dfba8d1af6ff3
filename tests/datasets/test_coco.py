"""Reading COCO files, class lists."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, box_mask, check_message, document, json_values, spoil
from hypothesis import given, settings
from hypothesis import strategies as st
from stopwatch import cpu_seconds

from ntt_jax import evaluation
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.class_lists import CLASS_LISTS, COCO_CLASSES
from ntt_jax.datasets.coco import load_coco, parse_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.errors import InputError
from ntt_jax.images.rle import encode_masks
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


def set_at(content: Any, where: tuple[Any, ...], value: Any) -> None:
    for key in where[:-1]:
        content = content[key]
    content[where[-1]] = value


@pytest.mark.parametrize(
    ("where", "value", "note", "left"),
    [
        # What cannot be used is left out, with what depends on it; the rest of the file is read.
        (("images", 0), 5, "images without an id, left out: 1 (images[0]: found 5)", [50, 51, 900100000000, 0, 101]),
        (("images", 0, "id"), None, "images without an id", [50, 51, 900100000000, 0, 101]),
        (("images", 0, "id"), True, "images without an id, left out: 1 (images[0]: found True)", None),
        (("images", 0, "id"), 3, "ids of several images", None),
        (("images", 0, "file_name"), "", "images without a file name", None),
        (("images", 0, "file_name"), "\ud800", "images without a file name", None),
        (("images", 0, "file_name"), 7, "images without a file name", None),
        (("images", 0, "height"), 10**7, "over the limit of 200,000,000 pixels, left out: 1 (images[0] (id 7))", None),
        (("categories", 1, "name"), None, "categories without a name, left out: 1", None),
        (("categories", 1, "id"), 5, "ids of several categories", None),
        (("annotations", 1), "x", "annotations that are no objects", None),
        (("annotations", 1, "image_id"), 8, "annotations of images that are not in the file, left out: 1", None),
        (("annotations", 1, "image_id"), None, "annotations of images that are not in the file, left out: 1", None),
        (("annotations", 1, "category_id"), 8, "annotations of categories that are not in the file, left out: 1", None),
        (("annotations", 1, "category_id"), None, "(annotation 50: category null)", None),
    ],
)
def test_what_cannot_be_used_is_left_out(where: Any, value: Any, note: str, left: list[int] | None) -> None:
    content: Any = document()
    set_at(content, where, value)
    dataset = parse(content)
    assert any(note in line for line in dataset.notes), dataset.notes
    assert 0 < len(dataset.annotations) < 6
    if left is not None:
        assert [i for i in left if i not in dataset.annotations] == [] or len(dataset.annotations) >= len(left) - 1
    for entry in dataset.annotations.values():
        assert entry.image_id in dataset.images and entry.category_id in dataset.categories
    assert dataset.positions is not None and len(dataset.positions) == len(dataset.annotations)
    for position, entry in zip(dataset.positions, dataset.annotations.values(), strict=True):
        assert content["annotations"][position]["id"] == entry.id


@pytest.mark.parametrize(
    ("where", "value", "note", "read"),
    [
        # What is certain is read as it is meant.
        (("images", 0, "width"), 200.0, "640.0", lambda d: d.images[7].width == 200),
        (("images", 0, "width"), "200", "640.0", lambda d: d.images[7].width == 200),
        (("images", 0, "height"), 0, None, lambda d: d.images[7].height == 0),
        (("images", 0, "height"), -1, None, lambda d: d.images[7].width == 0),
        (("images", 1, "height"), None, "which their masks say", lambda d: d.images[3].height == 40),
        (("categories", 1, "name"), 3, "names of categories that are numbers", lambda d: d.categories[2].name == "3"),
        (("annotations", 1, "id"), 100, "numbered anew: 1 (annotations[1] is", lambda d: len(d.annotations) == 6),
        (("annotations", 1, "id"), "50", None, lambda d: d.annotations[50].image_id == 3),
        (("annotations", 1, "id"), None, "numbered anew", lambda d: len(d.annotations) == 6),
        (("annotations", 1, "image_id"), 3.0, None, lambda d: d.annotations[50].image_id == 3),
        (("annotations", 1, "image_id"), "3", None, lambda d: d.annotations[50].image_id == 3),
        (("annotations", 1, "bbox"), None, "without a box, which is taken from the mask", "box"),
        (("annotations", 1, "bbox"), [1, 2, 3], "four finite numbers, not used: 1 (annotation 50: [1, 2, 3])", "box"),
        (("annotations", 1, "bbox"), [1, 2, float("nan"), 4], "nan", "box"),
        (("annotations", 1, "bbox"), [1, 2, float("inf"), 4], "inf", "box"),
        (("annotations", 1, "bbox"), [1, 2, 10**400, 4], "four finite numbers", "box"),
        (("annotations", 1, "bbox"), [0, 0, 0, 0], "taken from the mask", "box"),
        (("annotations", 1, "bbox"), [32, 33, -20, -30], "negative width or height", "box"),
        (("annotations", 1, "bbox"), ["12", 3, "20", 30.0], None, "box"),
        (
            ("annotations", 1, "area"),
            float("nan"),
            "areas that are no number",
            lambda d: d.annotations[50].area is None,
        ),
        (("annotations", 1, "iscrowd"), None, None, lambda d: not d.annotations[50].iscrowd),
        (("annotations", 1, "iscrowd"), True, None, lambda d: d.annotations[50].iscrowd),
        (("annotations", 1, "iscrowd"), "1", None, lambda d: d.annotations[50].iscrowd),
        (("annotations", 1, "iscrowd"), 0.0, None, lambda d: not d.annotations[50].iscrowd),
        (("annotations", 1, "iscrowd"), 2, '"iscrowd" other than 0 and 1', lambda d: d.annotations[50].iscrowd),
    ],
)
def test_what_is_certain_is_read(where: Any, value: Any, note: str | None, read: Any) -> None:
    content: Any = document()
    set_at(content, where, value)
    dataset = parse(content)
    assert len(dataset.annotations) == 6 and dataset.positions is None
    assert dataset.notes == () if note is None else any(note in line for line in dataset.notes), dataset.notes
    assert dataset.annotations[50].bbox == (12, 3, 20, 30) if read == "box" else read(dataset)


RECTANGLE = box_mask(40, 60, 12, 3, 20, 30)
POINTS = [[12, 3], [32, 3], [32, 33], [12, 33]]
FLAT = [v for point in POINTS for v in point]
RUNS = {"size": [40, 60], "counts": [483, *[30, 10] * 19, 30, 1127]}


@pytest.mark.parametrize(
    ("segmentation", "note"),
    [
        ([FLAT], None),
        (FLAT, "without the outer pair of brackets"),
        (POINTS, "pairs of numbers"),
        ([POINTS], "pairs of numbers"),
        ([{"x": x, "y": y} for x, y in POINTS], "pairs of numbers"),
        ([FLAT, [5.0, 5.0]], "fewer than three points"),
        ([[5, 5], FLAT, [1, 1, 9, 9]], "left out: 2"),
        ([FLAT, [1, 2, 3, 4, 5, 6, 7]], "odd count"),
        ([FLAT, []], "fewer than three points"),
        ([FLAT, None], "fewer than three points"),
        (json.dumps([FLAT]), None),
        (RUNS, None),
        ([RUNS], None),
        ([RUNS, {"size": [40, 60], "counts": [2400]}], "united"),
        (RUNS["counts"], "bare run lengths"),
        ({"counts": RUNS["counts"]}, "without a size"),
        ({"size": [40.0, 60.0], "counts": [float(v) for v in RUNS["counts"]]}, None),
        (dict(encode_masks(RECTANGLE[None])[0]), None),
        ([[str(v) for v in FLAT]], "numbers are written as text"),
        ({"size": ["40", "60"], "counts": RUNS["counts"]}, None),
        ({"size": [40, 60], "counts": [str(v) for v in RUNS["counts"]]}, "numbers are written as text"),
        ({"size": [40, 60], "counts": " ".join(str(v) for v in RUNS["counts"])}, "numbers are written as text"),
        ({"size": [40, 60], "counts": repr(encode_masks(RECTANGLE[None])[0]["counts"].encode())}, "prints bytes"),
    ],
)
def test_forms_of_segmentations(segmentation: Any, note: str | None) -> None:
    content: Any = document()
    content["annotations"][1]["segmentation"] = segmentation
    dataset = parse(content)
    np.testing.assert_array_equal(dataset.mask(dataset.annotations[50]), RECTANGLE)
    assert dataset.notes == () if note is None else any(note in line for line in dataset.notes), dataset.notes
    del content["annotations"][1]["bbox"]
    assert parse(content).annotations[50].bbox == (12, 3, 20, 30)


@pytest.mark.parametrize(
    ("segmentation", "note"),
    [
        ("abc", "cannot be read, left out: 1 (annotation 50: 'abc')"),
        (5, "cannot be read"),
        ([1, 2, 3, 4], "fewer than three points"),
        ([[1, 2, 3, 4]], "left without a mask"),
        ([["1", "2", "x", "4", "5", "6"]], "left without a mask"),
        ({"counts": [2400], "size": ["x", "y"]}, "cannot be read"),
        ([[5, 5]], "fewer than three points"),
        ({"counts": 5, "size": [40, 60]}, "cannot be read"),
        ({"counts": "abc", "size": [60, 40]}, "[height, width] is [60, 40], the image's [40, 60]"),
        ({"counts": "b'" + "(" * 500, "size": [40, 60]}, "cannot be read"),
    ],
)
def test_segmentations_that_are_none(segmentation: Any, note: str) -> None:
    content: Any = document()
    content["annotations"][1]["segmentation"] = segmentation
    dataset = parse(content)
    assert dataset.annotations[50].segmentation is None and any(note in line for line in dataset.notes), dataset.notes
    content["annotations"][1]["bbox"] = [0, 0, 0, 0]  # a deleted object's remains
    assert 50 not in parse(content).annotations
    del content["annotations"][1]["bbox"]
    assert 50 not in parse(content).annotations


def test_text_ids_are_kept() -> None:
    content: Any = document()
    names = {7: "b", 3: "3", 9: "image-9"}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for entry in content["annotations"]:
        entry["image_id"] = names[entry["image_id"]]
        entry["category_id"] = str(entry["category_id"])  # numbers in "categories": the same ones
    dataset = parse(content)
    assert [dataset.image_ids[i] for i in dataset.images] == ["b", "3", "image-9"] and 3 in dataset.images
    assert not dataset.category_ids and list(dataset.categories) == [2, 5, 11] and len(dataset.annotations) == 6
    assert dataset.notes == (
        "ids of images that are text, below 0 or of more than 63 bits, kept as they are: 3 (the first: 'b')",
    )


def test_long_text_that_is_nearly_numbers_is_looked_at_once() -> None:
    """Run lengths written as text are digits and spaces; other text of these is not to be tried from every space."""
    content = document()
    content["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": "1 " * 50_000 + "x"}
    started = cpu_seconds()
    parse_coco(json.dumps(content).encode(), "a.json")
    assert cpu_seconds() - started < 5  # from every space: 20 s and more where this takes a hundredth


@pytest.mark.parametrize(
    "segmentation",
    [
        "(" + "1," * 900_001 + ")",
        "[" + "()," * 600_000 + "]",
        "['" + "'" * 6_000_000,
        "," + " " * 6_000_000,
        {"size": [40, 60], "counts": "b''," * 1_500_000},
    ],
    ids=range(5),
)
def test_masks_that_python_printed_cost_what_json_does(segmentation: Any) -> None:
    """Python's own reader of what it prints takes a gigabyte for 2 MB."""
    content = document()
    content["annotations"][0]["segmentation"] = segmentation
    started = cpu_seconds()
    dataset = parse_coco(json.dumps(content).encode(), "a.json")
    assert cpu_seconds() - started < 10 and dataset.annotations[content["annotations"][0]["id"]].segmentation is None


def test_many_text_ids_take_no_longer_than_numbers() -> None:
    """Going through all ids for each new one takes minutes with as many as an honest file has."""
    content = document()
    images = [{"id": f"photo {i}", "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in range(40_000)]
    content["images"] = [{**images[0], "id": 12}, *images, {**images[0], "id": "99999"}, {**images[0], "id": "last"}]
    content["annotations"] = []
    started = cpu_seconds()
    dataset = parse_coco(json.dumps(content).encode(), "a.json")
    assert cpu_seconds() - started < 10  # each time all: 20 s where this takes 0.3
    assert list(dataset.images)[:3] == [12, 13, 14] and list(dataset.images)[-2:] == [99_999, 100_000]


def test_entries_written_twice_are_taken_once() -> None:
    content: Any = document()
    for key in ("images", "categories", "annotations"):
        content[key].append(dict(content[key][0]))
    dataset = parse(content)
    assert [len(v) for v in (dataset.images, dataset.categories, dataset.annotations)] == [3, 3, 6]
    assert len(dataset.notes) == 3 and all("taken once: 1" in note for note in dataset.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(encoding: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "Annotations").mkdir()  # as VOC's folders have
    path = tmp_path / "a" / "b" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(json.dumps(document()).encode(encoding))
    assert len(load_dataset(path).annotations) == 6


@pytest.mark.parametrize("key", ["images", "categories"])
def test_refuses_a_file_of_which_nothing_is_left(key: str) -> None:
    content: Any = document()
    for entry in content[key]:
        entry["id"] = None
    refused(content, f"none of its 3 {key} can be used", "without an id")


def test_refuses_lists_that_are_none() -> None:
    content: Any = document()
    content["images"] = None
    refused(content, '"images"', "a list")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_refuses_missing_lists(key: str) -> None:
    content = document()
    del content[key]
    refused(content, f'"{key}" is missing')


@pytest.mark.parametrize(
    ("segmentation", "part"),
    [
        ({"size": [40, 60], "counts": [0, 40, 2361]}, "sum to 2401"),
        ({"size": [40, 60], "counts": [0, 2**62, 2**62]}, "0..2400"),
        ({"size": [40, 60], "counts": [2**70]}, "list of integers"),
        ({"size": [40, 60], "counts": [-1, 2401]}, "-1"),
        ({"size": [40, 60], "counts": [2400.5]}, "integers"),
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
        (b"\xff\xfe\xfa", "not valid JSON: not text in UTF-8"),
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
    start = cpu_seconds()
    dataset = parse_coco(data, "x.json")
    assert cpu_seconds() - start < 20  # 1 s on an idle core
    assert len(dataset.annotations) == 36_000


def exercise(data: bytes, seed: int) -> None:
    """Every use of an annotation file either works or raises `InputError`."""
    dataset = parse_coco(data, "x.json")
    for line in dataset.notes:
        assert line.isprintable() and len(line) < 500, line
    for image in dataset.images.values():
        parts = pathlib.PureWindowsPath(image.file_name).parts
        assert ".." not in parts and not image.file_name.startswith("/") and "\0" not in image.file_name
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
