"""Reading PASCAL VOC's own files, and that hostile ones end in one line."""

import pathlib
import random
import re
from collections.abc import Callable

import numpy as np
import pytest
from coco_files import check_message
from PIL import Image
from voc_files import write_image, write_list, write_voc

from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.class_lists import CLASS_LISTS, VOC_CLASSES
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.datasets.image_files import survey
from ntt_jax.datasets.voc import image_lists, load_voc
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.references.sampling import check_references, sample_references


@pytest.fixture
def devkit(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_voc(tmp_path)


def refused(path: pathlib.Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(path)
    check_message(caught.value, *parts)


def test_one_year(devkit: pathlib.Path) -> None:
    dataset = load_dataset(devkit / "VOC2007/ImageSets/Main/trainval.txt")
    assert dataset.protocol == "voc"
    assert [c.name for c in dataset.categories.values()] == list(VOC_CLASSES) and next(iter(dataset.categories)) == 1
    assert {i: (v.file_name, v.height, v.width) for i, v in dataset.images.items()} == {
        7: ("VOC2007/JPEGImages/000007.jpg", 90, 120),
        12: ("VOC2007/JPEGImages/000012.jpg", 90, 120),
        33: ("VOC2007/JPEGImages/000033.jpg", 90, 120),
    }
    assert all(pathlib.Path(str(dataset.image_path(devkit, i))).is_file() for i in dataset.images)
    bus, person = dataset.image_annotations[7]
    assert (bus.id, person.id) == (70001, 70002)
    assert bus.bbox == (11, 11, 49, 59)  # pixels 12 to 60 and 12 to 70, counted from 1
    assert dataset.categories[person.category_id].name == "person"  # and not its part, the head
    assert person.isimpossible and not bus.isimpossible
    mask = dataset.mask(bus)
    assert mask.sum() == 47 * 57 and mask[12:69, 12:59].all()
    assert dataset.image_annotations[12][0].segmentation is None


def test_two_years(devkit: pathlib.Path) -> None:
    path = devkit / "VOC2007+VOC2012/ImageSets/Main/trainval.txt"
    dataset = load_dataset(path)
    assert list(dataset.images) == [7, 12, 33, 2007000033, 2008000002]
    assert dataset.images[2007000033].file_name == "VOC2012/JPEGImages/2007_000033.jpg"
    alone = load_dataset(devkit / "VOC2012/ImageSets/Main/trainval.txt")
    assert dict(alone.annotations).items() <= dict(dataset.annotations).items()
    assert alone.sha256 != dataset.sha256 == load_voc(path).sha256
    assert [p.parts[-4] for p in image_lists(path)] == ["VOC2007", "VOC2012"]
    assert image_lists(devkit / "a+b.txt") == [devkit / "a+b.txt"]


def test_the_hash_covers_what_was_read(devkit: pathlib.Path) -> None:
    path = devkit / "VOC2007/ImageSets/Main/trainval.txt"
    before = load_dataset(path).sha256
    masks = devkit / "VOC2007/SegmentationObject/000007.png"
    kept = masks.read_bytes()
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(masks)
    assert load_dataset(path).sha256 != before
    masks.write_bytes(kept)
    assert load_dataset(path).sha256 == before
    write_image(devkit / "VOC2007", "000012", [("cow", (20, 15, 81, 75), False)])
    assert load_dataset(path).sha256 != before


def test_other_names_and_suffixes(tmp_path: pathlib.Path) -> None:
    year = tmp_path / "insects"
    write_image(year, "b-1.x", [("wasp", (1, 1, 20, 20), False)])
    write_image(year, "a_2", [("ant", (1, 1, 20, 20), False), ("wasp", (1, 1, 20, 20), False)])
    file = year / "Annotations/a_2.xml"
    file.write_text(file.read_text().replace("a_2.jpg", "../../a_2.PNG"))
    dataset = load_dataset(write_list(year, "Main/train", ["b-1.x", "a_2"]))
    assert [v.file_name for v in dataset.images.values()] == [
        "insects/JPEGImages/b-1.x.jpg",
        "insects/JPEGImages/a_2.PNG",
    ]
    assert list(dataset.images) == [1, 2]
    assert {i: c.name for i, c in dataset.categories.items()} == {1: "ant", 2: "wasp"}
    assert list(dataset.annotations) == [10001, 20001, 20002]


def test_sampling_and_evaluation(devkit: pathlib.Path) -> None:
    dataset = load_dataset(devkit / "VOC2007+VOC2012/ImageSets/Segmentation/trainval.txt")
    with pytest.raises(InputError, match="no valid reference for 'person'"):  # difficult
        sample_references(dataset, select_classes(dataset, "person"), 1, 0)
    references = sample_references(dataset, select_classes(dataset, "bus"), 2, 0)
    assert {r.image_id for r in references.classes[0].references} == {7, 2007000033}
    check_references(references, dataset)
    assert prepare_ground_truth(dataset, select_classes(dataset, "all")).kinds == ("bbox", "segm")
    whole = load_dataset(devkit / "VOC2007/ImageSets/Main/trainval.txt")
    truth = prepare_ground_truth(whole, select_classes(whole, "voc-novel1"))
    assert truth.kinds == ("bbox",) and truth.protocol == "voc"
    assert [row["ground_truth"] for row in evaluate_detections(truth, [])["per_class"]] == [2, 1, 1, 0, 0]
    with pytest.raises(InputError, match="annotation 120001: has no segmentation"):
        check_references(sample_references(whole, select_classes(whole, "cow"), 1, 0), whole)


def test_class_lists_are_the_published_ones() -> None:
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert CLASS_LISTS["voc-novel2"] == ("aeroplane", "bottle", "cow", "horse", "sofa")
    for split in (1, 2, 3):
        novel, base = CLASS_LISTS[f"voc-novel{split}"], CLASS_LISTS[f"voc-base{split}"]
        assert len(novel) == 5 and len(base) == 15 and {*novel, *base} == set(VOC_CLASSES)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">' + "".join(
    f'<!ENTITY {chr(99 + i)} "{f"&{chr(98 + i)};" * 10}">' for i in range(9)
)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda x: f"{BOMB}]><annotation>&k;</annotation>", ["refused", "document type"]),
        (lambda x: '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', ["refused", "document type"]),
        (lambda x: "<a>" * 10**5, ["nested too deeply"]),
        (lambda x: x[:-20], ["not valid XML", "line"]),
        (lambda x: '<?xml version="1.0" encoding="klingon"?><a/>', ["not valid XML"]),
        (lambda x: x.replace("<width>120", "<width>12.5"), ["size: width", "whole number"]),
        (lambda x: x.replace("<width>120", "<width>999999").replace("<height>90", "<height>999999"), ["limit"]),
        (lambda x: "", ["found an empty file"]),
    ],
)
def test_refuses_bad_xml(devkit: pathlib.Path, change: Callable[[str], str], parts: list[str]) -> None:
    file = devkit / "VOC2007/Annotations/000012.xml"
    file.write_text(change(file.read_text()))
    refused(devkit / "VOC2007/ImageSets/Main/trainval.txt", str(file), *parts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.replace("<name>cow", "<name>"), "has no name"),
        (lambda x: x.replace("<difficult>0", "<difficult>maybe", 1), "difficult: expected 0 or 1, found 'maybe'"),
        (lambda x: x.replace("bndbox", "box"), "bndbox: xmin: expected a number, found nothing"),
        (lambda x: x.replace("<xmin>20", "<xmin>nan"), "bndbox: xmin: expected a number, found 'nan'"),
        (lambda x: x.replace("<xmin>20", "<xmin>1e9"), "bndbox: xmin: expected a number, found '1e9'"),
        (lambda x: x.replace("<xmin>20", "<xmin>2_0"), "bndbox: xmin: expected a number, found '2_0'"),
        (lambda x: x.replace("<xmin>20", "<xmin>90"), "bndbox: xmax and ymax must not be smaller than xmin and ymin"),
    ],
)
def test_one_odd_object_is_left_out(devkit: pathlib.Path, change: Callable[[str], str], reason: str) -> None:
    path, file = devkit / "VOC2007/ImageSets/Main/trainval.txt", devkit / "VOC2007/Annotations/000012.xml"
    whole = load_dataset(path)
    file.write_text(change(file.read_text()))
    dataset = load_dataset(path)
    assert [number for number in whole.annotations if number not in dataset.annotations] == [120001]
    assert dataset.notes == (f"objects left out: {reason}: 1 ({file}: object 1)",)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size><width/></size>"])
