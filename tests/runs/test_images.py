"""The durable run around a target pass that can be checked by eye: its detections are read off the image itself."""

import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_files import write_scenes
from PIL import Image

from ntt_jax.datasets import dataset as data_set
from ntt_jax.datasets.coco import load_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.images.photos import find_photos
from ntt_jax.images.reading import read_image
from ntt_jax.images.rle import encode_masks
from ntt_jax.runs import images as runner
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.segment_job import as_dataset

IDENTITY = {"what": "a test"}


class Observer:
    """Counts what is saved and keeps what is said."""

    def __init__(self):
        self.saved, self.notes = 0, []

    def step(self, count=1):
        self.saved += count

    def note(self, message):
        self.notes.append(message)

    def begin(self, what, total, *, done=0, unit="images"):
        pass

    def end(self):
        pass


class Stopped(Exception):
    """The target pass fails."""


def bright_pixels(image):
    """One detection: the pixels that stand out, with a score that no other image has."""
    mask = image.max(axis=2) > 195
    mask[0, 0] = True
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([[columns[0], rows[0], columns[-1], rows[-1]]], np.float32)
    score = np.array([image.astype(np.float64).mean() / 255], np.float32)
    return HostDetections(*image.shape[:2], box, score, np.zeros(1, np.int32), tuple(encode_masks(mask[None])))


def target_pass(window, fail_after=None, seen=None):
    """Works on whole windows, as the compiled pass does, reading ahead of what it gives out."""

    def predict(images):
        images = iter(images)
        for count in itertools.count():
            batch = list(itertools.islice(images, window))
            if not batch:
                return
            if seen is not None:
                seen.append([image.mean() for image in batch])
            for index, image in enumerate(batch):
                if fail_after is not None and count * window + index == fail_after:
                    raise Stopped
                yield bright_pixels(image)

    return predict


@pytest.fixture
def data(tmp_path):
    dataset = load_coco(write_scenes(tmp_path, 11, 5))
    return dataset, tmp_path / "images"


def segment(run, dataset, images, predict, todo, window, observer):
    """All of `todo`, `window` images at a time."""
    groups = runner.groups_to_do(list(dataset.images.values()), lambda image: image.id in todo, window)
    some = list(itertools.chain.from_iterable(groups))
    runner.segment_images(run, dataset, images, predict, images=some, todo=todo, window=window, observer=observer)


def work(lock, dataset, images, *, window=3, restart=False, **options):
    with RunFolder(lock, IDENTITY, restart=restart) as run:
        observer = Observer()
        todo = runner.unfinished(run.records, dataset, images)
        predict = target_pass(window, **options)
        try:
            segment(run, dataset, images, predict, todo, window, observer)
        finally:
            vars(observer)["finished"] = {i for i in dataset.images if i in run.records}
        truth = prepare_ground_truth(dataset, list(dataset.categories.values())[:1])
        return runner.write_outcome(run, dataset, truth), observer


@pytest.mark.parametrize("window", [1, 3, 4, 32])
def test_every_image_gets_its_own_detections(tmp_path, data, window):
    dataset, images = data
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out") as lock:
        metrics, observer = work(lock, dataset, images, window=window)
    assert observer.saved == 11 and metrics["images"] == metrics["detections"] == 11
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["image_id"] for entry in results] == sorted(dataset.images)
    for entry in results:
        with Image.open(images / dataset.images[entry["image_id"]].file_name) as picture:
            expected = bright_pixels(np.asarray(picture))
        assert np.float32(entry["score"]) == expected.scores[0]
        assert entry["segmentation"] == expected.rles[0]
        x1, y1, x2, y2 = expected.boxes[0]
        assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]  # METHOD 3.8: inclusive corners, no + 1


