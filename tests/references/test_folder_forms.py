"""The forms in which people's tools write labels beside photos: the same reference as from the plain form."""

import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images.mask_files import mask_numbers
from ntt_jax.notes import Notes
from ntt_jax.references.folder import FoundReferences, find_references

HEIGHT, WIDTH, BOX = 60, 80, (20.0, 10.0, 50.0, 30.0)
POINTS = [[20, 10], [70, 10], [70, 40], [20, 40]]
RING = [value for point in POINTS for value in point]
YOLO = "0 0.5625 0.416666666667 0.625 0.5"
E_ACUTE, E_DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
Write = Callable[[Path], None]


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(path)


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def check(found: FoundReferences, name: str = "part") -> None:
    """One reference: the box, or the mask of the same extent."""
    (one,) = found.references
    assert one.class_name == name
    if one.mask is None:
        assert one.box == pytest.approx(BOX, abs=1e-6)
    else:
        expected = np.zeros((HEIGHT, WIDTH), np.bool_)
        expected[10:40, 20:70] = True
        np.testing.assert_array_equal(mask_numbers(one.mask).mask("", Notes()), expected)


def yolo(label: str | bytes, names: str | bytes | None = "part\n", *, listed: str = "classes.txt") -> Write:
    def write(folder: Path) -> None:
        photo(folder / "images/a.jpg")
        put(folder / "labels/a.txt", label)
        if names is not None:
            put(folder / listed, names)

    return write


def named(image: str, label: str) -> Write:
    def write(folder: Path) -> None:
        photo(folder / "images" / image)
        put(folder / "labels" / label, YOLO)
        put(folder / "classes.txt", "part\n")

    return write


def labelme(shape: dict[str, Any] | None = None, encoding: str = "utf-8", **changed: Any) -> Write:
    one = {"label": "part", "points": POINTS, "shape_type": "polygon", "group_id": None, **(shape or {})}
    content = {"imagePath": "a.jpg", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": [one]}

    def write(folder: Path) -> None:
        photo(folder / "a.jpg")
        put(folder / "a.json", json.dumps({**content, **changed}).encode(encoding))

    return write


def voc(size: str = "", difficult: str = "0", more: str = "") -> Write:
    box = "<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>70</xmax><ymax>40</ymax></bndbox>"
    one = f"<object><name>part</name><difficult>{difficult}</difficult>{box}</object>"

    def write(folder: Path) -> None:
        photo(folder / "JPEGImages/a.jpg")
        put(folder / "Annotations/a.xml", f"<annotation><filename>a.jpg</filename>{size}{one}{more}</annotation>")

    return write


def coco(change: Callable[[dict[str, Any]], Any], image: str = "a.jpg", encoding: str = "utf-8") -> Write:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(BOX), "segmentation": [RING]}
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "part"}]}

    def write(folder: Path) -> None:
        photo(folder / image)
        whole = {**content, "annotations": [box]}
        change(whole)
        put(folder / "_annotations.coco.json", json.dumps(whole).encode(encoding))

    return write


def called(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["images"].__setitem__(0, {"id": 1, "file_name": name})


def mask(name: str, **saved: Any) -> Write:
    def write(folder: Path) -> None:
        photo(folder / "a.jpg")
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        values[10:40, 20:70] = 255
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name, **saved)

    return write


ROOT = {"id": 0, "name": "part", "supercategory": "none"}


