"""What `ntt-jax segment` writes of its records: one COCO file, a PNG per mask, an overlay per photo, and formats."""

import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.detection.thresholds import choose
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import coco_results, parse_record
from ntt_jax.files import TEMPORARY, describe, make_folder, remove_temporaries, show_path, write_bytes
from ntt_jax.formats import FORMATS, Classes, Photo, write_formats
from ntt_jax.images.drawing import overlay, save_picture
from ntt_jax.images.polygons import POLYGON_ERROR
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.reading import read_header, read_image
from ntt_jax.images.remote import Location
from ntt_jax.images.rle import decode_rle, rle_areas
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.notes import Notes
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.observer import Observer, warn, work

PICTURES = ("masks", "overlays")
OVERLAY_SIDE = 2048
"""Overlays of larger images are made smaller, to at most this many pixels a side; masks never are."""
_TOGETHER = 64  # masks drawn together where there may be hundreds

_UPRIGHT = "without --exif raw they lie as the tools show them"


def check_pictures(names: Collection[str]) -> tuple[str, ...]:
    """The names. Raises `InputError` for one that is not of `PICTURES`."""
    if unknown := [name for name in names if name not in PICTURES]:
        raise InputError(f"pictures: expected some of {', '.join(PICTURES)}, found {describe(unknown[0])}")
    return tuple(names)


@dataclass(frozen=True)
class Shown:
    """What is written of what was found.

    thresholds: float32 `[K]`, the lowest score of each class. classes: indices of the classes to write, all if None.
    pictures: some of `PICTURES`. formats: names of `ntt_jax.formats.FORMATS`. polygon_error: theirs, in pixels.
    by_instance: overlays show every mask in a colour of its own and no names, for masks without classes.
    """

    thresholds: np.ndarray
    classes: tuple[int, ...] | None
    pictures: tuple[str, ...]
    formats: tuple[str, ...] = ()
    polygon_error: float = POLYGON_ERROR
    by_instance: bool = False


