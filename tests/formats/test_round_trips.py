"""What is written, read again by the readers of each format's own world: counts, labels, areas within the errors.

LabelMe and Ultralytics are too heavy to be installed for a test: what their readers check and do is written out here.
"""

import contextlib
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from found_photos import CLASSES, HEIGHT, WIDTH, border, detections, make_photos, objects
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from ntt_jax.datasets import load_dataset
from ntt_jax.formats import FORMATS, Photo, write_formats
from ntt_jax.formats.coco import polygons
from ntt_jax.formats.labelme import annotation
from ntt_jax.formats.yolo import polygon_lines
from ntt_jax.images.reading import open_image_size
from ntt_jax.images.rle import decode_rle, segmentation_to_rle

COCO_FILE = "coco/annotations/instances_default.json"


@pytest.fixture(params=[1.0, 0.0])
def error(request):
    return request.param


@pytest.fixture
def photos(tmp_path, error):
    return make_photos(tmp_path / "photos", error)


@pytest.fixture
def out(tmp_path, photos):
    folder = tmp_path / "found"
    folder.mkdir()
    write_formats(folder, list(FORMATS), photos, CLASSES)
    return folder


def check_masks(read, error: float, rim: float = 0.0) -> None:
    """Masks against those of `objects`: each differs in a strip along its border, as wide as the errors allow.

    rim: pixels by which the reader's drawing is wider than what it draws.
    """
    for mask, (_, expected) in zip(read, objects(), strict=False):
        different = np.count_nonzero(np.asarray(mask, bool) != expected)
        assert different <= (error + rim) * border(expected)
        if error == rim == 0:
            assert different == 0


def as_mask(rle) -> np.ndarray:
    """pycocotools' own RLE, whose text is bytes; its decoder raises a DeprecationWarning under numpy 2."""
    return decode_rle({"size": rle["size"], "counts": rle["counts"].decode()})


def test_coco_by_pycocotools(out, error):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / COCO_FILE))
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["harbour.jpg", "more/a b.png", "empty.png"]
    assert [len(coco.getAnnIds(imgIds=image["id"])) for image in images] == [6, 2, 0]
    entries = coco.loadAnns(coco.getAnnIds(imgIds=1))
    names = [coco.loadCats(entry["category_id"])[0]["name"] for entry in entries]
    assert names == [CLASSES.names[label] for label, _ in objects()]
    drawn = [as_mask(coco.annToRLE(entry)) for entry in entries]
    check_masks(drawn, error)
    for entry, inside, (_, mask) in zip(entries, drawn, objects(), strict=True):
        assert entry["area"] == mask.sum() and not entry["iscrowd"]
        np.testing.assert_array_equal(entry["bbox"][:2], [np.nonzero(mask)[1].min(), np.nonzero(mask)[0].min()])
        assert abs(int(inside.sum()) - int(mask.sum())) <= 0.03 * mask.sum() + 0.02 * border(mask)


def test_coco_by_this_project(out, error):
    dataset = load_dataset(out / COCO_FILE)
    assert len(dataset.annotations) == 8 and not dataset.notes
    masks = [dataset.mask(entry) for entry in dataset.annotations.values() if entry.image_id == 1]
    check_masks(masks, error)


@pytest.fixture
def supervision():
    with warnings.catch_warnings():  # says that OpenCV is not installed
        warnings.simplefilter("ignore")
        return pytest.importorskip("supervision")


def check_data_set(data, photos, error: float, rim: float) -> None:
    assert sorted(data.classes) == sorted(CLASSES.names)
    read = {Path(path).name: found for path, _, found in data}
    for photo in photos:
        found = read[photo.file.name]
        expected = [CLASSES.names[label] for label in photo.detections.labels]
        assert [data.classes[label] for label in found.class_id] == expected
        if len(photo):
            check_masks(found.mask, error, rim)


def test_coco_by_supervision(out, photos, error, supervision, tmp_path):
    data = supervision.DetectionDataset.from_coco(str(tmp_path / "photos"), str(out / COCO_FILE), force_masks=True)
    check_data_set(data, photos, error, rim=1.0)  # draws the border's own pixels too


def test_yolo_by_supervision(out, photos, error, supervision, tmp_path):
    flat = [photo for photo in photos if "/" not in photo.name]  # it reads one folder
    folder = out / "yolo"
    arguments = str(tmp_path / "photos"), str(folder / "labels"), str(folder / "data.yaml")
    check_data_set(supervision.DetectionDataset.from_yolo(*arguments, force_masks=True), flat, error, rim=1.0)
    boxes = out / "yolo-boxes"
    data = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "photos"), str(boxes / "labels"), str(boxes / "data.yaml")
    )
    found = {Path(path).name: found for path, _, found in data}["harbour.jpg"]
    x, y, width, height = photos[0].boxes.T
    np.testing.assert_allclose(found.xyxy, np.stack([x, y, x + width, y + height], axis=1), atol=1e-3)


