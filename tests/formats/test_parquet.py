"""Parquet: the rows are the detections, in parts of bounded size, the same bytes whenever they are written."""

import numpy as np
import pytest
from found_photos import CLASSES, make_photos, objects

from ntt_jax.formats import parquet, write_formats
from ntt_jax.images.rle import decode_rle

pytest.importorskip("pyarrow")


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def read_rows(folder):
    import pyarrow.parquet

    parts = sorted((folder / "parquet").iterdir())
    return [pyarrow.parquet.read_table(part).to_pylist() for part in parts]


def test_rows_are_the_detections(tmp_path, photos):
    write_formats(tmp_path, ["parquet"], photos, CLASSES)
    (rows,) = read_rows(tmp_path)
    expected = [
        (photo.name, number, CLASSES.names[label], CLASSES.category_ids[label], photo.height, photo.width, *box, area)
        for photo in photos
        for number, (label, box, area) in enumerate(
            zip(photo.detections.labels, photo.boxes.tolist(), photo.areas.tolist(), strict=True), 1
        )
    ]
    columns = ("image", "object", "class", "category_id", "image_height", "image_width", "x", "y", "width", "height")
    assert [tuple(row[name] for name in (*columns, "area")) for row in rows] == expected
    scores = [score for photo in photos for score in photo.detections.scores]
    np.testing.assert_allclose([row["score"] for row in rows], scores, atol=1e-6)
    size = [rows[0]["image_height"], rows[0]["image_width"]]
    np.testing.assert_array_equal(decode_rle({"size": size, "counts": rows[0]["rle"]}), objects()[0][1])


def test_parts(tmp_path, photos, monkeypatch):
    """A part ends with the photo that fills it; those of a larger run go; equal content is not written again."""
    write_formats(tmp_path, ["parquet"], photos, CLASSES)
    (rows,) = read_rows(tmp_path)
    monkeypatch.setattr(parquet, "PART_ROWS", 1)
    write_formats(tmp_path, ["parquet"], photos, CLASSES)
    parts = read_rows(tmp_path)
    assert len(parts) == sum(len(photo) > 0 for photo in photos) and [row for part in parts for row in part] == rows
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parquet").iterdir()}
    write_formats(tmp_path, ["parquet"], photos, CLASSES)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parquet").iterdir()} == before
    write_formats(tmp_path, ["parquet"], photos[:1], CLASSES)
    assert len(read_rows(tmp_path)) == 1


def test_nothing_found(tmp_path):
    write_formats(tmp_path, ["parquet"], [], CLASSES)
    assert read_rows(tmp_path) == [[]]
