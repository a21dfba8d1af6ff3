"""The project's plain files: written as things happen, read by other commands, never mixed."""

import contextlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from app_files import full_disk

from ntt_jax.app.project import Project
from ntt_jax.datasets.coco import load_coco
from ntt_jax.errors import InputError
from ntt_jax.images.reading import read_image
from ntt_jax.images.rle import encode_masks


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    return tmp_path


def mask(x=2, wide=5):
    found = np.zeros((20, 30), bool)
    found[3:9, x : x + wide] = True
    return encode_masks(found[None])[0]


def test_what_is_written_is_there_again(photos):
    project = Project(photos)
    a, b = project.photos.values()
    first = project.add("reference", a, " red   bus ", mask())
    second = project.add("reference", b, "bird", mask(5))
    negative = project.add("negative", a, "bird", mask(9))
    project.set_thresholds({"bird": 0.7})
    project.remove(first.id)
    project.close()

    again = Project(photos)
    assert dict(again.references) == {second.id: second, negative.id: negative}
    assert dict(again.categories) == {"red bus": 1, "bird": 2} and again.threshold("bird") == 0.7
    assert again.threshold("red bus") == 0.5
    assert [p.name for p in again.photos.values()] == ["a.png", "sub/b.png"]
    assert again.path_of(second) == photos / "sub/b.png"
    third = again.add("reference", a, "red bus", mask())
    assert third.id == negative.id + 1 and again.categories["red bus"] == 1
    again.close()

    dataset = load_coco(photos / "ntt-jax/references.json")  # as every command reads it
    assert [c.name for c in dataset.categories.values()] == ["red bus", "bird"]
    kept = dataset.annotations[second.id]
    assert kept.bbox == (5, 3, 5, 6) and dataset.images[kept.image_id].file_name == "sub/b.png"
    np.testing.assert_array_equal(dataset.mask(kept).sum(), 30)


def test_what_is_refused_changes_nothing(photos):
    project = Project(photos)
    a = next(iter(project.photos.values()))
    project.add("reference", a, "bird", mask())
    before = (photos / "ntt-jax/references.json").read_bytes()
    for name in ("", "  ", "x" * 101, "a\x1b[31mb", "\ud800"):
        with pytest.raises(InputError, match="class name"):
            project.add("reference", a, name, mask())
    with pytest.raises(InputError, match="empty"):
        project.add("reference", a, "bird", encode_masks(np.zeros((1, 20, 30), bool))[0])
    with pytest.raises(InputError, match="another window"):
        project.remove(99)
    with pytest.raises(InputError, match="no class"):
        project.set_thresholds({"cat": 0.5})
    for id in ("../../etc/passwd", "", "000000000000"):
        with pytest.raises(InputError, match="no photo"):
            project.photo(id)
    assert (photos / "ntt-jax/references.json").read_bytes() == before
    with pytest.raises(InputError, match="in use"):
        Project(photos)
    project.close()


@pytest.mark.parametrize("content", ["{", '{"images": []}', '{"thresholds": {"a": 2}}', "[]"])
def test_a_spoiled_file_is_named(photos, content):
    project = Project(photos)
    project.add("reference", next(iter(project.photos.values())), "bird", mask())
    project.close()
    name = "thresholds.json" if "thresholds" in content else "references.json"
    (photos / "ntt-jax" / name).write_text(content)
    with pytest.raises(InputError, match=name):
        Project(photos)
    (photos / "ntt-jax" / name).write_text(json.dumps({"thresholds": {}}) if "thresholds" in name else content)


def test_ids_that_cannot_grow(photos):
    """The largest id that is read has none after it: the first free one is taken, and the file can be read again."""
    last = 2**63 - 1
    content = {
        "images": [{"id": last, "file_name": "elsewhere.png", "height": 40, "width": 60}],
        "categories": [{"id": last, "name": "bird"}],
        "annotations": [
            {
                "id": last,
                "image_id": last,
                "category_id": last,
                "bbox": [1, 1, 9, 9],
                "segmentation": [[1, 1, 9, 1, 9, 9]],
            }
        ],
    }
    (photos / "ntt-jax").mkdir()
    (photos / "ntt-jax" / "references.json").write_text(json.dumps(content))
    with contextlib.closing(Project(photos)) as project:
        photo = next(iter(project.photos.values()))
        added = project.add("reference", photo, "boat", mask())
        assert added.id == 1 and project.categories == {"bird": last, "boat": 1}
    with contextlib.closing(Project(photos)) as project:
        assert list(project.references) == [1, last]


def test_a_full_disk_leaves_all_as_it_was(photos):
    project = Project(photos)
    photo = next(iter(project.photos.values()))
    first = project.add("reference", photo, "bird", mask())
    project.set_thresholds({"bird": 0.3})
    before = {path: path.read_bytes() for path in project.home.iterdir() if path.is_file()}
    with full_disk(10):
        for change in (
            lambda: project.add("reference", photo, "bird", mask(9)),
            lambda: project.add("negative", photo, "bird", mask(9)),
            lambda: project.remove(first.id),
            lambda: project.set_thresholds({"bird": 0.9}),
        ):
            with pytest.raises(InputError, match="cannot be written: File too large"):
                change()
    assert dict(project.references) == {first.id: first} and project.threshold("bird") == 0.3
    assert {path: path.read_bytes() for path in project.home.iterdir() if path.is_file()} == before
    project.close()


def test_a_project_is_no_way_out_of_the_folder(photos, tmp_path_factory):
    """Links among the photos are followed, as everywhere; where the project writes, none is."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.txt").write_text("not a photo")
    (photos / "link.png").symlink_to(elsewhere / "secret.txt")
    (photos / "out").symlink_to(elsewhere, target_is_directory=True)
    project = Project(photos)
    assert [photo.name for photo in project.photos.values()] == ["a.png", "link.png", "sub/b.png"]
    with pytest.raises(InputError, match="not an image"):
        read_image(photos / "link.png")
    for id in ("../a.png", "/etc/passwd", "a.png", ""):
        with pytest.raises(InputError, match="no photo has the id"):
            project.photo(id)
    project.close()

    shutil.rmtree(photos / "ntt-jax")
    (photos / "ntt-jax").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(InputError, match="symbolic link"):
        Project(photos)
    (photos / "ntt-jax").unlink()
    (photos / "ntt-jax").mkdir()
    (photos / "ntt-jax" / "references.json").symlink_to(elsewhere / "secret.txt")
    with pytest.raises(InputError, match=r"references\.json"):
        Project(photos)
    assert [path.name for path in elsewhere.iterdir()] == ["secret.txt"]


def test_a_folder_that_cannot_be_written(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "ntt-jax").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder"):
        Project(tmp_path)


def test_many_windows_at_once(photos):
    """What all of them wrote is there, in memory and on the disk."""
    project = Project(photos)
    photo = next(iter(project.photos.values()))
    project.add("reference", photo, "bird", mask())

    def change(number):
        project.set_thresholds({"bird": number / 40})
        return project.add("negative", photo, "bird", mask(number % 20)).id

    with ThreadPoolExecutor(8) as windows:
        ids = list(windows.map(change, range(40)))
    assert len(set(ids)) == 40
    threshold, known = project.threshold("bird"), dict(project.references)
    project.close()
    again = Project(photos)
    assert dict(again.references) == known and again.threshold("bird") == threshold
    again.close()
