"""The project of a folder of photos: plain files in `FOLDER/ntt-jax`, written as things happen.

    references.json, negatives.json   COCO annotations: what looks like a class, and what only seems to
    memory.safetensors                the memory of them, as every command takes it
    thresholds.json                   the score from which a detection counts, by class
    found/                            the run of `ntt-jax segment` over the photos
    exports/                          what was exported, a folder or file per format

One program at a time holds the folder's lock. Every change is on the disk before it is answered.
"""

import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.datasets.coco import load_coco
from ntt_jax.detection.thresholds import read_thresholds
from ntt_jax.errors import InputError
from ntt_jax.files import make_folder, remove_temporaries, show_path, write_json
from ntt_jax.images.photos import photos_of_folder
from ntt_jax.images.rle import Rle, rle_areas, rle_boxes
from ntt_jax.runs.lock import FolderLock

NAME = "ntt-jax"
Kind = Literal["reference", "negative"]
_FILES: dict[Kind, str] = {"reference": "references.json", "negative": "negatives.json"}
_MAX_NAME = 100


@dataclass(frozen=True)
class Photo:
    """A photo of the folder. id: of its name, the same at every start. name: relative to the folder."""

    id: str
    name: str
    path: Path


@dataclass(frozen=True)
class Reference:
    """One instance that somebody showed: annotation id, photo, class, mask of the photo's upright size."""

    id: int
    kind: Kind
    photo: str
    class_name: str
    mask: Rle

    @property
    def digest(self) -> str:
        """What its feature depends on, beside the photo's pixels."""
        return hashlib.sha256(json.dumps([self.photo, self.mask]).encode()).hexdigest()[:16]


