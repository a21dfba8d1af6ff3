"""The work of `ntt-jax segment`: image files in, one COCO file, a PNG per mask and an overlay per image out."""

import functools
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import coco_results
from ntt_jax.files import make_folder, show_path, write_json
from ntt_jax.images.drawing import overlay, save_picture
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.reading import read_image
from ntt_jax.images.rle import decode_rle, rle_areas
from ntt_jax.runs.observer import Observer
from ntt_jax.segmenter.photos import photos_of_folder

if TYPE_CHECKING:
    from ntt_jax.compiled.predictor import Predictor
    from ntt_jax.memory.bank import MemoryBank

OVERLAY_SIDE = 2048
"""Overlays of larger images are made smaller, to at most this many pixels a side; masks never are."""


def find_images(paths: list[Path], output: Path | None = None, note: Callable[[str], None] = print) -> dict[str, Path]:
    """The images to work on by the names they get in the output: as given, or relative to the folder they lie in.

    A file that is named itself may have any suffix. output: the folder to write to, of which nothing is taken. note:
    hears, a line each, of what in a folder is not taken for a photo (`photos_of_folder`).

    Names differ in more than their suffix (a number is added where needed), so each can name a picture or a folder.
    Raises `InputError` for a folder without images.
    """
    found: dict[str, Path] = {}
    taken: set[PurePosixPath] = set()
    for path in paths:
        inside: Sequence[Path] = [path]
        if path.is_dir():
            photos = photos_of_folder(path, output=output)
            inside = photos.files
            for line in photos.notes.lines():
                note(f"{show_path(path)}: {line}")
        files = {p.relative_to(path).as_posix() if path.is_dir() else p.name: p for p in inside}
        for name, file in files.items():
            plain = unique = PurePosixPath(name)
            number = 2
            while unique.with_suffix("") in taken:
                unique, number = plain.with_stem(f"{plain.stem}_{number}"), number + 1
            taken.add(unique.with_suffix(""))
            found[str(unique)] = file
    return found


def segment_files(
    predictor: "Predictor",
    names: dict[str, Path],
    bank: "MemoryBank",
    out: Path,
    *,
    classes: set[int],
    threshold: float,
    pictures: Collection[str],
    observer: Observer,
    exif: str = "upright",
) -> dict[str, Any]:
    """Segment the files, write `pictures` of them as they come, then detections.json, whose content is returned.

    pictures: "masks", "overlays", both, or none. exif: how photos with an orientation are read (`images.reading`).
    """
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in zip(bank.category_ids, bank.class_names, strict=True)],
        "skipped": [],
    }
    fed: deque[tuple[int, str, np.ndarray]] = deque()

    def images() -> Iterator[np.ndarray]:
        ahead = map_ahead(functools.partial(_read, exif=exif), names.values(), ahead=8)
        for image_id, (name, read) in enumerate(zip(names, ahead, strict=True), 1):
            if isinstance(read, str):
                observer.note(f"skipped: {read}")
                content["skipped"].append({"file_name": name, "reason": read})
                observer.step()
            else:
                fed.append((image_id, name, read))
                yield read

    for found in predictor(images()):
        image_id, name, image = fed.popleft()
        keep = (found.scores >= threshold) & np.isin(found.labels, list(classes))
        content["images"].append({"id": image_id, "file_name": name, "height": found.height, "width": found.width})
        kept = found.select(keep)
        for entry in coco_results(kept, image_id, bank.category_ids):
            area = int(rle_areas([entry["segmentation"]])[0])
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, **entry, "area": area, "iscrowd": 0})
        write_pictures(out, name, image, kept, bank.class_names, pictures)
        observer.step()
    if not content["images"]:
        raise InputError(f"none of the {len(names)} images could be read; the first: {content['skipped'][0]['reason']}")
    write_json(out / "detections.json", content)
    return content


def _read(path: Path, exif: str) -> np.ndarray | str:
    """The image, or in one line why it cannot be read."""
    try:
        return read_image(path, exif=exif)
    except InputError as error:
        return str(error)


def write_pictures(
    out: Path,
    name: str,
    image: np.ndarray,
    detections: HostDetections,
    class_names: tuple[str, ...],
    pictures: Collection[str],
) -> None:
    """One PNG per mask in masks/NAME/ and the overlay in overlays/NAME.png; those of an earlier start are replaced."""
    stem = PurePosixPath(name).with_suffix("")
    if "masks" in pictures:
        make_folder(out / "masks" / stem, out)
        write_masks(out / "masks" / stem, detections, class_names)
    if "overlays" in pictures:
        picture = out / "overlays" / f"{stem}.png"
        make_folder(picture.parent, out)
        save_picture(picture, draw_overlay(image, detections, class_names))


def write_masks(folder: Path, detections: HostDetections, class_names: tuple[str, ...]) -> None:
    """One PNG per mask, white on black, named by number and class; those of an earlier start go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9]*_*.png"):
        old.unlink()
    for index, (label, rle) in enumerate(zip(detections.labels, detections.rles, strict=True), 1):
        safe = re.sub(r"[^\w.-]+", "_", class_names[label])[:60]
        save_picture(folder / f"{index:03}_{safe}.png", decode_rle(rle).view(np.uint8) * 255)


def draw_overlay(image: np.ndarray, detections: HostDetections, class_names: tuple[str, ...]) -> np.ndarray:
    """The image, made smaller if it is large, with masks, outlines and captions: `[h, w, 3]` uint8."""
    step = -(-max(image.shape) // OVERLAY_SIDE)
    small = np.ascontiguousarray(image[::step, ::step])
    drawn = np.zeros((len(detections), *small.shape[:2]), np.bool_)  # [n, h, w]
    for index, rle in enumerate(detections.rles):
        drawn[index] = decode_rle(rle)[::step, ::step]
    names = [class_names[label] for label in detections.labels]
    captions = [f"{name} {score:.2f}" for name, score in zip(names, detections.scores, strict=True)]
    return overlay(small, drawn, detections.labels, captions)
