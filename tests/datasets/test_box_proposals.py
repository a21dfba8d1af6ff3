"""Files of boxes in COCO's results format, for annotated images and for plain photos."""

import json

import numpy as np
import pytest

from ntt_jax.datasets.box_proposals import load_box_proposals
from ntt_jax.errors import InputError

SIZES = {7: (50, 100), 9: (20, 20)}
NAMES = {"a/x.jpg": 7, "y.jpg": 9}


def entry(image, box=(10, 5, 20, 10), score=0.5, **more):
    key = "file_name" if isinstance(image, str) else "image_id"
    return {key: image, "bbox": list(box), "score": score, "category_id": 1, **more}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_by_id_and_by_name(tmp_path):
    given = [entry(7), entry(9, (0, 0, 5, 5), 1), entry("a/x.jpg", score=-2), entry("x.jpg", score=3)]
    found, lines = load_box_proposals(write(tmp_path / "b.json", given)).of_images(SIZES, NAMES)
    assert {key: rows.tolist() for key, rows in found.items()} == {
        7: [[10, 5, 30, 15, 0.5], [10, 5, 30, 15, -2], [10, 5, 30, 15, 3]],
        9: [[0, 0, 5, 5, 1]],
    }
    assert found[7].dtype == np.float32 and not lines


def test_an_image_whose_size_is_not_known_yet(tmp_path):
    """One elsewhere, which is fetched when it is its turn: its boxes are cut then."""
    found, lines = load_box_proposals(write(tmp_path / "b.json", [entry(7, (-5, 5, 900, 10))])).of_images(
        {7: (0, 0)}, {}
    )
    assert found[7].tolist() == [[0, 5, 895, 15, 0.5]] and len(lines) == 1


def test_ids_as_a_file_has_them(tmp_path):
    given = [{"image_id": "left", "bbox": [1, 1, 2, 2], "score": 1}]
    found, _ = load_box_proposals(write(tmp_path / "b.json", given)).of_images(SIZES, {}, {"left": 9, 7: 7})
    assert list(found) == [9]


def test_what_no_image_can_have_is_left_out_and_counted(tmp_path):
    given = [
        entry(7),
        entry(7, (10, 5, 0, 10)),
        entry(7, (10, 5, 20, -1)),
        entry(7, (10, 5, float("nan"), 10)),
        entry(7, (10, 5, 1e300, 10)),
        entry(7, score=float("inf")),
        entry(7, (200, 5, 10, 10)),
        entry(7, (90, -3, 30, 10)),
        entry(7, (99.5, 0, 1, 5)),
        entry(8),
    ]
    found, lines = load_box_proposals(write(tmp_path / "b.json", given)).of_images(SIZES, NAMES)
    assert found[7].tolist() == [[10, 5, 30, 15, 0.5], [90, 0, 100, 7, 0.5], [99.5, 0, 100, 5, 0.5]]
    counts = [line.rpartition("json: ")[2] for line in lines]
    assert counts == [
        "5 boxes left out: a number is not finite, or a side is not above 0",
        "1 box left out: outside the image",
        "1 box cut at the border of the image",
        "1 box of other images, not used",
        "1 image without a box: nothing is proposed there",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"boxes": []}, "expected a list of boxes"),
        ([], "holds no box"),
        ([entry(7, (1, 1, 0, 0))], "holds no box that can be used (1 left out)"),
        ([[7, 1, 1, 2, 2]], "[0]: expected an object"),
        ([entry(7), {"image_id": 7, "score": 1}], "[1]: bbox: expected x, y, width, height, found null"),
        ([entry(7, (1, 2, 3))], "[0]: bbox"),
        ([entry(7, ("1", 2, 3, 4))], "[0]: bbox"),
        ([entry(7, score=None)], "[0]: score: expected a number, the objectness"),
        ([entry(7, score=True)], "[0]: score"),
        ([{"bbox": [1, 2, 3, 4], "score": 1}], "[0]: expected an image_id or a file_name"),
        ([entry(7.5)], "[0]: expected an image_id or a file_name"),
        ("[{]", "not valid JSON"),
    ],
)
def test_what_is_no_file_of_boxes_is_one_line(tmp_path, content, said):
    with pytest.raises(InputError) as caught:
        load_box_proposals(write(tmp_path / "b.json", content))
    assert said in str(caught.value) and "b.json" in str(caught.value) and "\n" not in str(caught.value)


def test_boxes_of_other_images_alone(tmp_path):
    boxes = load_box_proposals(write(tmp_path / "b.json", [entry("z.jpg"), entry("w.jpg")]))
    with pytest.raises(InputError, match="none of its 2 boxes belongs to the 2 images; it names images by file_name"):
        boxes.of_images(SIZES, NAMES)