class Project:
    """The project in a folder, locked until `close`. Threads may share one.

    Raises `InputError`: no photo in the folder, another program works in it, or a file of it is unsound.
    """

    def __init__(self, folder: Path):
        photos = photos_of_folder(folder, output=folder / NAME)
        self.folder, self.home, self.notes = folder, folder / NAME, photos.notes
        self.photos = {photo.id: photo for photo in (_photo(folder, path) for path in photos.files)}
        make_folder(self.home, folder)
        self._lock = FolderLock(self.home)
        try:
            remove_temporaries(self.home)
            self._changing = threading.RLock()
            self._ids = {photo.name: photo.id for photo in self.photos.values()}
            self._categories: dict[str, int] = {}
            self._images: dict[str, int] = {}
            self._references: dict[int, Reference] = {}
            for kind, name in _FILES.items():
                self._load(kind, self.home / name)
            self._thresholds = self._load_thresholds()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder free."""
        self._lock.__exit__(None, None, None)

    @property
    def memory(self) -> Path:
        """Where the memory file is, or will be."""
        return self.home / "memory.safetensors"

    @property
    def references(self) -> Mapping[int, Reference]:
        """All of both kinds by id, oldest first."""
        with self._changing:
            return MappingProxyType(dict(self._references))

    @property
    def categories(self) -> Mapping[str, int]:
        """Category id of every class that has ever had a reference, in the order in which they came."""
        with self._changing:
            return MappingProxyType(dict(self._categories))

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The classes that have a threshold of their own."""
        with self._changing:
            return MappingProxyType(dict(self._thresholds))

    def threshold(self, name: str) -> float:
        """The score from which detections of a class count."""
        with self._changing:
            return self._thresholds.get(name, DEFAULT_THRESHOLD)

    def photo(self, id: str) -> Photo:
        """The photo of an id. Raises `InputError`."""
        try:
            return self.photos[id]
        except KeyError:
            raise InputError(f"no photo has the id {id!r:.40}") from None

    def add(self, kind: Kind, photo: Photo, class_name: str, mask: Rle) -> Reference:
        """Write one more reference down. Raises `InputError` for a name that is none, or an empty mask."""
        name = " ".join(class_name.split())
        if not name or len(name) > _MAX_NAME or not name.isprintable():
            raise InputError(f"expected a class name of 1 to {_MAX_NAME} characters, found {class_name!r:.40}")
        if not rle_areas([mask])[0]:
            raise InputError("the mask is empty")
        with self._changing:
            self._categories.setdefault(name, _next(self._categories.values()))
            self._images.setdefault(photo.name, _next(self._images.values()))
            reference = Reference(_next(self._references), kind, photo.name, name, mask)
            self._references[reference.id] = reference
            try:
                self._save(kind)
            except BaseException:
                del self._references[reference.id]
                raise
            return reference

    def remove(self, id: int) -> Reference:
        """Strike one out. Raises `InputError` if it is not there (any more)."""
        with self._changing:
            reference = self._references.pop(id, None)
            if reference is None:
                raise InputError(f"no reference has the id {id}; somebody may have removed it in another window")
            try:
                self._save(reference.kind)
            except BaseException:
                self._references = dict(sorted({**self._references, id: reference}.items()))
                raise
            return reference

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Keep thresholds of these classes, in place of theirs before."""
        with self._changing:
            if unknown := [name for name in thresholds if name not in self._categories]:
                raise InputError(f"no class is called {unknown[0]!r:.60}")
            changed = self._thresholds | {name: float(value) for name, value in thresholds.items()}
            write_json(self.home / "thresholds.json", {"thresholds": changed})
            self._thresholds = changed

    def by_class(self, kind: Kind) -> dict[str, list[Reference]]:
        """The references of one kind, oldest first, by class."""
        found: dict[str, list[Reference]] = {}
        for reference in self.references.values():
            if reference.kind == kind:
                found.setdefault(reference.class_name, []).append(reference)
        return found

    def path_of(self, reference: Reference) -> Path:
        """The file of its photo. Raises `InputError` if that is no longer among the photos."""
        if reference.photo not in self._ids:
            raise InputError(f"{show_path(reference.photo)}: the photo of a reference is no longer in the folder")
        return self.photos[self._ids[reference.photo]].path

    def id_of(self, reference: Reference) -> str | None:
        """The id of its photo, None if that is no longer there."""
        return self._ids.get(reference.photo)

    def _load(self, kind: Kind, path: Path) -> None:
        if not os.path.lexists(path):  # a link that leads nowhere is refused when it is read
            return
        dataset = load_coco(path)
        for category in dataset.categories.values():
            if self._categories.setdefault(category.name, category.id) != category.id:
                raise InputError(f"{show_path(path)}: class {category.name!r:.60} has another id in references.json")
        for image in dataset.images.values():
            if self._images.setdefault(image.file_name, image.id) != image.id:
                raise InputError(f"{show_path(path)}: image {image.file_name!r:.60} has another id in references.json")
        for annotation in dataset.annotations.values():
            if annotation.id in self._references:
                raise InputError(f"{show_path(path)}: annotation {annotation.id} is in references.json already")
            self._references[annotation.id] = Reference(
                annotation.id,
                kind,
                dataset.images[annotation.image_id].file_name,
                dataset.categories[annotation.category_id].name,
                dataset.rle(annotation),
            )
        self._references = dict(sorted(self._references.items()))

    def _load_thresholds(self) -> dict[str, float]:
        path = self.home / "thresholds.json"
        if not os.path.lexists(path):
            return {}
        return {name: value for name, value in read_thresholds(path).items() if name in self._categories}

    def _save(self, kind: Kind) -> None:
        chosen = [reference for reference in self._references.values() if reference.kind == kind]
        write_json(self.home / _FILES[kind], self._coco(chosen))

    def _coco(self, references: Iterable[Reference]) -> dict[str, Any]:
        references = list(references)
        sizes = {reference.photo: reference.mask["size"] for reference in references}
        areas, boxes = (f([r.mask for r in references]) if references else [] for f in (rle_areas, rle_boxes))
        return {
            "images": [
                {"id": self._images[name], "file_name": name, "height": height, "width": width}
                for name, (height, width) in sizes.items()
            ],
            "categories": [{"id": id, "name": name} for name, id in self._categories.items()],
            "annotations": [
                {
                    "id": reference.id,
                    "image_id": self._images[reference.photo],
                    "category_id": self._categories[reference.class_name],
                    "bbox": [float(value) for value in box],
                    "area": int(area),
                    "iscrowd": 0,
                    "segmentation": dict(reference.mask),
                }
                for reference, area, box in zip(references, areas, boxes, strict=True)
            ],
        }


def _next(ids: Collection[int]) -> int:
    """One more than the largest id; the first that is free, if that would be larger than JSON's numbers."""
    after = max(ids, default=0) + 1
    if 0 < after < 2**53:
        return after
    taken = set(ids)
    return next(i for i in range(1, len(taken) + 2) if i not in taken)


def _photo(folder: Path, path: Path) -> Photo:
    name = path.relative_to(folder).as_posix()
    return Photo(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12], name, path)
