"""What `ntt-jax segment` writes of images and their detections, without models."""

import json

import numpy as np
import pytest
from PIL import Image

from ntt_jax.cli import main
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.images.reading import open_image_size
from ntt_jax.images.rle import encode_masks
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.runs.observer import SILENT
from ntt_jax.segmenter.folder import OVERLAY_SIDE, find_images, segment_files


def predictor(images):
    """Two detections in each image: of the left half and of the top row."""
    for image in images:
        masks = np.zeros((2, *image.shape[:2]), bool)
        masks[0, :, : image.shape[1] // 2] = masks[1, 0] = True
        boxes = np.array([[0, 0, 3, 3], [0, 0, 5, 0]], np.float32)
        scores = np.array([0.9, 0.4], np.float32)
        yield HostDetections(
            image.shape[0], image.shape[1], boxes, scores, np.array([1, 0]), tuple(encode_masks(masks))
        )


@pytest.fixture
def bank():
    means = [[np.eye(4, dtype=np.float32)[k]] for k in range(2)]
    return MemoryBank(memory_from_instance_means(means, "ab"), ("sea gull", "boat"), (4, 9), None)  # type: ignore[arg-type]


@pytest.fixture
def frames(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in (10, 9, 100):
        Image.new("RGB", (20, 12), (number, 0, 0)).save(tmp_path / "frames" / f"frame{number}.png")
    return tmp_path / "frames"


def test_frames_come_by_number_and_names_differ(frames, tmp_path):
    assert list(find_images([frames])) == ["frame9.png", "frame10.png", "frame100.png"]
    other = tmp_path / "frame9.jpg"
    Image.new("RGB", (5, 5)).save(other)
    assert list(find_images([frames, other]))[-1] == "frame9_2.jpg"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_images([tmp_path / "empty"])


@pytest.mark.parametrize("pictures", [("masks", "overlays"), ("masks",), ("overlays",), ()])
def test_pictures_are_those_asked_for(frames, tmp_path, bank, pictures):
    out = tmp_path / "found"
    out.mkdir()
    names = find_images([frames])
    options = {"classes": {0, 1}, "threshold": 0.3, "pictures": pictures, "observer": SILENT}
    content = segment_files(predictor, names, bank, out, **options)  # type: ignore[arg-type]
    assert json.loads((out / "detections.json").read_text()) == content
    assert [image["file_name"] for image in content["images"]] == list(names)
    assert len(content["annotations"]) == 6 and content["annotations"][0]["category_id"] == 9
    assert {path.name for path in out.iterdir()} == {"detections.json", *pictures}
    if "masks" in pictures:
        files = sorted(path.name for path in (out / "masks" / "frame10").iterdir())
        assert files == ["001_boat.png", "002_sea_gull.png"]
        mask = np.asarray(Image.open(out / "masks" / "frame10" / "001_boat.png"))
        assert mask.shape == (12, 20) and (mask[:, :10] == 255).all() and not mask[:, 10:].any()
    if "overlays" in pictures:
        first, other = (np.asarray(Image.open(out / "overlays" / f"frame{n}.png")) for n in (9, 100))
        assert first.shape == (12, 20, 3)
        np.testing.assert_array_equal(first[0, 0], other[0, 0])  # the outline: one colour for a class in all frames


def test_classes_thresholds_and_earlier_pictures(frames, tmp_path, bank):
    out = tmp_path / "found"
    (out / "masks" / "frame9").mkdir(parents=True)
    (out / "masks" / "frame9" / "007_old.png").touch()
    options = {"classes": {1}, "threshold": 0.5, "pictures": ("masks",), "observer": SILENT}
    content = segment_files(predictor, find_images([frames]), bank, out, **options)  # type: ignore[arg-type]
    assert {entry["category_id"] for entry in content["annotations"]} == {9} and len(content["annotations"]) == 3
    assert [path.name for path in (out / "masks" / "frame9").iterdir()] == ["001_boat.png"]


def test_overlays_of_large_images_are_smaller(tmp_path, bank):
    path = tmp_path / "wide.png"
    Image.new("RGB", (OVERLAY_SIDE * 2, 40)).save(path)
    options = {"classes": {0, 1}, "threshold": 0.3, "pictures": ("masks", "overlays"), "observer": SILENT}
    segment_files(predictor, find_images([path]), bank, tmp_path, **options)  # type: ignore[arg-type]
    assert open_image_size(tmp_path / "overlays" / "wide.png") == (20, OVERLAY_SIDE)
    assert open_image_size(tmp_path / "masks" / "wide" / "001_boat.png") == (40, OVERLAY_SIDE * 2)


def test_unknown_pictures(capsys):
    assert main(["segment", "a.png", "--pictures", "masks,videos"]) == 2
    error = capsys.readouterr().err
    assert "found 'videos'" in error and error.count("\n") == 1