@dataclass(frozen=True)
class Categories:
    """Names and COCO category ids by class index, as a memory has them."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """The records of photos.

    photos: by the names of the output, the file of each and its id in `run.records`. unread: why the other ones, by
    name, could not be read. exif: how photos with an orientation are read.
    """

    run: RunFolder
    photos: Mapping[str, tuple[Location, int]]
    unread: Mapping[str, str]
    exif: str

    def detections(self, shown: Shown) -> Iterator[tuple[str, Location, HostDetections]]:
        """Name, file and what is shown of each photo, one after the other from the disk."""
        for name, (path, image_id) in self.photos.items():
            if name not in self.unread:
                where = f"{show_path(self.run.folder)}: record of {show_path(name)}"
                _, found = parse_record(self.run.records.read(image_id), where)
                yield name, path, choose(found, shown.thresholds, shown.classes)


def write_output(
    out: Path,
    found: Found,
    bank: MemoryBank | Categories,
    shown: Shown,
    observer: Observer,
    *,
    whole: bool = True,
) -> dict[str, Any]:
    """Write pictures, formats and detections.json. All of it depends on the records alone.

    What is found passes through, one photo after the other, however many there are. Returns the content of
    detections.json; whole: with its "annotations", otherwise with "counts" in their place, by category id.

    Raises `InputError` if a file cannot be written, or a photo that is to be drawn cannot be read any more.
    """
    _remove_temporaries(out)
    images: list[dict[str, Any]] = []

    def listed() -> Iterator[tuple[str, Location, HostDetections]]:
        for image_id, (name, path, detections) in enumerate(found.detections(shown), 1):
            size = {"height": detections.height, "width": detections.width}
            images.append({"id": image_id, "file_name": name, **size})
            yield name, path, detections

    if shown.pictures:
        draw = functools.partial(_draw, out, bank.class_names, shown, found.exif)
        with work(observer, "pictures", len(found.photos) - len(found.unread)):
            for _ in map_ahead(draw, listed(), ahead=8):
                observer.step()
    else:
        for _ in listed():
            pass
    if shown.formats:
        with work(observer, "formats", len(shown.formats) * len(images)):
            _write_formats(out, found, bank, shown, observer)
    counts: Counter[int] = Counter()
    kept: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        entries = (
            entry
            for image_id, (_, _, detections) in enumerate(found.detections(shown), 1)
            for entry in coco_results(detections, image_id, bank.category_ids)
        )
        for number, entry in enumerate(entries, 1):
            area = int(rle_areas([entry["segmentation"]])[0])
            counts[entry["category_id"]] += 1
            made = {"id": number, **entry, "area": area, "iscrowd": 0}
            if whole:
                kept.append(made)
            yield made

    content: dict[str, Any] = {
        "images": images,
        "annotations": annotations(),
        "categories": [{"id": i, "name": n} for i, n in zip(bank.category_ids, bank.class_names, strict=True)],
        "skipped": [{"file_name": name, "reason": found.unread[name]} for name in found.photos if name in found.unread],
    }
    write_bytes(out / "detections.json", _json_of_lists(content))
    if whole:
        content["annotations"] = kept
    else:
        del content["annotations"]
        content["counts"] = dict(counts)
    return content


def _json_of_lists(content: Mapping[str, Iterable[dict[str, Any]]]) -> Iterator[bytes]:
    """The bytes of `files.write_json`, entry by entry."""
    begin = "{"
    for name, entries in content.items():
        yield f"{begin}\n  {json.dumps(name)}: ".encode()
        begin, mark = ",", "["
        for entry in entries:
            text = json.dumps(entry, indent=2, allow_nan=False).replace("\n", "\n    ")
            yield f"{mark}\n    {text}".encode()
            mark = ","
        yield b"[]" if mark == "[" else b"\n  ]"
    yield b"\n}\n"


def _write_formats(out: Path, found: Found, bank: MemoryBank | Categories, shown: Shown, observer: Observer) -> None:
    classes, notes = Classes(tuple(bank.class_names), tuple(bank.category_ids)), Notes()
    write_formats(out, shown.formats, _Photos(found, shown, observer), classes, notes)
    if found.exif == "raw":
        for name, (path, _) in found.photos.items():
            if name not in found.unread and read_header(path).orientation != 1:
                notes.add("photos that other tools turn upright, while their objects lie as stored", name, _UPRIGHT)
    for line in notes.lines():
        warn(observer, line)


@dataclass(frozen=True)
class _Photos:
    """What is shown of the photos, from the disk each time it is gone through."""

    found: Found
    shown: Shown
    observer: Observer

    def __iter__(self) -> Iterator[Photo]:
        for name, path, detections in self.found.detections(self.shown):
            yield Photo(name, path, detections, self.shown.polygon_error)
            self.observer.step()


def _remove_temporaries(out: Path) -> None:
    """Remove what an earlier start that was killed has left half-written below the folder."""
    for folder in (out / name for name in (*PICTURES, *FORMATS)):
        if not folder.is_symlink():
            for below in {left.parent for left in folder.rglob(TEMPORARY)}:
                remove_temporaries(below)


def _draw(
    out: Path,
    class_names: tuple[str, ...],
    shown: Shown,
    exif: str,
    photo: tuple[str, Location, HostDetections],
) -> None:
    """One PNG per mask in masks/NAME/ and the overlay in overlays/NAME.png; those of an earlier start are replaced."""
    name, path, detections = photo
    stem = PurePosixPath(name).with_suffix("")
    if "masks" in shown.pictures:
        make_folder(out / "masks" / stem, out)
        write_masks(out / "masks" / stem, detections, class_names)
    if "overlays" in shown.pictures:
        picture = out / "overlays" / f"{stem}.png"
        make_folder(picture.parent, out)
        image = read_image(path, exif=exif)
        if image.shape[:2] != (detections.height, detections.width):
            raise InputError(f"{show_path(path)}: the photo has changed meanwhile; start the same command again")
        save_picture(picture, draw_overlay(image, detections, class_names, by_instance=shown.by_instance))


def write_masks(folder: Path, detections: HostDetections, class_names: tuple[str, ...]) -> None:
    """One PNG per mask, white on black, named by number and class; those of an earlier start go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9]*_*.png"):
        old.unlink()
    for index, (label, rle) in enumerate(zip(detections.labels, detections.rles, strict=True), 1):
        safe = re.sub(r"[^\w.-]+", "_", class_names[label])[:60]
        save_picture(folder / f"{index:03}_{safe}.png", decode_rle(rle).view(np.uint8) * 255)


def draw_overlay(
    image: np.ndarray,
    detections: HostDetections,
    class_names: tuple[str, ...],
    *,
    side: int | None = OVERLAY_SIDE,
    opacity: float = 0.45,
    by_instance: bool = False,
) -> np.ndarray:
    """The image with masks, outlines and captions, `[h, w, 3]` uint8; made smaller to at most `side` pixels a side."""
    step = 1 if side is None else -(-max(image.shape) // side)
    small = np.ascontiguousarray(image[::step, ::step])
    if by_instance:
        for start in range(0, len(detections), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(detections)))
            small = overlay(small, _drawn(detections.select(some), step), some, opacity=opacity)
        return small
    drawn = _drawn(detections, step)
    names = [class_names[label] for label in detections.labels]
    captions = [f"{name} {score:.2f}" for name, score in zip(names, detections.scores, strict=True)]
    return overlay(small, drawn, detections.labels, captions, opacity=opacity)


def _drawn(detections: HostDetections, step: int) -> np.ndarray:
    """Every `step`-th pixel of the masks, bool `[n, h, w]`."""
    drawn = np.zeros((len(detections), -(-detections.height // step), -(-detections.width // step)), np.bool_)
    for index, rle in enumerate(detections.rles):
        drawn[index] = decode_rle(rle)[::step, ::step]
    return drawn