@pytest.mark.parametrize(
    "write",
    [
        yolo(YOLO.replace(" ", ",")),
        yolo(YOLO.replace(" ", ", ")),
        yolo(YOLO.replace(".", ",")),
        yolo("part" + YOLO[1:]),
        yolo("part" + YOLO[1:], None),
        yolo("# labels\n" + YOLO),
        yolo(YOLO.encode("utf-16"), "part\r\n".encode("utf-16")),
        yolo(YOLO, listed="_darknet.labels"),
        named("é a.jpg", "%C3%A9%20a.txt"),
        named(f"{E_DECOMPOSED}.jpg", f"{E_ACUTE}.txt"),
        named("a.jpg", "a.jpg.txt"),
        *(
            labelme(imageHeight=height, imageWidth=width)
            for height, width in ((0, 0), (-1, -1), (None, 80), ("60", "80"))
        ),
        labelme({"shape_type": "rotation"}),
        labelme({"shape_type": "quadrilateral"}),
        labelme({"group_id": 1.0}),
        labelme({"group_id": math.nan}),
        labelme({"points": [{"x": x, "y": str(y)} for x, y in POINTS]}),
        labelme(encoding="utf-16"),
        voc(),
        voc("<size><width>0</width><height>0</height></size>"),
        voc(difficult="Unspecified"),
        voc(difficult="false"),
        voc(more="<object><name>part</name><bndbox><xmin>90</xmin><ymin>9</ymin><xmax>6</xmax></bndbox></object>"),
        coco(lambda content: content["categories"].insert(0, ROOT)),
        coco(called("%C3%A9%20a.jpg"), "é a.jpg"),
        coco(called(f"{E_ACUTE}.jpg"), f"{E_DECOMPOSED}.jpg"),
        coco(lambda content: content["annotations"].append({**content["annotations"][0], "id": 2})),
        coco(lambda content: None, encoding="utf-16"),
        mask("a_part_mask.jpg", quality=90),
        mask("masks/part/a.jpg", quality=90),
    ],
)
def test_forms(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    check(find_references(tmp_path))


def test_names_of_classes(tmp_path: Path) -> None:
    labelme({"label": 7})(tmp_path / "number")
    check(find_references(tmp_path / "number"), "7")
    mask(f"a_{E_DECOMPOSED}.png")(tmp_path / "decomposed")  # as macOS writes it; --classes gets it as it is typed
    check(find_references(tmp_path / "decomposed", classes=[E_ACUTE]), E_ACUTE)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (yolo("0 0.5 0.5 0.2_5 0.5\n" + YOLO), ""),
        (yolo(YOLO + "\n0 0.5 0.5 0.2_5 0.5"), "expected a class and numbers from 0 to 1: 1 (labels/a.txt object 2)"),
        (yolo(YOLO + "\nbird" + YOLO[1:]), "expected a class and numbers from 0 to 1: 1 (labels/a.txt object 2)"),
        (yolo(YOLO + "\n1" + YOLO[1:]), "class 1 is not in the list of 1 classes, which count from 0"),
        (yolo("a dog, 3 years"), ""),
        (yolo(YOLO, "façade\n".encode("latin-1")), "not text in UTF-8; save it in UTF-8: 1 (classes.txt)"),
        (voc(more="<object/>"), "has no name: 1 (Annotations/a.xml object 2)"),
    ],
)
def test_what_is_not_certain_is_left_out_by_name(tmp_path: Path, write: Write, reason: str) -> None:
    write(tmp_path)
    try:
        found = find_references(tmp_path)
    except InputError as error:
        assert reason in str(error) and "\n" not in str(error)
    else:
        check(found)
        assert f"left out: {reason}" in "\n".join(found.reasons())


def test_what_was_read_in_another_way_is_not_called_left_out(tmp_path: Path) -> None:
    coco(lambda content: content["annotations"][0].update(segmentation=RING))(tmp_path)
    found = find_references(tmp_path)
    check(found)
    assert (
        "polygons without the outer pair of brackets: 1 (annotation 1): 1 (_annotations.coco.json)" in found.reasons()
    )


def test_a_mask_that_may_be_the_background_is_questioned() -> None:
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    inside[10:40, 20:70] = True
    for values, asked in ((inside, False), (~inside, True), (np.roll(inside, 10, axis=1), False)):
        notes = Notes()
        np.testing.assert_array_equal(mask_numbers(values).mask("m.png", notes), values)
        assert ("are object and background swapped?" in "".join(notes.lines())) is asked


def test_one_mask_of_a_stack_and_a_file_of_numpy(tmp_path: Path) -> None:
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    inside[10:40, 20:70] = True
    for stack in (inside[None], inside[..., None]):
        np.testing.assert_array_equal(mask_numbers(stack).mask("", Notes()), inside)
    np.save(tmp_path / "m.npy", inside)
    with pytest.raises(InputError, match=r"m\.npy: not an image .* an array of NumPy; read it with numpy.load"):
        mask_numbers(tmp_path / "m.npy")