@pytest.mark.parametrize("fail_after", range(11))
def test_stopped_anywhere_it_goes_on_in_the_same_places(tmp_path, data, fail_after):
    dataset, images = data
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole_batches, batches = [], []
    with FolderLock(tmp_path / "whole") as lock:
        work(lock, dataset, images, seen=whole_batches)
    with FolderLock(tmp_path / "stopped") as lock:
        with pytest.raises(Stopped):
            work(lock, dataset, images, fail_after=fail_after)
        with RunFolder(lock, IDENTITY) as run:
            # Even the finished images of the batch in which it stopped are saved.
            assert len(run.records) == fail_after
        _, observer = work(lock, dataset, images, seen=batches)
    assert observer.saved == 11 - fail_after
    # The batches are those of the whole run, from the one on in which it stopped.
    assert batches == whole_batches[fail_after // 3 :]
    for name in ("results.json", "metrics.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_unreadable_images_are_skipped_and_move_nothing(tmp_path, data):
    dataset, images = data
    entries = list(dataset.images.values())
    (tmp_path / "out").mkdir()
    keep = (images / entries[1].file_name).read_bytes()
    (images / entries[1].file_name).unlink()
    (images / entries[3].file_name).write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(images / entries[10].file_name)
    batches = []
    with FolderLock(tmp_path / "out") as lock:
        metrics, observer = work(lock, dataset, images, seen=batches)
        assert [len(batch) for batch in batches] == [3, 3, 3, 2]
        expected = {entries[i].file_name for i in (1, 3, 10)}
        assert {s["file_name"] for s in metrics["skipped"]} == expected
        assert len(observer.notes) == 3 and observer.saved == 11 and metrics["detections"] == 8
        # Started again nothing is done; a picture that has been put right is, and nothing else.
        _, observer = work(lock, dataset, images, seen=(again := []))
        assert again == [] and observer.saved == 0
        (images / entries[1].file_name).write_bytes(keep)
        metrics, observer = work(lock, dataset, images, seen=(again := []))
        assert len(again) == 1 and observer.saved == 1 and metrics["detections"] == 9


def test_no_detection_at_all(tmp_path, data):
    dataset, images = data
    (tmp_path / "out").mkdir()

    def nothing(pictures):
        for picture in pictures:
            yield HostDetections(*picture.shape[:2], np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32), ())

    with FolderLock(tmp_path / "out") as lock, RunFolder(lock, IDENTITY) as run:
        todo = runner.unfinished(run.records, dataset, images)
        segment(run, dataset, images, nothing, todo, 2, Observer())
        metrics = runner.write_outcome(run, dataset, prepare_ground_truth(dataset, list(dataset.categories.values())))
    assert metrics["detections"] == 0 and metrics["bbox"]["AP"] == 0 and metrics["images"] == 11
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []


def test_a_run_folder_that_is_removed_is_noticed(tmp_path, data):
    dataset, images = data
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out") as lock, RunFolder(lock, IDENTITY) as run:

        def remove(pictures):
            for picture in pictures:
                run.records.path.unlink(missing_ok=True)
                yield bright_pixels(picture)

        with pytest.raises(InputError, match="was removed while the run was writing"):
            segment(run, dataset, images, remove, set(dataset.images), 2, Observer())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_goes_away_is_not_the_fault_of_the_images(tmp_path, data, monkeypatch, number):
    """No image is called unreadable; what was done before is saved, and the run ends as if nothing had happened."""
    dataset, images = data
    for name in ("whole", "lost"):
        (tmp_path / name).mkdir()
    with FolderLock(tmp_path / "whole") as lock:
        work(lock, dataset, images)
    lost = dataset.image_path(images, list(dataset.images)[5])

    def read(path, **more):
        if path != lost:
            return read_image(path, **more)
        try:
            raise OSError(number, os.strerror(number), str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot read the image: {error.strerror}") from error

    with FolderLock(tmp_path / "lost") as lock:
        monkeypatch.setattr(data_set, "read_image", read)
        with pytest.raises(OSError) as caught:
            work(lock, dataset, images)
        assert caught.value.errno == number and caught.value.filename == str(lost)
        monkeypatch.undo()
        with RunFolder(lock, IDENTITY) as run:
            assert len(run.records) == 3  # the window before the one that could not be read
            assert not any(run.records.skipped(i) for i in dataset.images if i in run.records)
        work(lock, dataset, images)
    assert (tmp_path / "lost" / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()


def test_an_image_folder_that_goes_away(tmp_path, data):
    dataset, images = data
    (tmp_path / "out").mkdir()

    def remove(pictures):
        for picture in pictures:
            if images.exists():
                images.rename(tmp_path / "unmounted")
            yield bright_pixels(picture)

    with FolderLock(tmp_path / "out") as lock, RunFolder(lock, IDENTITY) as run:
        with pytest.raises(InputError, match="the image folder has gone"):
            segment(run, dataset, images, remove, set(dataset.images), 1, Observer())
        assert len(run.records) and not any(run.records.skipped(i) for i in dataset.images if i in run.records)


def test_an_image_folder_without_any_of_the_images(tmp_path, data):
    dataset, images = data
    runner.check_images(dataset, images)
    with pytest.raises(InputError, match="none of the 11 images"):
        runner.check_images(dataset, tmp_path)


@pytest.mark.parametrize("size", [1, 4])
def test_groups_are_whole_and_have_something_to_do(size):
    items, done = range(30), {3, 8, 9, 10, 11, 29}
    groups = runner.groups_to_do(items, lambda item: item not in done, size)
    together = [item for group in groups for item in group]
    assert together == sorted(set(together)) and set(together) >= set(items) - done
    for group in groups:
        assert set(group) - done and group == [i for i in items if i // size == group[0] // size]


def test_photos_whose_folder_a_worker_lacks(tmp_path, data):
    """They end the run by name; none of them is called unreadable."""
    images = data[1]
    dataset, ids, _ = as_dataset(find_photos([images]), "upright")
    image = dataset.images[next(iter(ids.values()))]
    assert not isinstance(runner.read_checked(dataset, Path(), image), str)
    images.rename(tmp_path / "on another machine")
    with pytest.raises(InputError, match=f"{images}: the image folder has gone"):
        runner.read_checked(dataset, Path(), image)
