"""The page of a folder that `ntt-jax segment` wrote."""

import json

import numpy as np
import pytest
from PIL import Image
from report_files import data_of

from ntt_jax.cli import main
from ntt_jax.images.rle import encode_masks

HOSTILE = "</script><script>window.hacked=1</script>"


def box(x, wide, height=60, width=80):
    mask = np.zeros((height, width), bool)
    mask[5:25, x : x + wide] = True
    return mask


@pytest.fixture
def folder(tmp_path):
    """Three photos, the third without detections, a fourth that could not be read."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    names = ["a.png", "sub/b.png", "c.png"]
    for name in names:
        Image.new("RGB", (80, 60), (90, 120, 60)).save(tmp_path / "photos" / name)
    objects = [(1, 3, 0.9, box(0, 10)), (1, 3, 0.4, box(20, 30)), (2, 7, 0.61, box(50, 8))]
    rles = [encode_masks(mask[None])[0] for *_, mask in objects]
    content = {
        "images": [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names, 1)],
        "categories": [{"id": 3, "name": HOSTILE}, {"id": 7, "name": "bus"}],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "score": score,
                "bbox": [float(np.flatnonzero(mask.any(0))[0]), 5.0, float(mask.any(0).sum()), 20.0],
                "segmentation": rle,
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
            for i, ((image, category, score, mask), rle) in enumerate(zip(objects, rles, strict=True), 1)
        ],
        "skipped": [{"file_name": "d.png", "reason": "d.png: cut off"}],
    }
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "detections.json").write_text(json.dumps(content))
    run = {"format": 1, "identity": {"dtype": "float32"}, "starts": [{"files": {"images": str(tmp_path / "photos")}}]}
    (tmp_path / "found" / "run.json").write_text(json.dumps(run))
    return tmp_path / "found"


def test_counts_areas_scores_and_photos(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert "3 detections in 3 images" in capsys.readouterr().out
    data = data_of(folder / "report.html")
    assert data["found"] == {"images": 3, "detections": 3, "skipped": 1}
    first, second = data["classes"]
    assert (first["name"], first["detections"], first["images"]) == (HOSTILE, 2, 1)
    assert (first["area"], first["least_area"], first["most_area"]) == (400, 200, 600)
    assert (second["detections"], second["area"], second["share"]) == (1, 160, round(160 / 4800, 5))
    histograms = np.asarray(data["histograms"])
    assert histograms.shape == (2, 50) and histograms.sum(axis=1).tolist() == [2, 1]
    assert histograms[0, [20, 45]].tolist() == [1, 1] and histograms[1, 30] == 1
    assert [scene["name"] for scene in data["scenes"]] == ["a.png", "sub/b.png", "c.png"]
    assert [row[:2] for row in data["scenes"][0]["detections"]] == [[0, 9000], [0, 4000]]
    assert data["threshold"] == 20 and data["skipped"] == [["d.png", "d.png: cut off"]]
    assert all(
        picture.startswith("data:image/jpeg") for picture in data_of(folder / "report.html", "pictures")["scenes"]
    )


def test_photos_that_moved_are_named(folder, tmp_path, capsys):
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert main(["report", str(folder), "--max-images", "1"]) == 0
    assert "--images" in capsys.readouterr().err
    (only,) = data_of(folder / "report.html")["scenes"]
    assert only["problem"]
    assert main(["report", str(folder), "--images", str(tmp_path / "moved")]) == 0
    assert not any(scene["problem"] for scene in data_of(folder / "report.html")["scenes"])


@pytest.mark.parametrize("score", [None, "high", 2, -0.1, True, float("nan")])
def test_what_segment_does_not_write_is_refused(folder, score, capsys):
    path = folder / "detections.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["score"] = score
    path.write_text(json.dumps(content))
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "detections.json" in said and said.count("\n") == 1 and not (folder / "report.html").exists()


def test_what_is_none_of_segments(folder, tmp_path, capsys):
    path = folder / "detections.json"
    content = json.loads(path.read_text())
    for skipped in (5, "abc", {"a": 1}, [5, None]):
        path.write_text(json.dumps(content | {"skipped": skipped}))
        assert main(["report", str(folder)]) == 0
        assert data_of(folder / "report.html")["skipped"] == []
    content["images"][1] = {"id": 2, "file_name": "\x1b[2J.png"}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 2]
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    assert "has no size" in capsys.readouterr().err
