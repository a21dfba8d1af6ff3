"""References that others have chosen: cocosplit, vocsplit and COCO files, in exactly the published forms."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, check_message, document
from voc_files import write_voc

from ntt_jax.cli import main
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.errors import InputError
from ntt_jax.references.published_lists import read_reference_lists
from ntt_jax.references.sampling import Reference, ReferenceSet, check_references, load_references


def parse(content: Any) -> Any:
    return parse_coco(json.dumps(content).encode(), "instances_train2017.json")


def cocosplit(folder: pathlib.Path, shots: int, ids: dict[str, list[int]]) -> pathlib.Path:
    """Lists as published: info, licenses, the images of 2014, the annotations of one class, all categories."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = document()
    for name, wanted in ids.items():
        annotations = [a for a in whole["annotations"] if a["id"] in wanted]
        images = [i for i in whole["images"] if i["id"] in {a["image_id"] for a in annotations}]
        content = {
            "info": {"year": 2014},
            "licenses": [],
            "images": [i | {"file_name": f"COCO_val2014_{i['id']:012}.jpg"} for i in images],
            "annotations": annotations,
            "categories": whole["categories"],
        }
        (folder / f"full_box_{shots}shot_{name}_trainval.json").write_text(json.dumps(content))
    return folder


def references(found: ReferenceSet) -> dict[str, list[tuple[int, int]]]:
    return {c.name: [(r.image_id, r.annotation_id) for r in c.references] for c in found.classes}


def test_cocosplit(tmp_path: pathlib.Path) -> None:
    dataset = parse(document())
    folder = cocosplit(tmp_path / "cocosplit/seed1", 2, {"bird": [50, 900100000000], "traffic light": [0]})
    cocosplit(folder, 1, {"bird": [101]})
    classes = select_classes(dataset, "traffic light,bird")
    found = read_reference_lists(folder, dataset, classes, 2, allow_fewer=True)
    assert references(found) == {"bird": [(3, 50), (9, 900100000000)], "traffic light": [(9, 0)]}
    assert found.seed is None and found.shots == 2 and found.annotations_sha256 == dataset.sha256
    assert found.annotations_name == "instances_train2017.json"
    check_references(found, dataset)
    one = read_reference_lists(folder, dataset, select_classes(dataset, "bird"), 1)
    assert references(one) == {"bird": [(7, 101)]}  # not sampled: no rule of size or border applies


def test_vocsplit(tmp_path: pathlib.Path) -> None:
    devkit = write_voc(tmp_path)
    path = devkit / "VOC2007+VOC2012/ImageSets/Main/trainval.txt"
    dataset = load_dataset(path)
    folder = tmp_path / "vocsplit/seed3"
    folder.mkdir(parents=True)
    prefix = "/home/somebody/voc/VOCdevkit"
    (folder / "box_2shot_bus_train.txt").write_text(
        f"{prefix}/VOC2012/JPEGImages/2007_000033.jpg\n{prefix}/VOC2007/JPEGImages/000007.jpg\n"
    )
    (folder / "box_2shot_bird_train.txt").write_text(f"{prefix}/VOC2007/JPEGImages/000033.jpg")
    (folder / "box_1shot_bird_train.txt").write_text(f"{prefix}/VOC2007/JPEGImages/000033.jpg")
    found = read_reference_lists(folder, dataset, select_classes(dataset, "bus,bird"), 2)
    assert references(found) == {
        "bird": [(33, 330001), (33, 330002)],
        "bus": [(2007000033, 20070000330001), (7, 70001)],
    }
    one = read_reference_lists(folder, dataset, select_classes(dataset, "bird"), 1)
    assert references(one) == {"bird": [(33, 330001)]}


def test_every_annotation_of_a_file(tmp_path: pathlib.Path) -> None:
    content = document()
    content["annotations"] = content["annotations"][:2]
    path = tmp_path / "1_shot.json"
    path.write_text(json.dumps(content))
    dataset = load_dataset(path)
    found = read_reference_lists(path, dataset, select_classes(dataset, "dog,bird"), 1)
    assert references(found) == {"bird": [(3, 50)], "dog": [(7, 100)]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda c: c["annotations"][0].update(id=5),
            ["no bird with annotation id 5 in image 3"],
        ),
        (lambda c: c["categories"][1].update(name="dragon"), ["category 2 is 'dragon', expected 'bird'"]),
        (lambda c: c.pop("categories"), ['"categories" is missing']),
        (lambda c: c.update(annotations=[]), ["no valid reference for 'bird'"]),
        (
            lambda c: c.update(annotations=[annotation(i, 9, 2, [1, 1, 5, 5]) for i in (900100000000, 50)]),
            ["no bird with annotation id 50 in image 9"],
        ),
    ],
)
def test_refuses_other_lists(tmp_path: pathlib.Path, change: Any, parts: list[str]) -> None:
    folder = cocosplit(tmp_path, 1, {"bird": [50, 900100000000]})
    path = folder / "full_box_1shot_bird_trainval.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    dataset = parse(document())
    with pytest.raises(InputError) as caught:
        read_reference_lists(folder, dataset, select_classes(dataset, "bird"), 1)
    check_message(caught.value, *parts)


