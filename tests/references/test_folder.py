"""Folders as people have them, written here as the real tools write them, to references."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import voc_files
from PIL import Image
from stopwatch import cpu_seconds

from ntt_jax.errors import InputError
from ntt_jax.images.mask_names import class_of
from ntt_jax.images.rle import decode_rle, segmentation_to_rle
from ntt_jax.references.folder import FoundReferences, find_references

HEIGHT, WIDTH = 40, 60
RING = [[10.0, 5.0], [40.0, 5.0], [40.0, 30.0], [10.0, 30.0]]


def photo(path: Path, *, size: tuple[int, int] = (HEIGHT, WIDTH), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(1, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def block(left: int = 10, top: int = 5, right: int = 40, bottom: int = 30) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def mask_file(path: Path, mask: np.ndarray | None = None, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((block() if mask is None else mask).astype(np.uint8) * np.uint8(value)).save(path)
    return path


def rows(found: FoundReferences) -> list[tuple[str, str, str, str, int]]:
    return [
        (one.class_name, one.kind, found.shown(one.photo), found.shown(one.source), one.number)
        for one in found.references
    ]


def reasons(found: FoundReferences) -> str:
    return "\n".join(found.reasons())


# Masks of their own


def test_masks_beside_photos_by_every_rule(tmp_path):
    for name in ("bus1.jpg", "IMG_1.jpg", "IMG_1_2.png", "sub/c.jpg", "bird/7.jpg", "images/d.png", "empty.jpg"):
        photo(tmp_path / name)
    names = ("bus1_bus.png", "bus1_bus_2.png", "bus1_traffic light.png", "IMG_1_2_car-3.png", "BUS1-mask_van.png")
    names += ("boat/bus1.png", "masks/boat/sub/c.png", "masks/boat/c_2.png", "bird/7_mask.png", "masks/d_kite.png")
    for name in names:
        mask_file(tmp_path / name)
    found = find_references(tmp_path)
    assert [(one[0], *one[2:4]) for one in rows(found)] == [
        ("bird", "bird/7.jpg", "bird/7_mask.png"),
        ("boat", "bus1.jpg", "boat/bus1.png"),
        ("boat", "sub/c.jpg", "masks/boat/c_2.png"),
        ("boat", "sub/c.jpg", "masks/boat/sub/c.png"),
        ("bus", "bus1.jpg", "bus1_bus.png"),
        ("bus", "bus1.jpg", "bus1_bus_2.png"),
        ("car", "IMG_1_2.png", "IMG_1_2_car-3.png"),
        ("kite", "images/d.png", "masks/d_kite.png"),
        ("traffic light", "bus1.jpg", "bus1_traffic light.png"),
        ("van", "bus1.jpg", "BUS1-mask_van.png"),
    ]
    assert found.category_ids == {name: i for i, name in enumerate(sorted(found.category_ids), 1)}
    assert not found.left_out and {p.name for p in found.bare} == {"IMG_1.jpg", "empty.jpg"} and found.boxes == 0
    assert found.references[0].given == (tmp_path / "bird/7.jpg", tmp_path / "bird/7_mask.png")


@pytest.mark.parametrize(
    ("mask_folders", "photo_folders", "rest", "expected"),
    [
        ((), (), "bus", "bus"),
        ((), (), "bus_12", "bus"),
        ((), (), "mask_bus_mask", "bus"),
        ((), (), "mask_2", None),
        ((), (), "7", None),
        (("masks", "bus"), ("photos",), "", "bus"),
        (("masks", "bus"), ("photos",), "left", "bus"),
        (("masks", "train", "bus"), ("images", "train"), "", "bus"),
        (("masks", "day one"), ("images", "day one"), "bus", "bus"),
        (("bus",), ("bus",), "mask", "bus"),
        (("masks",), ("images",), "", None),
    ],
)
def test_class_in_names(mask_folders, photo_folders, rest, expected):
    assert class_of(mask_folders, photo_folders, rest) == expected


def test_masks_that_cannot_be_taken_are_left_out_with_the_reason(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        photo(tmp_path / name)
    mask_file(tmp_path / "a_bus.png")
    mask_file(tmp_path / "b_bus.png", np.zeros((HEIGHT, WIDTH)))
    mask_file(tmp_path / "b_car.png", block()[:-1])
    mask_file(tmp_path / "c_mask.png")
    two = block().astype(np.uint8) + block(12, 6, 20, 20)
    mask_file(tmp_path / "d_bus.png", two, 1)
    found = find_references(tmp_path)
    assert [one[3] for one in rows(found)] == ["a_bus.png"]
    text = reasons(found)
    assert "an empty mask: 1 (b_bus.png)" in text and "made for 60 x 39 pixels, its photo has 60 x 40" in text
    assert "name says no class" in text and "several values beside 0 (1, 2)" in text and "--instances" in text
    assert [p.name for p in found.bare] == ["b.jpg", "c.jpg", "d.jpg"]

    taken = find_references(tmp_path, instances=True)
    of_d = [one for one in taken.references if one.photo.name == "d.jpg"]
    assert [one.number for one in of_d] == [1, 2]
    np.testing.assert_array_equal(np.asarray(of_d[1].mask), two == 2)


def test_photos_of_such_names_and_pages_of_a_scan_are_no_masks(tmp_path):
    for name in ("a.jpg", "a_edited.png", "bus/a.png"):
        photo(tmp_path / name)
    mask_file(tmp_path / "page.png")
    mask_file(tmp_path / "page_2.png")
    with pytest.raises(InputError, match="no reference found") as caught:
        find_references(tmp_path)
    assert "for a.jpg call the mask of a bird a_bird.png or masks/bird/a.png" in str(caught.value)
    assert "page.png looks like a mask, but of which photo?" in str(caught.value)


def test_nothing_in_a_folder(tmp_path):
    with pytest.raises(InputError, match="no photo and no annotation file"):
        find_references(tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        find_references(tmp_path / "a.jpg")
    photo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"no reference found.*call the mask of a bird a_bird.png"):
        find_references([str(tmp_path)])


def test_own_results_and_hidden_files_are_not_taken(tmp_path):
    photo(tmp_path / "a.jpg")
    mask_file(tmp_path / "a_bus.png")
    (tmp_path / "found").mkdir()
    (tmp_path / "found/detections.json").write_text('{"images": [], "annotations": [], "categories": []}')
    mask_file(tmp_path / "found/masks/a/001_bus.png")
    mask_file(tmp_path / "found/a_bus.png")
    mask_file(tmp_path / ".trash/a_bus.png")
    mask_file(tmp_path / "._a_bus.png")
    assert len(find_references(tmp_path).references) == 1
    assert len(find_references([tmp_path, tmp_path / "."]).references) == 1


def test_which_are_chosen(tmp_path):
    for i in range(6):
        photo(tmp_path / f"{i}.jpg")
        for number in ("", "_2"):
            mask_file(tmp_path / f"{i}_bus{number}.png")
    mask_file(tmp_path / "0_car.png")
    found = find_references(tmp_path, shots=4, seed=1)
    assert {name: len(own) for name, own in found.table().items()} == {"bus": 4, "car": 1}
    assert len({one.photo for one in found.table()["bus"]}) == 4  # one of each photo first
    assert rows(found) == rows(find_references(tmp_path, shots=4, seed=1))
    assert rows(found) != rows(find_references(tmp_path, shots=4, seed=2))
    assert len(find_references(tmp_path, shots=8).table()["bus"]) == 8
    only = find_references(tmp_path, classes=["car"])
    assert only.category_ids == {"car": 2} and len(only.references) == 1
    with pytest.raises(InputError, match=r"no reference of the class 'buss'; did you mean bus\?"):
        find_references(tmp_path, classes=["buss"])


def test_the_hash_follows_contents_and_not_names(tmp_path):
    photo(tmp_path / "one/a.jpg")
    mask_file(tmp_path / "one/a_bus.png")
    first = find_references(tmp_path / "one").sha256()
    (tmp_path / "one").rename(tmp_path / "two")
    assert find_references(tmp_path / "two").sha256() == first
    mask_file(tmp_path / "two/a_bus.png", block(11))
    assert find_references(tmp_path / "two").sha256() != first


# LabelMe


def labelme(path: Path, shapes: list, **replaced) -> Path:
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{path.stem}.jpg", "imageData": None}
    content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH, **replaced}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
    return path


def shape(label="bus", points=RING, kind="polygon", group=None, **more) -> dict:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, format="PNG")  # as LabelMe does: 0 and 1
    return base64.b64encode(buffer.getvalue()).decode()


def test_labelme_shapes(tmp_path):
    photo(tmp_path / "a.jpg")
    painted = shape(points=[[3, 2], [12, 8]], kind="mask", mask=png(np.ones((7, 10))))
    other = [[50.0, 30.0], [58.0, 30.0], [58.0, 38.0]]
    shapes = [shape(), shape("car", [[40, 30], [10, 5]], "rectangle"), shape("dot", [[20, 20], [29, 20]], "circle")]
    shapes += [painted, shape(group=1), shape(points=other, group=1), shape("car", group=1)]
    shapes += [shape(kind="point", points=[[1, 1]]), shape(points=[[1, 1], [2, 2]]), shape(label="")]
    labelme(tmp_path / "a.json", shapes)
    found = find_references(tmp_path)
    assert rows(found) == [
        ("bus", "mask", "a.jpg", "a.json", 1),
        ("bus", "mask", "a.jpg", "a.json", 4),
        ("bus", "mask", "a.jpg", "a.json", 5),
        ("car", "box", "a.jpg", "a.json", 2),
        ("car", "mask", "a.jpg", "a.json", 7),
        ("dot", "mask", "a.jpg", "a.json", 3),
    ]
    masks = [np.asarray(one.mask) for one in found.references]
    np.testing.assert_array_equal(masks[0], block())
    np.testing.assert_array_equal(masks[1], block(3, 2, 13, 9))
    flat = [v for point in other for v in point]
    np.testing.assert_array_equal(masks[2], block() | decode_rle(segmentation_to_rle([flat], HEIGHT, WIDTH, "")))
    assert found.references[3].box == (10, 5, 30, 25) and found.boxes == 1
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = np.hypot(x - 20, y - 20) < 9
    assert (masks[5] != disc).sum() <= 0.05 * disc.sum()
    text = reasons(found)
    assert "a point surrounds nothing: 1 (a.json object 8)" in text and "a polygon of 2 points" in text
    assert "without a label" in text


def test_labelme_holds_the_photo_or_names_it(tmp_path):
    file = photo(tmp_path / "x.jpg")
    data = base64.b64encode(file.read_bytes()).decode()
    pixels = np.asarray(Image.open(file))
    labelme(tmp_path / "in/a.json", [shape()], imageData=data, imagePath="C:\\Users\\me\\gone.jpg")
    photo(tmp_path / "pictures/b.jpg")
    labelme(tmp_path / "json/b.json", [shape()], imagePath="..\\pictures\\b.jpg")
    labelme(tmp_path / "json/c.json", [shape()], imagePath="../../../etc/passwd")
    photo(tmp_path / "json/d.jpg", size=(20, 20))
    labelme(tmp_path / "json/d.json", [shape()])
    found = find_references(tmp_path)
    assert [one[2:4] for one in rows(found)] == [("in/a.json", "in/a.json"), ("pictures/b.jpg", "json/b.json")]
    image = found.references[0].image
    assert not isinstance(image, Path) and image.origin == {"image": "a.json"}
    np.testing.assert_array_equal(np.asarray(image), pixels)
    text = reasons(found)
    assert "its photo (passwd) is not in the folders given" in text
    assert "made for 60 x 40 pixels, its photo has 20 x 20: 1 (json/d.json)" in text


def test_labelme_photos_turned_by_exif(tmp_path):
    """LabelMe shows photos upright, and its sizes are those of what it shows."""
    exif = Image.Exif()
    exif[274] = 6
    photo(tmp_path / "a.jpg", size=(WIDTH, HEIGHT), exif=exif)
    labelme(tmp_path / "a.json", [shape()])
    assert len(find_references(tmp_path).references) == 1
    with pytest.raises(InputError, match="made for 60 x 40 pixels, its photo has 40 x 60"):
        find_references(tmp_path, exif="raw")


# YOLO


def test_yolo_boxes_and_polygons(tmp_path):
    for name in ("images/train/a.jpg", "images/val/a.jpg", "images/val/b.jpg", "images/train/none.jpg"):
        photo(tmp_path / name)
    for name, text in {
        "labels/train/a.txt": "1 0.5 0.5 0.5 0.25\n",
        "labels/val/a.txt": "2 0.1 0.2 0.5 0.2 0.5 0.75 0.1 0.75\n\n1 0.5 0.5 1.004 0.5 0.93\n",
        "labels/val/b.txt": "1 0.5 0.5 0.2 0.2\n9 0.5 0.5 0.2 0.2\n1 0.5 0.5 0 0.2\n1 5 0.5 0.2 0.2\nx",
        "labels/train/none.txt": "",
        "data.yaml": "path: ../datasets\ntrain: images/train\nval: images/val\nnames: ['zebra', 'car', \"ape\"]\n",
        "README.txt": "a folder",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = find_references(tmp_path)
    assert rows(found) == [
        ("car", "box", "images/train/a.jpg", "labels/train/a.txt", 1),
        ("car", "box", "images/val/a.jpg", "labels/val/a.txt", 2),
        ("car", "box", "images/val/b.jpg", "labels/val/b.txt", 1),
        ("ape", "mask", "images/val/a.jpg", "labels/val/a.txt", 1),
    ]
    assert found.category_ids == {"car": 2, "ape": 3}  # their places in the list, from 1
    assert found.references[0].box == (15, 15, 30, 10) and found.references[1].box == (0, 10, 60, 20)
    np.testing.assert_array_equal(np.asarray(found.references[3].mask), block(6, 8, 30, 30))
    text = reasons(found)
    assert "class 9 is not in the list of 3 classes, which count from 0: 1 (labels/val/b.txt object 2)" in text
    assert "without a size" in text and "expected shares" in text and "expected a class and numbers" in text
    assert [p.name for p in found.bare] == ["none.jpg"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "bus\ncar\n"),
        ("labels/classes.txt", "\ufeffbus\r\ncar\r\n\r\n"),
        ("obj.names", "bus\ncar"),
        ("dataset.yml", "names:\n  0: bus\n  1: car\n"),
        ("data.yaml", "names:\n- bus\n- car\n"),
    ],
)
def test_yolo_class_lists(tmp_path, name, text):
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert find_references(tmp_path).category_ids == {"car": 2}


def test_yolo_without_a_list_or_with_several(tmp_path):
    photo(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(InputError, match=r"no list of classes \(classes.txt, obj.names or data.yaml\): 1 \(a.txt\)"):
        find_references(tmp_path)
    (tmp_path / "classes.txt").write_text("bus\n")
    (tmp_path / "data.yaml").write_text("names: [car]\n")
    with pytest.raises(InputError, match="several lists of classes"):
        find_references(tmp_path)
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    (tmp_path / "data.yaml").write_text(bomb + "names: *i\n")
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match="aliases are not read"):
        find_references(tmp_path)


# VOC


def test_voc_boxes_and_masks(tmp_path):
    year = tmp_path / "VOC2007"
    objects = [("dog", (11, 11, 40, 50), False), ("cat", (50, 20, 80, 60), False), ("cat", (5, 60, 30, 80), True)]
    voc_files.write_image(year, "000001", objects, segmented=True)
    voc_files.write_image(year, "000002", objects[:1])
    found = find_references(tmp_path)
    assert rows(found) == [
        ("cat", "mask", "VOC2007/JPEGImages/000001.jpg", "VOC2007/Annotations/000001.xml", 2),
        ("dog", "mask", "VOC2007/JPEGImages/000001.jpg", "VOC2007/Annotations/000001.xml", 1),
        ("dog", "box", "VOC2007/JPEGImages/000002.jpg", "VOC2007/Annotations/000002.xml", 1),
    ]
    assert found.references[1].box == (10, 10, 30, 40) == found.references[2].box
    inside = np.zeros((90, 120), np.bool_)
    inside[11:49, 11:39] = True  # the border is 255
    np.testing.assert_array_equal(np.asarray(found.references[1].mask), inside)
    assert "marked difficult" in reasons(found) and not found.bare


def test_labelimg_beside_the_photo(tmp_path):
    photo(tmp_path / "a.jpg")
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    one = f"<object><name>bus</name><pose>Unspecified</pose><difficult>0</difficult>{box}</object>"
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{size}{one}</annotation>")
    (tmp_path / "other.xml").write_text("<note/>")
    found = find_references(tmp_path)
    assert rows(found) == [("bus", "box", "a.jpg", "a.xml", 1)] and found.references[0].box == (10, 5, 30, 25)


# COCO


def coco(path: Path, annotations: list, **replaced) -> Path:
    content = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 7, "name": "bus"}, {"id": 3, "name": "car"}],
        "annotations": [{"id": i, "image_id": 4, "iscrowd": 0, **one} for i, one in enumerate(annotations, 1)],
        **replaced,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("annotations", "image"),
    [
        ("train/_annotations.coco.json", "train/a.jpg"),  # Roboflow
        ("annotations/instances_default.json", "images/a.jpg"),  # CVAT
        ("annotations/instances_train2017.json", "train2017/a.jpg"),
        ("a.json", "a.jpg"),
    ],
)
def test_coco_layouts(tmp_path, annotations, image):
    photo(tmp_path / image)
    polygon = [v for point in RING for v in point]
    masked = {"category_id": 7, "segmentation": [polygon], "bbox": [10, 5, 30, 25]}
    boxed = {"category_id": 3, "bbox": [1, 2, 30, 20], "segmentation": []}
    coco(tmp_path / annotations, [masked, boxed, {**masked, "iscrowd": 1}])
    found = find_references(tmp_path)
    assert found.category_ids == {"car": 3, "bus": 7}
    assert rows(found) == [("car", "box", image, annotations, 2), ("bus", "mask", image, annotations, 1)]
    assert found.references[1].box == (10, 5, 30, 25)
    np.testing.assert_array_equal(np.asarray(found.references[1].mask), block())
    assert "a crowd: 1" in reasons(found)


def test_two_kinds_say_the_same(tmp_path):
    photo(tmp_path / "a.jpg")
    mask_file(tmp_path / "a_bus.png")
    labelme(tmp_path / "a.json", [shape(), shape("car")])
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("car\n")
    found = find_references(tmp_path)
    assert rows(found) == [("bus", "mask", "a.jpg", "a_bus.png", 0), ("car", "mask", "a.jpg", "a.json", 2)]
    text = reasons(found)
    assert "its photo has masks of the class" in text and "LabelMe has the class there" in text
    assert found.category_ids == {"bus": 1, "car": 2}


# Strangers' files

POISONS = {
    "zeros": b"\0" * 4096,
    "random": np.random.default_rng(0).bytes(5000),
    "deep": b'{"shapes":' + b"[" * 200_000,
    "wide": b'{"shapes":[' + b"{}," * 1_000_000 + b"{}]}",
    "deep yaml": b"names: " + b"[" * 5000,
    "long yaml": b"names: {" + b"? a" * 50_000,
    "huge yaml": b"names: {99999999999: a}",
    "numbers": b"0 " + b"1e999 " * 100_000,
    "big": b"0 " + b"0.5 " * 2_000_000,
    "escapes": b"\x1b[2J \x07 0 0 0\n" * 100,
    "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>",
    "shapes": json.dumps({"shapes": [3, None, {"label": 1}, shape(points=3), shape(points=[[1e9, 2]] * 3)]}).encode(),
    "sizes": json.dumps({"shapes": [shape()], "imageHeight": 1e6, "imageWidth": 1e6}).encode(),
    "mask": json.dumps({"shapes": [shape(kind="mask", mask="AAAA", points=[[0, 0]])], "imageData": 3}).encode(),
    "group": json.dumps({"shapes": [shape(group=[])], "imagePath": "\0/../.."}).encode(),
    "coco": b'{"images":[1],"categories":{},"annotations":3}',
}


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.xml", "classes.txt", "data.yaml", "a_bus.png", "obj.names"])
def test_every_poison_is_left_out_at_once(tmp_path, name):
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    mask_file(tmp_path / "b_bus.png")
    if name != "classes.txt":
        (tmp_path / "classes.txt").write_text("car\n")
    for poison, data in POISONS.items():
        (tmp_path / name).write_bytes(data)
        start = cpu_seconds()
        found = find_references(tmp_path)
        assert cpu_seconds() - start < 15, poison
        assert ("bus", "mask", "b.jpg", "b_bus.png", 0) in rows(found)
        assert all(line.isprintable() and len(line) < 1200 for line in found.reasons()), poison


def test_thousands_of_shapes_in_a_large_photo_take_seconds(tmp_path):
    """Each is looked at by its run lengths; a picture of the whole photo for each would take minutes."""
    side = 6000
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    shape = {"label": "bus", "points": [[9, 9], [90, 9], [90, 90]], "shape_type": "polygon"}
    content = {"imagePath": "a.png", "imageHeight": side, "imageWidth": side, "shapes": [shape] * 1500}
    (tmp_path / "a.json").write_text(json.dumps(content))
    start = cpu_seconds()
    assert len(find_references(tmp_path).references) == 1500
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.txt").write_text("0 .1 .1 .2 .1 .2 .2\n" * 1500)
    (tmp_path / "classes.txt").write_text("bus\n")
    assert len(find_references(tmp_path).references) == 1500
    assert cpu_seconds() - start < 20
    mask = base64.b64encode(b"\x89PNG").decode()
    shape |= {"shape_type": "mask", "points": [[0, 0]], "mask": mask}
    (tmp_path / "a.json").write_text(json.dumps(content | {"shapes": [shape] * 101}))
    assert "101 masks of shapes in a photo of 6000 x 6000 pixels" in reasons(find_references(tmp_path))
    large = io.BytesIO()
    Image.new("1", (side, side + 2)).save(large, "PNG")
    shape["mask"] = base64.b64encode(large.getvalue()).decode()
    (tmp_path / "a.json").write_text(json.dumps(content | {"shapes": [shape]}))
    assert "a mask that leaves its photo" in reasons(find_references(tmp_path))


# Another reader


def test_supervision_reads_the_same_boxes_and_polygons(tmp_path):
    supervision = pytest.importorskip("supervision")
    rng = np.random.default_rng(2)
    (tmp_path / "labels").mkdir()
    for i in range(3):
        photo(tmp_path / f"images/{i}.jpg")
        (x, y), (w, h) = rng.uniform(0.3, 0.6, 2), rng.uniform(0.2, 0.4, 2)
        (tmp_path / f"labels/{i}.txt").write_text(f"{i % 2} {x} {y} {w} {h}\n")
    (tmp_path / "data.yaml").write_text("names: [bus, car]\n")
    theirs = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
    )
    boxes = {Path(path).name: (found.xyxy[0], theirs.classes[found.class_id[0]]) for path, _, found in theirs}
    for one in find_references(tmp_path).references:
        assert one.box is not None
        x, y, w, h = one.box
        corners, name = boxes[one.photo.name]
        assert name == one.class_name
        np.testing.assert_allclose([x, y, x + w, y + h], corners, atol=1)
