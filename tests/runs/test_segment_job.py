"""`runs.segment`: every photo is segmented once, and what is written depends on the records alone."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_files import make_world

from ntt_jax import runs
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import image_record
from ntt_jax.everything import MaskSettings, generate_masks
from ntt_jax.images.photos import find_photos
from ntt_jax.images.reading import read_image
from ntt_jax.loading import load_sam2
from ntt_jax.memory.bank import load_memory, save_memory
from ntt_jax.runs.images import ImageWork
from ntt_jax.runs.inputs import sendable
from ntt_jax.runs.models import TargetPass
from ntt_jax.runs.observer import Silent
from ntt_jax.runs.records import RecordReader
from ntt_jax.runs.segment_job import as_dataset
from ntt_jax.tiles.layout import TileConfig

CONFIG = DetectConfig(points_per_side=4)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def photos(world, tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, path in zip(("a.png", "b.png", "more/c.png"), sorted(world.images.glob("scene2_*")), strict=False):
        shutil.copy(path, folder / name)
    return folder


class Heard(Silent):
    """Counts the photos that are segmented."""

    def __init__(self):
        self.done, self.what, self.notes = 0, "", []

    def begin(self, what, total, *, done=0, unit="images"):
        self.what = what

    def step(self, count=1):
        self.done += count if self.what == "segment" else 0

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def segment(world):
    def call(out, *photos, **options):
        heard = Heard()
        options = {"config": CONFIG, "score_threshold": 0, **options}
        files = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory}
        return runs.segment(out, photos, observer=heard, **(files | options)), heard

    return call


def contents(folder):
    """Everything that is written, but for what says when."""
    skipped = ("run.json", "lock", "finished.records")
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skipped
    }


def test_each_photo_is_segmented_once(photos, segment, tmp_path, monkeypatch):
    out = tmp_path / "found"
    nothing, heard = segment(out, photos, score_threshold=1.0)
    assert heard.done == 3 and nothing["annotations"] == []
    assert [image["file_name"] for image in nothing["images"]] == ["a.png", "b.png", "more/c.png"]

    with monkeypatch.context() as without_models:
        without_models.setattr(TargetPass, "load", lambda *_: pytest.fail("the models are not needed"))
        every, _ = segment(out, photos)  # what scored low has been kept
        assert len(every["annotations"]) >= 3
        names = {category["id"]: category["name"] for category in every["categories"]}
        first = every["annotations"][0]["category_id"]
        own = [entry["score"] for entry in every["annotations"] if entry["category_id"] == first]
        one, _ = segment(out, photos, classes=[names[first]])
        assert [entry["score"] for entry in one["annotations"]] == own
        assert {entry["category_id"] for entry in one["annotations"]} == {first}
        by_name, _ = segment(out, photos, score_threshold={names[first]: 0}, default_threshold=1.0)
        assert by_name["annotations"] == one["annotations"]
        assert segment(out, photos)[0] == every
        # The same photos under other names, in other places, and twice.
        (photos / "a.png").rename(photos / "z.png")
        shutil.copy(photos / "b.png", photos / "more" / "b_again.png")
        moved, _ = segment(out, photos)
        assert [image["file_name"] for image in moved["images"]] == ["b.png", "more/b_again.png", "more/c.png", "z.png"]
        rows = {image["file_name"]: image["id"] for image in moved["images"]}
        of = {name: [a["score"] for a in moved["annotations"] if a["image_id"] == i] for name, i in rows.items()}
        assert of["b.png"] == of["more/b_again.png"] and of["z.png"]
    alone = tmp_path / "alone"
    assert segment(alone, photos)[0] == moved
    before = contents(alone)
    assert {path: data for path, data in contents(out).items() if path in before} == before


def test_new_and_changed_photos_are_done_alone(world, photos, segment, tmp_path):
    out = tmp_path / "found"
    segment(out, photos, pictures=())
    others = sorted(world.images.glob("scene2_*"))[5:7]
    shutil.copy(others[0], photos / "new.png")
    assert segment(out, photos, pictures=())[1].done == 1
    shutil.copy(others[1], photos / "b.png")
    content, heard = segment(out, photos, pictures=())
    assert heard.done == 1
    assert segment(tmp_path / "alone", photos, pictures=())[0] == content


def test_photos_that_cannot_be_read(photos, segment, tmp_path):
    out, whole = tmp_path / "found", (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[: len(whole) // 2])
    (photos / "c.jpg").write_bytes(b"\xff\xd8\xff")
    content, heard = segment(out, photos, pictures=())
    assert [entry["file_name"] for entry in content["skipped"]] == ["b.png", "c.jpg"] and len(heard.notes) == 2
    assert segment(out, photos, pictures=())[0] == content
    (photos / "b.png").write_bytes(whole)
    content, heard = segment(out, photos, pictures=())
    assert [entry["file_name"] for entry in content["skipped"]] == ["c.jpg"] and heard.done == 1
    with pytest.raises(InputError, match=r"none of the 1 images could be read; the first: .*c\.jpg"):
        segment(out, photos / "c.jpg")


def test_workers_of_a_cluster_make_the_same_records(world, photos, segment, tmp_path):
    """What they are sent, sent and used; `tests/runs/test_cluster.py` has the cluster."""
    out = tmp_path / "found"
    segment(out, photos, pictures=())
    dataset, ids, _ = as_dataset(find_photos([photos]), "upright")
    prototypes = np.asarray(load_memory(world.memory).memory.prototypes)
    target = TargetPass(world.sam2, world.dinov2, prototypes, None, CONFIG, largest_side=640)
    work = pickle.loads(pickle.dumps(ImageWork(target, sendable(dataset), Path(), image_record)))
    group = list(dataset.images.values())
    records = work.do(work.load(runs.Compute()), group, work.read(group, False))
    done = RecordReader(out / "finished.records")
    assert {record["image_id"] for record in records} == set(ids.values()) == set(done)
    assert all(record == done.read(record["image_id"]) for record in records)
    done.close()


def test_what_nobody_writes_is_refused_first(photos, segment, tmp_path):
    for options, said in (
        ({"pictures": ["videos"]}, "pictures: expected"),
        ({"formats": ["yola"]}, "formats: expected"),
    ):
        with pytest.raises(InputError, match=said):
            segment(tmp_path / "found", photos, **options)
    assert not (tmp_path / "found" / "run.json").exists()


def test_output_inside_the_photos(photos, segment):
    out = photos / "found"
    first, _ = segment(out, photos)
    before = contents(out)
    again, heard = segment(out, photos)
    assert again == first and heard.done == 0 and contents(out) == before
    assert any("pictures that ntt-jax wrote, not taken for photos" in line for line in heard.notes)


def test_thresholds_that_the_memory_keeps(world, photos, segment, tmp_path):
    out, bank = tmp_path / "found", load_memory(world.memory)
    every, _ = segment(out, photos, pictures=())
    kept = tmp_path / "kept.safetensors"
    save_memory(kept, dataclasses.replace(bank, provenance=bank.provenance | {"thresholds": {"disc": 0.999}}))
    low = {"default_threshold": 0, "pictures": (), "memory": kept}
    content, heard = segment(out, photos, score_threshold=None, **low)
    assert heard.done == 0 and heard.notes == ["thresholds of the memory file: disc 0.999"]
    disc = next(category["id"] for category in content["categories"] if category["name"] == "disc")
    scores = [a["score"] for a in every["annotations"] if a["category_id"] != disc or a["score"] >= 0.999]
    assert [a["score"] for a in content["annotations"]] == scores
    content, heard = segment(out, photos, score_threshold=0, **low)  # what is asked for counts
    assert content == every and heard.notes == []


def test_another_run_is_refused_and_an_earlier_version_is_not(world, photos, segment, tmp_path):
    out = tmp_path / "found"
    (out / "masks" / "a").mkdir(parents=True)  # what a version without records left
    (out / "masks" / "a" / "004_old.png").touch()
    (out / "detections.json").write_text("{}")
    first, _ = segment(out, photos)
    assert not (out / "masks" / "a" / "004_old.png").exists()
    with pytest.raises(InputError, match=r"points_per_side \(was 4, now 3\).*--restart"):
        segment(out, photos, config=dataclasses.replace(CONFIG, points_per_side=3))
    assert segment(out, photos)[0] == first
    _, heard = segment(out, photos, restart=True)
    assert heard.done == 3


def test_formats_are_written_from_the_records(photos, segment, tmp_path, monkeypatch):
    out = tmp_path / "found"
    every, _ = segment(out, photos, pictures=())
    monkeypatch.setattr(TargetPass, "load", lambda *_: pytest.fail("the models are not needed"))
    written, _ = segment(out, photos, pictures=(), formats=["csv", "labelme", "coco"], polygon_error=0)
    assert written == every
    assert len((out / "objects.csv").read_text().splitlines()) == 1 + len(every["annotations"])
    coco = json.loads((out / "coco/annotations/instances_default.json").read_text())
    assert [entry["area"] for entry in coco["annotations"]] == [entry["area"] for entry in every["annotations"]]
    assert coco["categories"][0].items() >= every["categories"][0].items()
    labelme = json.loads((out / "labelme/more/c.json").read_text())
    assert (out / "labelme/more" / labelme["imagePath"]).resolve() == (photos / "more/c.png").resolve()

    (out / "labelme/a.json").write_text("corrected by hand")
    (photos / "b.png").unlink()
    _, heard = segment(out, photos, pictures=(), formats=["labelme"], score_threshold=1.0)
    assert (out / "labelme/a.json").read_text() == "corrected by hand"
    assert not (out / "labelme/b.json").exists() and (out / "objects.csv").exists()
    assert json.loads((out / "labelme/more/c.json").read_text())["shapes"] == []
    assert [line for line in heard.notes if "left as they are: 1" in line and "a.json" in line]
    with pytest.raises(InputError, match="formats: expected some of csv"):
        segment(out, photos, formats=["labelimg"])


def test_tiles_are_part_of_what_a_run_is(photos, segment, tmp_path):
    tiles = TileConfig(size=64)
    first, heard = segment(tmp_path / "out", photos, tiles=tiles)
    again, _ = segment(tmp_path / "out", photos, tiles=tiles)
    assert heard.done == 3 and again == first and first["annotations"]
    with pytest.raises(InputError, match="tiles"):
        segment(tmp_path / "out", photos)


def test_everything_in_photos_needs_no_memory(photos, world, tmp_path):
    settings = MaskSettings(points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
    heard = Heard()
    options = {"sam2": world.sam2, "settings": settings, "formats": ("yolo",)}
    content = runs.segment_everything(tmp_path / "out", [photos], observer=heard, **options)
    assert heard.done == 3 and [c["name"] for c in content["categories"]] == ["object"]
    image = read_image(photos / "a.png")
    alone = generate_masks(load_sam2(world.sam2), image, settings)
    own = [a for a in content["annotations"] if a["image_id"] == 1]
    assert [a["segmentation"] for a in own] == [dict(rle) for rle in alone.rles] and len(own) == 27
    before = contents(tmp_path / "out")
    assert runs.segment_everything(tmp_path / "out", [photos], observer=heard, **options) == content
    assert heard.done == 3 and contents(tmp_path / "out") == before
    assert {"detections.json", "overlays/a.png", "masks/a/001_object.png"} <= {str(name) for name in before}
