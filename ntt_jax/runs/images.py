"""The durable run: every image of a data set through the target pass, each result on the disk before the next batch.

The images are taken in the annotation file's order in groups of one device's batch. An image keeps its place in its
group whatever was finished before, whatever cannot be read and however the groups are shared out among devices, so
every run computes every image in the same place of the same batch, and ends in the same bytes.
"""

import errno
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.datasets.dataset import CocoDataset, CocoImage
from ntt_jax.detection.boxes import NONE, BoxedImage
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth, evaluate_detections
from ntt_jax.evaluation.results import ImageDetections, image_record, parse_record, write_results
from ntt_jax.files import show_path, write_json
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.remote import Address, Location
from ntt_jax.images.trial import Fatal, fatal
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.observer import Observer
from ntt_jax.runs.records import RecordFile

# Stands in for an image that cannot be read, so that the others of its batch stay where they are.
_BLANK = np.zeros((64, 64, 3), np.uint8)

# What reading says when a network file system or a disk is gone.
_LOST = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENODEV", "ENXIO")
    if hasattr(errno, name)
}


_LOOKS = 8
"""Images of a folder elsewhere that are looked for before the work begins."""

Item = TypeVar("Item")

Predict = Callable[[Iterable[Any]], Iterator[HostDetections]]
"""The target pass: images uint8 `[H, W, 3]` in, their detections out, in order (`pipeline.Predictor`)."""

Boxes = Mapping[int, np.ndarray]
"""Rows `[n, 5]` of boxes that are prompts, by image id (`detection.boxes`)."""


def check_images(dataset: CocoDataset, folder: Location) -> None:
    """Raise `InputError` if there is nothing to do: no image in the annotation file, or none of them in `folder`."""
    if not dataset.images:
        raise InputError(f"{show_path(dataset.path)}: lists no image")
    if isinstance(folder, Address):
        _check_address(dataset, folder)
        return
    if not any(dataset.image_path(folder, image_id).exists() for image_id in dataset.images):
        first = next(iter(dataset.images.values())).file_name
        raise InputError(
            f"{show_path(folder)}: none of the {len(dataset.images)} images of {show_path(dataset.path)} is here "
            f"(the first is {show_path(first)}); give the folder that their names start from"
        )


def _check_address(dataset: CocoDataset, folder: Address) -> None:
    """`check_images` for a folder elsewhere, where every look is a request: one of the first images must be there."""
    error = None
    for image_id in itertools.islice(dataset.images, _LOOKS):
        try:
            if dataset.image_path(folder, image_id).exists():
                return
        except InputError as caught:  # some stores say so of what is not there
            error = error or caught
            if isinstance(caught.__cause__, OSError) and caught.__cause__.errno in _LOST:
                raise
    if error is not None:
        raise error
    count, first = min(_LOOKS, len(dataset.images)), next(iter(dataset.images.values())).file_name
    raise InputError(
        f"{folder}: none of the first {count} images of {show_path(dataset.path)} is there (the first is "
        f"{show_path(first)}); give the folder that their names start from"
    )


def unfinished(records: RecordFile, dataset: CocoDataset, folder: Location) -> set[int]:
    """Ids of the images that are still to do: those without a record, and skipped ones that can be read by now."""

    def readable(image: CocoImage) -> bool:
        apart = bool(records.read(image.id).get("fatal"))
        return not isinstance(read_checked(dataset, folder, image, apart=apart), str)

    return {
        image.id
        for image in dataset.images.values()
        if image.id not in records or (records.skipped(image.id) and readable(image))
    }


def groups_to_do(items: Sequence[Item], todo: Callable[[Item], bool], size: int) -> list[list[Item]]:
    """The groups of `size` consecutive items that have anything `todo`, whole, so that each item keeps its place."""
    groups = [list(items[start : start + size]) for start in range(0, len(items), size)]
    return [group for group in groups if any(map(todo, group))]


def segment_images(
    run: RunFolder,
    dataset: CocoDataset,
    folder: Location,
    predict: Predict,
    *,
    images: Sequence[CocoImage],
    todo: set[int],
    window: int,
    observer: Observer,
    record: Callable[[int, Any], dict[str, Any]] = image_record,
    boxes: Boxes | None = None,
) -> None:
    """Segment the images that are in `todo` and append one record for each to `run.records`.

    predict: the target pass; gives one result per image, in order. images: whole groups (`groups_to_do`). window:
    images worked on at once, by all devices. An image that is missing, broken, or not of the size that the annotation
    file says is recorded as skipped with the reason. Whatever ends this early, what is finished is saved.
    record: makes the record of an image, by its id, of what `predict` found. boxes: if `predict` takes them.
    """
    fed: deque[tuple[CocoImage, str | None]] = deque()  # filled ahead of the results, perhaps by another thread

    def pixels() -> Iterator[np.ndarray | BoxedImage]:
        ahead = map_ahead(lambda image: read_checked(dataset, folder, image), images, ahead=window)
        for image, read in zip(images, ahead, strict=True):
            fed.append((image, read if isinstance(read, str) else None))
            yield _prompted(image, read, boxes)

    finished: list[dict[str, Any]] = []

    def save() -> None:
        batch = finished.copy()
        finished.clear()  # first, so that nothing is written twice if the writing is interrupted
        run.records.append(batch)
        observer.step(len(batch))

    try:
        for count, found in enumerate(predict(pixels()), 1):
            image, reason = fed.popleft()
            if image.id in todo:
                if reason is not None:
                    observer.note(f"skipped: {reason}")
                finished.append(
                    record(image.id, found) if reason is None else {"image_id": image.id, "skipped": reason}
                )
            if count % window == 0:
                save()
    finally:
        save()