def test_a_size_that_is_missing_is_the_photos(devkit: pathlib.Path, size: str) -> None:
    path, file = devkit / "VOC2007/ImageSets/Segmentation/trainval.txt", devkit / "VOC2007/Annotations/000007.xml"
    whole = survey(load_dataset(path), devkit)
    file.write_text(re.sub("<size>.*</size>", size, file.read_text(), flags=re.S))
    dataset = load_dataset(path)
    assert dataset.images[7].height == 0
    dataset = survey(dataset, devkit)
    assert dataset.images == whole.images and "whose files say" not in "".join(whole.notes)
    np.testing.assert_array_equal(dataset.mask(dataset.annotations[70001]), whole.mask(whole.annotations[70001]))
    assert dataset.notes == ("images without a size, which their files say: 1 (VOC2007/JPEGImages/000007.jpg)",)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("000007 -1\n000012  1\n", ["expected the name of an image on each line", "'000007 -1'"]),
        ("../../etc/passwd\n", ["expected the name of an image"]),
        ("000007\n000007\n", ["listed twice"]),
        ("000099\n", ["000099.xml", "cannot read the VOC annotation"]),
        ("\n\n", ["lists no image"]),
        ("\u00fc\n", ["neither JSON nor a list"]),
    ],
)
def test_refuses_bad_lists(devkit: pathlib.Path, text: str, parts: list[str]) -> None:
    path = devkit / "VOC2007/ImageSets/Main/trainval.txt"
    path.write_text(text)
    refused(path, *parts)


