"""A `Prediction` in the words of other tools, without models."""

import json

import numpy as np
from found_photos import CLASSES, HEIGHT, WIDTH, detections, objects

from ntt_jax.formats import Photo, write_formats
from ntt_jax.segmenter.prediction import Prediction


def prediction(source) -> Prediction:
    return Prediction(detections(objects()), CLASSES.names, CLASSES.category_ids, source)


def test_labelme_and_yolo_are_what_the_formats_write(tmp_path):
    found = prediction(tmp_path / "photos" / "harbour.jpg")
    write_formats(
        tmp_path, ["labelme", "yolo", "yolo-boxes"], [Photo("a.jpg", tmp_path / "a.jpg", found.detections)], CLASSES
    )
    written = json.loads((tmp_path / "labelme/a.json").read_text())
    assert found.to_labelme() == {**written, "imagePath": "harbour.jpg"}
    assert found.to_yolo() == (tmp_path / "yolo/labels/a.txt").read_text()
    assert found.to_yolo(boxes=True) == (tmp_path / "yolo-boxes/labels/a.txt").read_text()
    assert len(found.to_labelme(polygon_error=0)["shapes"][0]["points"]) > len(written["shapes"][0]["points"])
    assert len(found.to_yolo(polygon_error=0)) > len(found.to_yolo())


def test_an_array_has_no_file():
    found = prediction(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert found.to_labelme()["imagePath"] == "image.png" and len(found.to_yolo().splitlines()) == 6
