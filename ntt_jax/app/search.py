"""The search through a project's photos: recorded as it goes, stopped and taken up at will.

A record holds everything that was found in a photo, low scores too, and of which memory and which file: another
threshold or export needs no new search, and what is up to date is not searched again.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ntt_jax.app.project import Photo
from ntt_jax.app.segment_folder import SegmentFolder
from ntt_jax.app.workbench import Workbench
from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.files import make_folder, show_path
from ntt_jax.formats import FORMATS, Classes, write_formats
from ntt_jax.formats import Photo as FormatPhoto
from ntt_jax.images.reading import read_image
from ntt_jax.runs.records import RecordFile
from ntt_jax.runs.segment_job import photo_id
from ntt_jax.segmenter.prediction import Prediction
from ntt_jax.segmenter.segmenter import Segmenter
from ntt_jax.text import one_line


class Search:
    """The results of a workbench's photos, and at most one thread that makes new ones.

    predicted: called after each photo. run: where the commands find what was found with the latest memory, and leave
    what they find. Threads may share one.
    """

    def __init__(
        self, bench: Workbench, predicted: Callable[[], None] = lambda: None, run: SegmentFolder | None = None
    ):
        self._bench, self._predicted, self._run = bench, predicted, run
        self._folder = bench.project.home / "found"
        make_folder(self._folder, bench.project.home)
        self._records = RecordFile(self._folder / "photos.records", key="photo")
        self._lock = threading.RLock()
        self._known: dict[str, dict[str, Any]] = {}  # without the masks, which stay on the disk
        self._versions = 0
        for number in self._records:
            record = self._records.read(number)
            if _is_sound(record):  # of another program otherwise: the photo counts as not searched
                self._note(record)
        self.revision = 0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._progress = _progress(0, 0)

    def close(self) -> None:
        """Stop, and close the file."""
        self.stop()
        self._records.close()

    @property
    def running(self) -> bool:
        """Whether photos are being searched."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, photos: Sequence[Photo]) -> None:
        """Search the photos that are not up to date. Raises `InputError` if a search runs, or there is no class."""
        with self._lock:
            if self.running:
                raise InputError("a search is running; stop it first")
            memory, segmenter = self._bench.snapshot()
            todo = [photo for photo in photos if not self._is_current(photo, memory)]
            self._stopping.clear()
            self._progress = _progress(len(photos) - len(todo), len(photos))
            self.revision += 1
            run = (todo, memory, segmenter)
            self._thread = threading.Thread(target=self._work, args=run, name="search", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the search after the photo in hand, and wait for it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def status(self) -> dict[str, Any]:
        """How far the search is, as JSON data."""
        shared = {"default_threshold": DEFAULT_THRESHOLD, "formats": list(FORMATS)}
        return {"running": self.running, **self._progress, **shared}

    def photo_status(self, photo: Photo) -> dict[str, Any]:
        """Of one photo: searched at all, with the memory of now, scores by class, why it cannot be read."""
        with self._lock:
            known = self._known.get(photo.id)
        if known is None or known["stamp"] != _stamp(photo):
            return {"searched": False, "current": False}
        return {
            "searched": True,
            "current": known["memory"] == self._bench.memory_sha256,
            "version": known["version"],
            "scores": known["scores"],
            "problem": str(known["skipped"]).removeprefix(f"{show_path(photo.path)}: ") if "skipped" in known else None,
        }

    def found(self, photo: Photo) -> Prediction | None:
        """Everything that was found in a photo; None if it has not been searched as it is now."""
        with self._lock:
            known = self._known.get(photo.id)
            if known is None or known["stamp"] != _stamp(photo) or "skipped" in known:
                return None
            record = self._records.read(_number(photo))
        detections = HostDetections.from_json(record["detections"], one_line(photo.name))
        ids = self._bench.project.categories
        names = tuple(record["classes"])
        if not all(0 <= label < len(names) for label in detections.labels):
            raise InputError(f"{one_line(photo.name)}: what was found in it is damaged; search it again")
        return Prediction(detections, names, tuple(ids.get(name, 0) for name in names), photo.path)

    def export(self, formats: Sequence[str]) -> str:
        """Write what was found, from each class's threshold on; returns the folder. Raises `InputError`."""
        if unknown := [name for name in formats if name not in FORMATS]:
            raise InputError(f"no format is called {unknown[0]!r:.40}; they are {', '.join(FORMATS)}")
        project = self._bench.project
        names = list(project.categories)
        photos: list[FormatPhoto] = []
        for photo in project.photos.values():
            found = self.found(photo)
            if found is None:
                continue
            least = np.array([project.threshold(name) for name in found.class_names], np.float32)
            kept = found.detections.select(found.scores >= least)
            # Records of several memories may number the classes differently.
            kept_names = [found.classes[label] for label in kept.labels]
            if not set(kept_names) <= set(names):
                raise InputError(f"{one_line(photo.name)}: holds a class that is not here any more; search it again")
            labels = [names.index(name) for name in kept_names]
            photos.append(
                FormatPhoto(
                    photo.name,
                    photo.path,
                    HostDetections(kept.height, kept.width, kept.boxes, kept.scores, np.array(labels), kept.rles),
                )
            )
        if not photos:
            raise InputError("nothing has been searched yet")
        folder = project.home / "exports"
        make_folder(folder, project.home)
        write_formats(folder, list(formats), photos, Classes(tuple(names), tuple(project.categories.values())))
        return str(folder.resolve())

    def _work(self, todo: Sequence[Photo], memory: str, segmenter: Segmenter) -> None:
        began, before = time.monotonic(), self._progress["done"]
        classes, fed = list(segmenter.classes), deque[dict[str, Any]]()

        def new_record(photo: Photo) -> dict[str, Any]:
            return {"photo": _number(photo), "name": photo.name, "memory": memory, "stamp": _stamp(photo)}

        def images() -> Iterator[np.ndarray]:
            for photo in todo:
                if self._stopping.is_set():
                    self._progress["stopped"] = True
                    return
                record = new_record(photo)
                try:
                    record["image_id"] = photo_id(photo.path)
                    image = read_image(photo.path)
                except InputError as error:
                    keep({**record, "skipped": str(error)})
                else:
                    fed.append(record)
                    yield image

        def keep(record: dict[str, Any]) -> None:
            with self._lock:
                self._records.append([record])
                self._note(record)
                done = self._progress["done"] = self._progress["done"] + 1
                left = self._progress["total"] - done
                self._progress["seconds_left"] = (time.monotonic() - began) / (done - before) * left
                self.revision += 1

        try:
            if self._run is not None:
                recorded: set[Photo] = set()
                for photo, detections in self._run.recorded(memory, todo):
                    id = detections.pop("image_id")
                    keep({**new_record(photo), "image_id": id, "classes": classes, "detections": detections})
                    recorded.add(photo)
                todo = [photo for photo in todo if photo not in recorded]
            for found in segmenter.predict(images()):
                keep({**fed.popleft(), "classes": classes, "detections": found.detections.to_json()})
                self._predicted()
            if self._run is not None:
                self._run.write(memory, self._current(memory))
        except Exception as error:  # a full disk, say: what was found is on it
            self._progress["problem"] = f"the search ended: {' '.join(str(error).split())[:300]}"
        finally:
            self.revision += 1

    def _current(self, memory: str) -> Iterator[tuple[Photo, dict[str, Any]]]:
        """What was found with a memory, or why a photo was skipped, in all photos that are as they were."""
        for photo in self._bench.project.photos.values():
            if self._is_current(photo, memory):
                record = self._records.read(_number(photo))
                found = {"skipped": record["skipped"]} if "skipped" in record else record["detections"]
                with contextlib.suppress(InputError):  # one that cannot be read at all has no number
                    id = record["image_id"] if "image_id" in record else photo_id(photo.path)
                    yield photo, {"image_id": id, **found}

    def _note(self, record: dict[str, Any]) -> None:
        scores: dict[str, list[float]] = {}
        if "skipped" not in record:
            for label, score in zip(record["detections"]["labels"], record["detections"]["scores"], strict=True):
                scores.setdefault(record["classes"][label], []).append(round(score, 3))
        known = {key: record[key] for key in ("memory", "stamp", "skipped") if key in record}
        self._versions += 1
        known["version"] = self._versions
        self._known[f"{record['photo']:012x}"] = {**known, "scores": scores}

    def _is_current(self, photo: Photo, memory: str) -> bool:
        known = self._known.get(photo.id)
        return known is not None and known["memory"] == memory and known["stamp"] == _stamp(photo)


def _is_sound(record: dict[str, Any]) -> bool:
    """Whether a record is one of `Search`, masks and boxes aside, which are checked when they are asked for."""
    if not isinstance(record.get("memory"), str) or not isinstance(record.get("stamp"), list):
        return False
    if type(record.get("image_id", 0)) is not int:
        return False
    if "skipped" in record:
        return isinstance(record["skipped"], str)
    classes, found = record.get("classes"), record.get("detections")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return False
    labels, scores = (found.get(key) if isinstance(found, dict) else None for key in ("labels", "scores"))
    if not isinstance(labels, list) or not isinstance(scores, list) or len(labels) != len(scores):
        return False
    numbers = all(type(score) in (int, float) and 0 <= score <= 1 for score in scores)
    return numbers and all(type(label) is int and 0 <= label < len(classes) for label in labels)


def _progress(done: int, total: int) -> dict[str, Any]:
    return {"done": done, "total": total, "stopped": False, "problem": None, "seconds_left": None}


def _number(photo: Photo) -> int:
    return int(photo.id, 16)


def _stamp(photo: Photo) -> list[int]:
    """What changes with the file: its size and time."""
    try:
        info = photo.path.stat()
    except OSError:
        return [0, 0]
    return [info.st_size, info.st_mtime_ns]
