"""What `ntt-jax segment` writes of its records, without models."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from host_detections import host_detections
from PIL import ExifTags, Image

from ntt_jax.cli import main
from ntt_jax.detection.thresholds import by_class
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import image_record
from ntt_jax.files import write_json
from ntt_jax.images.photos import find_photos
from ntt_jax.images.reading import open_image_size, read_image
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.observer import SILENT, Silent
from ntt_jax.runs.segment_output import OVERLAY_SIDE, Found, Shown, write_output

NAMES = ("sea gull", "boat")


def detections(height, width):
    """Two detections: a boat on the left half with 0.9, a gull on the top row with 0.4."""
    masks = np.zeros((2, height, width), bool)
    masks[0, :, : width // 2] = masks[1, 0] = True
    boxes = np.array([[0, 0, 3, 3], [0, 0, 5, 0]], np.float32)
    return host_detections(masks, boxes, np.array([0.9, 0.4]), np.array([1, 0]))


@pytest.fixture
def bank():
    means = [[np.eye(4, dtype=np.float32)[k]] for k in range(2)]
    return MemoryBank(memory_from_instance_means(means, "ab"), NAMES, (4, 9), None)  # type: ignore[arg-type]


@pytest.fixture
def frames(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in (10, 9, 100):
        Image.new("RGB", (20, 12), (number, 0, 0)).save(tmp_path / "frames" / f"frame{number}.png")
    return tmp_path / "frames"


def write(out, names, bank, *, unread=(), threshold: float | dict[str, float] = 0.3, exif="upright", **shown):
    """Record the detections of every photo that can be read, and write them."""
    out.mkdir(exist_ok=True)
    with FolderLock(out) as lock, RunFolder(lock, {"made": "here"}) as run:
        ids = {name: number for number, name in enumerate(names)}
        fresh = [name for name in names if name not in unread and ids[name] not in run.records]
        for name in fresh:
            run.records.append([image_record(ids[name], detections(*open_image_size(names[name], exif=exif)))])
        found = Found(run, {name: (names[name], ids[name]) for name in names}, dict(unread), exif)
        observer = shown.pop("observer", SILENT)
        whole = shown.pop("whole", True)
        chosen = Shown(by_class(threshold, NAMES), **{"classes": None, "pictures": (), **shown})
        return write_output(out, found, bank, chosen, observer, whole=whole)


@pytest.mark.parametrize("pictures", [("masks", "overlays"), ("masks",), ("overlays",), ()])
def test_pictures_are_those_asked_for(frames, tmp_path, bank, pictures):
    out = tmp_path / "found"
    names = find_photos([frames])
    content = write(out, names, bank, pictures=pictures)
    write_json(tmp_path / "same.json", content)
    assert (out / "detections.json").read_bytes() == (tmp_path / "same.json").read_bytes()
    assert [image["file_name"] for image in content["images"]] == list(names)
    assert len(content["annotations"]) == 6 and content["annotations"][0]["category_id"] == 9
    run_files = {"finished.records", "run.json", "lock"}
    assert {path.name for path in out.iterdir()} == {"detections.json", *run_files, *pictures}
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
    out, names = tmp_path / "found", find_photos([frames])
    (out / "masks" / "frame9").mkdir(parents=True)
    (out / "masks" / "frame9" / "007_old.png").touch()
    (out / "masks" / "frame9" / ".001_boat.png.0123456789abcdef.tmp").touch()  # of a process that was killed
    content = write(out, names, bank, threshold=0.5, pictures=("masks",))
    assert {entry["category_id"] for entry in content["annotations"]} == {9} and len(content["annotations"]) == 3
    assert [path.name for path in (out / "masks" / "frame9").iterdir()] == ["001_boat.png"]
    # Other thresholds of each class, on the same records.
    assert len(write(out, names, bank, threshold={"boat": 0.95, "sea gull": 0.4})["annotations"]) == 3
    assert len(write(out, names, bank, threshold={"sea gull": 0.4})["annotations"]) == 6
    assert len(write(out, names, bank, threshold=0, classes=(0,))["annotations"]) == 3


def test_what_cannot_be_read_is_listed(frames, tmp_path, bank):
    names, out = find_photos([frames]), tmp_path / "found"
    content = write(out, names, bank, unread={"frame10.png": "why"}.items())
    written = (out / "detections.json").read_bytes()
    counted = write(out, names, bank, unread={"frame10.png": "why"}.items(), whole=False)
    assert counted.pop("counts") == Counter(entry["category_id"] for entry in content["annotations"])
    assert {**counted, "annotations": content["annotations"]} == content
    assert (out / "detections.json").read_bytes() == written
    assert content["skipped"] == [{"file_name": "frame10.png", "reason": "why"}]
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [
        (1, "frame9.png"),
        (2, "frame100.png"),
    ]


def test_overlays_of_large_images_are_smaller(tmp_path, bank):
    path = tmp_path / "wide.png"
    Image.new("RGB", (OVERLAY_SIDE * 2, 40)).save(path)
    write(tmp_path, find_photos([path]), bank, pictures=("masks", "overlays"))
    assert open_image_size(tmp_path / "overlays" / "wide.png") == (20, OVERLAY_SIDE)
    assert open_image_size(tmp_path / "masks" / "wide" / "001_boat.png") == (40, OVERLAY_SIDE * 2)


def test_a_photo_that_changes_meanwhile(frames, tmp_path, bank):
    out, names = tmp_path / "found", find_photos([frames])
    write(out, names, bank)
    Image.new("RGB", (21, 12)).save(frames / "frame10.png")
    with pytest.raises(InputError, match=r"frame10\.png: the photo has changed"):
        write(out, names, bank, pictures=("overlays",))


def test_formats_are_written_from_the_same_records(frames, tmp_path, bank):
    out, names = tmp_path / "found", find_photos([frames])
    content = write(out, names, bank, formats=("csv", "labelme"))
    rows = (out / "objects.csv").read_text().splitlines()
    assert len(rows) == 1 + len(content["annotations"]) and rows[1].startswith("frame9.png,1,boat,0.9,120,0,0,10,12")
    shapes = json.loads((out / "labelme" / "frame10.json").read_text())["shapes"]
    assert [shape["label"] for shape in shapes] == ["boat", "sea gull"]
    write(out, names, bank, threshold=0.5, formats=("csv",))
    assert len((out / "objects.csv").read_text().splitlines()) == 4


def test_unknown_pictures(capsys):
    assert main(["segment", "a.png", "--pictures", "masks,videos"]) == 2
    error = capsys.readouterr().err
    assert "found 'videos'" in error and error.count("\n") == 1


def test_pictures_are_not_taken_for_photos(frames, bank):
    """Where the output is the folder of the photos itself."""
    names = find_photos([frames], frames)
    first = write(frames, names, bank, pictures=("masks", "overlays"))
    (frames / "detections.json").unlink()  # as if it had been killed before its end
    assert find_photos([frames], frames) == names and Path(frames / "overlays" / "frame9.png").exists()
    assert write(frames, names, bank, pictures=("masks", "overlays")) == first
    assert read_image(frames / "overlays" / "frame9.png").shape == (12, 20, 3)


class Heard(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.mark.parametrize("exif, size", [("upright", (20, 12)), ("raw", (12, 20))])
def test_formats_of_a_photo_with_an_orientation(tmp_path, bank, exif, size):
    path = tmp_path / "phone.jpg"
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 12)).save(path, exif=orientation)
    heard = Heard()
    write(tmp_path / "found", {"phone.jpg": path}, bank, exif=exif, formats=("labelme", "csv"), observer=heard)
    content = json.loads((tmp_path / "found/labelme/phone.json").read_text())
    assert (content["imageHeight"], content["imageWidth"]) == size and len(content["shapes"]) == 2
    assert max(y for shape in content["shapes"] for _, y in shape["points"]) == size[0]
    said = "photos that other tools turn upright, while their objects lie as stored: 1 (phone.jpg)"
    assert [said in line for line in heard.notes] == ([True] if exif == "raw" else [])