def test_refuses_counts_and_missing_lists(tmp_path: pathlib.Path) -> None:
    dataset = parse(document())
    birds = select_classes(dataset, "bird")
    folder = cocosplit(tmp_path, 1, {"bird": [50, 900100000000]})
    with pytest.raises(InputError, match="2 references of 'bird', more than 1 shots"):
        read_reference_lists(folder, dataset, birds, 1)
    with pytest.raises(InputError, match="has neither"):
        read_reference_lists(folder, dataset, birds, 4)
    cocosplit(tmp_path, 3, {"bird": [50]})
    with pytest.raises(InputError, match="fewer than 3 valid references for 'bird'"):
        read_reference_lists(folder, dataset, birds, 3)
    devkit = write_voc(tmp_path)
    voc = load_dataset(devkit / "VOC2007/ImageSets/Main/trainval.txt")
    for text, part in (("x/2008_000002.jpg", "has no image 'x/2008_000002.jpg'"), ("000012.jpg", "has no bird")):
        (devkit / "box_1shot_bird_train.txt").write_text(text)
        with pytest.raises(InputError) as caught:
            read_reference_lists(devkit, voc, select_classes(voc, "bird"), 1)
        check_message(caught.value, "box_1shot_bird_train.txt", part)


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    devkit = write_voc(tmp_path)
    annotations = devkit / "VOC2007+VOC2012/ImageSets/Main/trainval.txt"
    (tmp_path / "box_1shot_bus_train.txt").write_text("VOCdevkit/VOC2007/JPEGImages/000007.jpg")
    command = ["sample", "--annotations", str(annotations), "--classes", "bus", "--shots", "1"]
    assert main([*command, "--lists", str(tmp_path), "--out", str(tmp_path / "r.json")]) == 0
    assert f"1 reference of 1 class (from {tmp_path})" in capsys.readouterr().out
    found = load_references(tmp_path / "r.json")
    assert found.classes[0].references == (Reference(7, 70001),) and found.seed is None
    check_references(found, load_dataset(annotations))

    # The references alone, as COCO annotations: for `ntt-jax masks`, and to be sampled from as a whole.
    alone, again = tmp_path / "alone.json", tmp_path / "again.json"
    (tmp_path / "box_2shot_bus_train.txt").write_text(
        "VOC2007/JPEGImages/000007.jpg VOC2012/JPEGImages/2007_000033.jpg"
    )
    (tmp_path / "box_2shot_bird_train.txt").write_text("VOC2007/JPEGImages/000033.jpg")
    options = ["--classes", "bus,bird", "--shots", "2"]
    assert main([*command[:3], *options, *f"--lists {tmp_path} --out {again} --coco {alone}".split()]) == 0
    small, whole = load_dataset(alone), load_dataset(annotations)
    assert set(small.images) == {7, 33, 2007000033} and small.images[7] == whole.images[7]
    assert {c.id: c.name for c in small.categories.values()} == {3: "bird", 6: "bus"}
    assert {a.id: (a.bbox, a.segmentation is not None) for a in small.annotations.values()} == {
        i: (whole.annotations[i].bbox, i not in (330001, 330002)) for i in (330001, 330002, 70001, 20070000330001)
    }
    np.testing.assert_array_equal(small.mask(small.annotations[70001]), whole.mask(whole.annotations[70001]))
    third = tmp_path / "third.json"
    of_these = ["sample", "--annotations", str(alone), *options]
    assert main([*of_these, *f"--lists {alone} --out {third}".split()]) == 0
    assert load_references(third).classes == load_references(again).classes
    assert main([*command, "--lists", str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.json")]) == 2
    assert "--lists: there is no file" in capsys.readouterr().err
    wrong = ["sample", "--annotations", str(devkit / "VOC2007+VOC2011/ImageSets/Main/trainval.txt"), *command[3:]]
    assert main([*wrong, "--out", str(tmp_path / "r.json")]) == 2
    assert "--annotations: there is no file" in capsys.readouterr().err