def as_labelme_draws(points: list[list[float]]) -> np.ndarray:
    """LabelMe's `shape_to_mask` of a polygon: Pillow's, with the outline."""
    picture = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(picture).polygon([(x, y) for x, y in points], outline=1, fill=1)
    return np.asarray(picture).astype(bool)


def test_labelme(out, photos, error):
    for photo in photos:
        file = out / "labelme" / f"{photo.stem}.json"
        content = json.loads(file.read_text("utf-8"))
        assert (file.parent / content["imagePath"]).resolve() == photo.file.resolve() and content["imageData"] is None
        size = open_image_size(file.parent / content["imagePath"])
        assert size == (content["imageHeight"], content["imageWidth"])
        assert content["flags"] == {} and content["version"]
        for shape in content["shapes"]:
            assert shape["shape_type"] == "polygon" and shape["label"] in CLASSES.names and len(shape["points"]) > 2
            assert all(type(x) is float and 0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in shape["points"])
            assert shape["group_id"] is None or type(shape["group_id"]) is int
    shapes = json.loads((out / "labelme/harbour.json").read_text())["shapes"]
    assert [shape["group_id"] for shape in shapes] == [None, 2, 2, 3, 3, 3, None, None, None]
    together: dict[object, np.ndarray] = {}
    for number, shape in enumerate(shapes):  # what LabelMe's tools do: shapes of one label and group are an instance
        key = (shape["label"], shape["group_id"] or f"alone {number}")
        together[key] = together.get(key, np.zeros((HEIGHT, WIDTH), bool)) | as_labelme_draws(shape["points"])
    check_masks(list(together.values()), error, rim=1.0)
    assert len(together) == 6


def test_yolo_by_ultralytics_rules(out, photos, error):
    content = yaml.safe_load((out / "yolo/data.yaml").read_text())
    assert content["names"] == dict(enumerate(CLASSES.names)) and content["train"] and content["val"]
    assert "path" not in content  # then it is the folder of the file
    images = [line.replace("./", f"{out}/yolo/", 1) for line in (out / "yolo/train.txt").read_text().splitlines()]
    labels = ["/labels/".join(path.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt" for path in images]
    assert [Path(path).is_file() for path in labels] == [True] * 3
    rows = [line.split() for line in Path(labels[0]).read_text().splitlines()]
    assert len(rows) == 6 and all(len(row) > 6 and len(row) % 2 == 1 for row in rows)
    assert [int(row[0]) for row in rows] == [label for label, _ in objects()]
    polygons_read = [np.array(row[1:], np.float32).reshape(-1, 2) for row in rows]
    assert all(ring.min() >= 0 and ring.max() <= 1 for ring in polygons_read)
    # Drawn without the outline, the lines without width leave nothing.
    drawn = [(ring.astype(np.float64) * [WIDTH, HEIGHT]).ravel().tolist() for ring in polygons_read]
    masks = [decode_rle(segmentation_to_rle([ring], HEIGHT, WIDTH, "test")) for ring in drawn]
    check_masks(masks, error, rim=0.01)


def test_voc_by_this_project(out, photos):
    (out / "voc/ImageSets/Main/flat.txt").write_text("harbour\nempty\n")
    dataset = load_dataset(out / "voc/ImageSets/Main/flat.txt")
    read = [entry.bbox for entry in dataset.annotations.values()]
    np.testing.assert_array_equal(read, photos[0].boxes)
    names = [dataset.categories[entry.category_id].name for entry in dataset.annotations.values()]
    assert names == [CLASSES.names[label] for label in photos[0].detections.labels]


MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=14)).filter(np.any)


@settings(deadline=None, max_examples=60)
@given(MASKS, st.sampled_from([0.0, 0.7, 1.0, 3.0]))
def test_any_mask_in_any_format(mask, error):
    height, width = mask.shape
    photo = Photo("a.png", Path("a.png"), detections([(0, mask)], height, width), error)
    shapes = annotation(photo, ("a",), "a.png")["shapes"]
    (line,) = polygon_lines(photo)
    ring = np.array(line.split()[1:], float).reshape(-1, 2) * [width, height]
    for rings in (
        polygons(photo.parts[0]),
        [np.ravel(shape["points"]).tolist() for shape in shapes],
        [ring.ravel().tolist()],
    ):
        drawn = decode_rle(segmentation_to_rle(rings, height, width, "test"))
        assert np.count_nonzero(drawn != mask) <= error * border(mask)
    assert {shape["group_id"] for shape in shapes} == ({None} if len(photo.parts[0]) == 1 else {1})