@dataclass(frozen=True)
class ImageWork:
    """Groups of images as work that another process can be sent (`cluster.map_groups`): `segment_images` without files.

    target: makes the target pass for a `Compute`. dataset, folder, record, boxes: as `segment_images`.
    """

    target: Any
    dataset: CocoDataset
    folder: Location
    record: Callable[[int, Any], dict[str, Any]]
    boxes: Boxes | None = None

    def load(self, compute: Any) -> Predictor:
        """The target pass."""
        return self.target.load(compute)

    def read(self, group: Sequence[CocoImage], apart: bool) -> list[np.ndarray | str]:
        """The images of a group, or why one cannot be used."""
        read = functools.partial(read_checked, self.dataset, self.folder, apart=apart)
        return list(map_ahead(read, group, ahead=len(group)))

    def do(
        self, models: Predictor, group: Sequence[CocoImage], read: Sequence[np.ndarray | str]
    ) -> list[dict[str, Any]]:
        """One record for each image of a group."""
        found = models.group([_prompted(image, one, self.boxes) for image, one in zip(group, read, strict=True)])
        return [
            _skipped(image, one) if isinstance(one, str) else self.record(image.id, detections)
            for image, one, detections in zip(group, read, found, strict=True)
        ]

    def lost(self, group: Sequence[CocoImage], reason: str) -> list[dict[str, Any]]:
        """The images of a group, skipped."""
        return [
            _skipped(image, Fatal(f"{show_path(self.dataset.image_path(self.folder, image.id))}: {reason}"))
            for image in group
        ]


def _prompted(image: CocoImage, read: np.ndarray | str, boxes: Boxes | None) -> np.ndarray | BoxedImage:
    """An image as the target pass takes it, with its boxes if there are any to take."""
    pixels = _BLANK if isinstance(read, str) else read
    return pixels if boxes is None else BoxedImage(pixels, boxes.get(image.id, NONE))


def _skipped(image: CocoImage, reason: str) -> dict[str, Any]:
    return {"image_id": image.id, "skipped": str(reason), **({"fatal": True} if isinstance(reason, Fatal) else {})}


def read_checked(dataset: CocoDataset, folder: Location, image: CocoImage, *, apart: bool = False) -> np.ndarray | str:
    """The image, uint8 `[H, W, 3]`, or in one line why it cannot be used (broken, missing, of another size).

    apart: another process reads it first, and one that ends that process is `Fatal`.
    """
    path = dataset.image_path(folder, image.id)
    if apart and (how := fatal(path)) is not None:
        return Fatal(f"{show_path(path)}: a process that reads it {how}")
    try:
        return dataset.read_image(folder, image.id)
    except InputError as error:
        # The image may be sound: without its file system, every one after it would be called unreadable too.
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _LOST:
            raise OSError(error.__cause__.errno, error.__cause__.strerror, str(path)) from error
        # Photos have been found by their whole paths: another machine may have none of them.
        home = path.parent if isinstance(path, Path) and os.path.isabs(dataset.files.get(image.id, "")) else folder
        if isinstance(home, Path) and not home.is_dir():
            raise InputError(f"{show_path(home)}: the image folder has gone; start again when it is back") from error
        return str(error)


def detections(run: RunFolder, dataset: CocoDataset) -> Iterator[ImageDetections]:
    """The recorded detections by ascending image id, read from the disk one by one; skipped images are left out."""
    for image_id in sorted(dataset.images):
        if not run.records.skipped(image_id):
            record = run.records.read(image_id)
            yield parse_record(record, f"{show_path(run.folder)}: record of image {image_id}")


def skipped_images(run: RunFolder, dataset: CocoDataset) -> list[dict[str, Any]]:
    """The images that were skipped and why, by ascending id: `{"image_id", "file_name", "reason"}`."""
    records = [run.records.read(image_id) for image_id in sorted(dataset.images) if run.records.skipped(image_id)]
    return [
        {
            "image_id": dataset.image_ids.get(r["image_id"], r["image_id"]),
            "file_name": dataset.images[r["image_id"]].file_name,
            "reason": r["skipped"],
        }
        for r in records
    ]


def write_outcome(
    run: RunFolder, dataset: CocoDataset, ground_truth: GroundTruth, scorer: str = "hotcoco"
) -> dict[str, Any]:
    """Write results.json and metrics.json of a run whose images all have a record; returns the metrics.

    Both depend on the records and the run's identity alone, not on when and on what the run was computed. The objects
    of skipped images count as missed.
    """
    category_ids = [category.id for category in ground_truth.categories]
    write_results(run.results, detections(run, dataset), category_ids, dataset)
    metrics = evaluate_detections(ground_truth, detections(run, dataset), scorer=scorer)
    if notes := dataset.notes + ground_truth.notes:
        metrics["notes"] = list(notes)
    metrics["skipped"] = skipped_images(run, dataset)
    metrics["provenance"] = run.identity
    write_json(run.metrics, metrics)
    return metrics