def test_refuses_bad_places_and_masks(devkit: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lost = tmp_path / "list.txt"
    lost.write_text("000007\n")
    refused(lost, str(lost), "expected VOC's folders", "Annotations")
    refused(devkit / "VOC2007+VOC2010/ImageSets/Main/trainval.txt", "VOC2010", "cannot read")
    path = devkit / "VOC2007/ImageSets/Segmentation/trainval.txt"
    masks = devkit / "VOC2007/SegmentationObject/000007.png"
    for image, part in (
        (Image.fromarray(np.zeros((40, 30), np.uint8)), "is 30 x 40 pixels, the annotation says 120 x 90"),
        (Image.fromarray(np.zeros((90, 120, 3), np.uint8)), "expected a palette image"),
        (Image.fromarray(np.eye(90, 120, k=30, dtype=np.uint8)), "object 1 lies outside its box"),
    ):
        image.save(masks)
        dataset = load_dataset(path)
        with pytest.raises(InputError) as caught:
            dataset.mask(dataset.annotations[70001])
        check_message(caught.value, str(masks), part)


def test_spoiled_xml_only_raises_input_errors(devkit: pathlib.Path) -> None:
    file = devkit / "VOC2012/Annotations/2007_000033.xml"
    original, path = file.read_bytes(), devkit / "VOC2012/ImageSets/Segmentation/trainval.txt"
    rng = random.Random(0)
    outcomes = set()
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 30)] = rng.choice(
                [bytes([rng.randrange(256)]), b"<object>", b"</size>", b"-1", b"&amp;", b"&x;", b"1e400", b"\xff\xfe"]
            )
        file.write_bytes(data)
        try:
            dataset = load_dataset(path)
            for entry in dataset.annotations.values():
                dataset.mask(entry)
            outcomes.add("read")
        except InputError as error:
            check_message(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
