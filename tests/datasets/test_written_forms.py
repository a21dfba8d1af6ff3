"""The forms in which people's files write ids, boxes, masks and flags: each is read as what it means, with a line."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coco_files import box_mask

from ntt_jax.datasets.box_proposals import load_box_proposals
from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.images.rle import encode_masks
from ntt_jax.text import number_in, numbers_in

HEIGHT, WIDTH, BOX = 60, 80, (20.0, 10.0, 50.0, 30.0)
MASK = box_mask(HEIGHT, WIDTH, 20, 10, 50, 30)
POINTS = [[20, 10], [70, 10], [70, 40], [20, 40]]
RING = [value for point in POINTS for value in point]
RLE = encode_masks(MASK[None])[0]
RUNS = [20 * HEIGHT + 10, *[30, 30] * 49, 30, HEIGHT - 40 + 10 * HEIGHT]


def document(**entry: Any) -> dict[str, Any]:
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(BOX), "iscrowd": 0, "segmentation": [RING]}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "part"}],
        "annotations": [{**one, **entry}],
    }


def parse(content: Any) -> CocoDataset:
    return parse_coco(json.dumps(content).encode(), "x.json")


def said(dataset: CocoDataset) -> str:
    return "\n".join(dataset.notes)


def check(dataset: CocoDataset, *, mask: bool = True) -> None:
    """One annotation: the box, and the mask or none."""
    (one,) = dataset.annotations.values()
    assert one.bbox == pytest.approx(BOX) and not one.iscrowd and dataset.categories[one.category_id].name == "part"
    if mask:
        np.testing.assert_array_equal(dataset.mask(one), MASK)
    else:
        assert one.segmentation is None


@pytest.mark.parametrize(
    ("segmentation", "note"),
    [
        ([[RING]], "polygons in more brackets"),
        ([[[RING]]], "polygons in more brackets"),
        ([[POINTS]], "polygons in more brackets"),
        (str([(20, 10), (70, 10), (70, 40), (20, 40)]), "pairs of numbers"),
        ([",".join(map(str, RING))], "written as text"),
        (" ".join(map(str, RING)), "outer pair of brackets"),
        ([[str(v) for v in RING]], "written as text"),
        ({"size": [HEIGHT, WIDTH], "counts": list(RLE["counts"].encode())}, "numbers of their characters"),
        ({"size": [HEIGHT, WIDTH], "counts": ",".join(map(str, RUNS))}, "written as text"),
        ({"size": [HEIGHT, WIDTH], "counts": str(RUNS)}, "written as text"),
        (repr({"size": (HEIGHT, WIDTH), "counts": RLE["counts"].encode()}), "as Python prints bytes"),
    ],
)
def test_masks(segmentation: Any, note: str) -> None:
    dataset = parse(document(segmentation=segmentation))
    check(dataset)
    assert note in said(dataset)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[str(v) for v in RING[:-1]] + ["4_0"]],
        [[[20, 10, 0], [70, 10, 0], [70, 40, 0], [20, 40, 0]]],  # with depth: which numbers are meant is not known
        {"size": [HEIGHT, WIDTH], "counts": " ".join(map(str, [*RUNS[:-1], "6_20"]))},
        "(" * 5000,
    ],
)
def test_masks_that_are_not_certain_are_left_out(segmentation: Any) -> None:
    dataset = parse(document(segmentation=segmentation))
    (one,) = dataset.annotations.values()
    assert one.bbox == BOX
    if one.segmentation is not None:  # what lies inside is looked at when the mask is asked for
        with pytest.raises(InputError):
            dataset.mask(one)
    else:
        assert dataset.notes


@pytest.mark.parametrize(
    "box",
    [
        {"cx": 45, "w": 50, "cy": 25, "h": 30, "x": 20, "y": 10, "width": 50, "height": 30},
        {"xmin": 20, "ymin": 10, "xmax": 70, "ymax": "40"},
        "[20.0, 10.0, 50.0, 30.0]",
        "20,10,50,30",
        [list(BOX)],
        [[20, 10], [70, 40]],
    ],
)
def test_boxes_that_are_not_lists_of_four(box: Any) -> None:
    dataset = parse(document(bbox=box, segmentation=[]))
    check(dataset, mask=False)
    assert dataset.notes[0].startswith("boxes that are objects, text or points: 1 (annotation 1: ")


@pytest.mark.parametrize("box", [[*BOX, 0.9], ["2_0", 10, 50, 30], {"x": 20, "y": 10}, "20 10 50", [[20, 10]]])
def test_boxes_that_are_not_certain_are_not_used(box: Any) -> None:
    dataset = parse(document(bbox=box, segmentation=[]))
    assert not dataset.annotations and "boxes that are not four finite numbers, not used" in said(dataset)
    check(parse(document(bbox=box)))  # the mask's


def test_corners_are_read_where_masks_prove_them() -> None:
    content = document(bbox=[20, 10, 70, 40])
    dataset = parse(content)
    check(dataset)
    assert dataset.notes == (
        "boxes that are two corners, as the masks prove, read so: 1 (annotation 1: [20.0, 10.0, 70.0, 40.0])",
    )
    alone = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 11, 12]}
    content["annotations"].append(alone)  # all that can be compared are corners: so is this one
    assert parse(content).annotations[2].bbox == (1, 2, 10, 10)
    content["annotations"].append({**content["annotations"][0], "id": 3, "bbox": list(BOX)})
    mixed = parse(content)  # somebody else's: each by what its own mask says
    assert [one.bbox for one in mixed.annotations.values()] == [BOX, (1, 2, 11, 12), BOX]


def test_boxes_that_may_be_corners_are_asked_about() -> None:
    dataset = parse(document(bbox=[20, 10, 70, 55], segmentation=[]))
    assert dataset.annotations[1].bbox == (20, 10, 70, 55)
    assert "would fit as two corners, taken as x, y, width, height: 1 (annotation 1" in said(dataset)
    assert not parse(document(bbox=[70, 50, 60, 30])).notes  # leaves the image, and is no corners


def test_shares_of_the_images_size() -> None:
    shares = [x / size for x, size in zip(RING, [WIDTH, HEIGHT] * 4, strict=True)]
    box = [20 / WIDTH, 10 / HEIGHT, 50 / WIDTH, 30 / HEIGHT]
    for entry in ({"bbox": box}, {"bbox": box, "segmentation": [shares]}, {"bbox": None, "segmentation": [shares]}):
        dataset = parse(document(**entry, area=0.3))
        check(dataset)
        assert "in shares of the image's size" in said(dataset) and dataset.annotations[1].area is None
    check(parse(document(bbox=box, segmentation=[])), mask=False)
    one = parse(document(bbox=[0.9, 0.9, 0.5, 0.5], segmentation=[]))
    assert one.annotations[1].bbox == (0.9, 0.9, 0.5, 0.5) and "are they in pixels?" in said(one)
    both = document(bbox=box, segmentation=[])
    both["annotations"].append({**both["annotations"][0], "id": 2, "bbox": list(BOX)})
    assert parse(both).annotations[1].bbox == tuple(box)  # a file in pixels with a tiny box


@pytest.mark.parametrize(
    ("value", "crowd"),
    [*((v, False) for v in ("0", "false", "No", "", 0.0, None, math.nan)), *((v, True) for v in ("1", "True", 1.0))],
)
def test_crowds(value: Any, crowd: bool) -> None:
    dataset = parse(document(iscrowd=value))
    assert dataset.annotations[1].iscrowd is crowd and not dataset.notes


@pytest.mark.parametrize(("value", "area"), [("1500", 1500.0), ("1_5", None), (math.nan, None), (-1, None), (7, 7.0)])
def test_areas(value: Any, area: float | None) -> None:
    assert parse(document(area=value)).annotations[1].area == area


@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 ", "01", "000000000001"])
def test_ids_in_other_forms(value: Any) -> None:
    dataset = parse(document(image_id=value, category_id=value))
    check(dataset)
    assert not dataset.notes
    assert not parse(document(image_id="1_")).annotations and not parse(document(category_id=True)).annotations


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_names_in_place_of_ids(name: str) -> None:
    dataset = parse(document(image_id=name, category_id="part"))
    check(dataset)
    assert dataset.notes == (
        f"names in place of the id in \"image_id\": 1 (annotation 1: '{name}')",
        "names in place of the id in \"category_id\": 1 (annotation 1: 'part')",
    )
    content = document(image_id=name)
    content["images"].append({"id": 2, "file_name": "b/a.jpg"})
    assert not parse(content).annotations  # one of two: which is not known


def test_ids_of_64_bits() -> None:
    content = document(image_id=2**64 - 5)
    content["images"][0]["id"] = 2**64 - 5
    dataset = parse(content)
    check(dataset)
    assert list(dataset.image_ids.values()) == [2**64 - 5]  # results carry it


def same_size(content: dict[str, Any]) -> None:
    content["images"].append({**content["images"][0], "date_captured": "2020"})
    content["categories"].append({**content["categories"][0], "supercategory": "none"})


def other_key(content: dict[str, Any]) -> None:
    content["images"][0]["path"] = "/data/" + content["images"][0].pop("file_name")


def test_names_of_categories_stay_as_written() -> None:
    """Memories and runs of before know a class by its name, spaces included."""
    content = document()
    content["categories"][0]["name"] = "\u2028part \r\n"
    dataset = parse(content)
    assert dataset.categories[content["categories"][0]["id"]].name == "\u2028part \r\n" and not said(dataset)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (same_size, "images written twice, taken once"),
        (other_key, 'images without "file_name", whose "path" counts'),
        (lambda c: c["images"].append({**c["images"][0], "id": 2}), "images of the same file as another image"),
        (lambda c: c["images"][0].update(height="60.0", width=" 80 "), 'written as 640.0 or "640"'),
    ],
)
def test_images_and_categories(change: Callable[[dict[str, Any]], None], note: str) -> None:
    content = document()
    change(content)
    dataset = parse(content)
    check(dataset)
    assert note in said(dataset)


def test_a_size_with_an_underscore_is_none() -> None:
    content = document()
    content["images"][0].update(height="6_0", width="8_0")
    assert parse(content).images[1].height == 0


def test_text_of_another_encoding_is_one_line() -> None:
    with pytest.raises(InputError, match=r"x\.json: the annotation file is not valid JSON: not text in UTF-8 \(byte"):
        parse_coco(json.dumps(document(note="é"), ensure_ascii=False).encode("latin-1"), "x.json")


def test_numbers_as_files_write_them() -> None:
    for text, value in {"10": 10.0, " -1.5e3 ": -1500.0, "+.5": 0.5, "7.": 7.0, "1e400": math.inf}.items():
        assert number_in(text) == value
    for text in ("1_0", "nan", "inf", "", ".", "0x10", "\uff11\uff10", "1 0", "1,0", "9" * 65):
        assert number_in(text) is None
    assert numbers_in("1, 2 3") == [1, 2, 3] and numbers_in("") is None and numbers_in("1 x") is None


def test_boxes_of_a_detector_name_images_in_any_form(tmp_path) -> None:
    entries = [{"image_id": i, "bbox": [1, 2, 3, 4], "score": 0.5} for i in (7, 7.0, "7", "007")]
    (tmp_path / "b.json").write_text(json.dumps(entries))
    found, lines = load_box_proposals(tmp_path / "b.json").of_images({7: (50, 50)}, {})
    assert len(found[7]) == 4 and not lines
