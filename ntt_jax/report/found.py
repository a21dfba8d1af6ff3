"""The page of a folder that `ntt-jax segment` wrote: what was found in photos, with nothing to compare it with."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import CocoAnnotation, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path, write_bytes
from ntt_jax.images.reading import EXIF
from ntt_jax.images.remote import Location
from ntt_jax.images.rle import rle_areas, sample_rle
from ntt_jax.report import analysis, gallery
from ntt_jax.report.page import class_colours, render

FILE = "detections.json"
_MAX_BYTES = 2 * 1024**3
_WHAT = "file of detections"


@dataclasses.dataclass(frozen=True)
class FoundPhotos:
    """What `segment` wrote: title; photos, classes and detections as a data set; the score of each detection by its id;
    the photos' folder, None: masks alone are shown; photos that could not be read; notes and provenance for people."""

    title: str
    dataset: CocoDataset
    scores: Mapping[int, float]
    images: Location | None
    skipped: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    max_images: int = 200


def read_found(
    folder: Path, images: Location | None, run: Mapping[str, Any], *, title: str, max_images: int, exif: str = "upright"
) -> FoundPhotos:
    """Read detections.json of a folder. images: where the photos are, None if unknown. run: what run.json holds.

    Raises `InputError` if it is not a file of `ntt-jax segment`.
    """
    path = folder / FILE
    data = read_bytes(path, max_bytes=_MAX_BYTES, what=_WHAT)
    dataset = parse_coco(data, path)
    content = parse_json(data, path, what=_WHAT)
    scores: dict[int, float] = {}
    for entry in content["annotations"]:
        score, id = (entry.get("score"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if isinstance(id, int) and isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
            scores[id] = float(score)
    if any(id not in scores for id in dataset.annotations):
        raise InputError(f'{show_path(path)}: a detection has no "score" from 0 to 1; it is not what segment writes')
    left_out = content.get("skipped")
    skipped = [
        (str(one.get("file_name", "")), str(one.get("reason", "")))
        for one in (left_out if isinstance(left_out, list) else ())
        if isinstance(one, dict)
    ]
    if sizeless := next((one for one in dataset.images.values() if not one.height * one.width), None):
        raise InputError(f"{show_path(path)}: image {describe(sizeless.file_name)} has no size; segment writes one")
    notes = list(dataset.notes)
    if images is None:
        notes.append("The photos' folder is not known: --images shows them.")
    identity = run.get("identity")
    known = {str(k): _words(v) for k, v in identity.items()} if isinstance(identity, dict) else {}
    read = dataclasses.replace(dataset, exif=exif if exif in EXIF else "upright")
    return FoundPhotos(title, read, scores, images, skipped, notes, {"Run": known} if known else {}, max_images)


def write_found_report(path: PathLike, found: FoundPhotos) -> dict[str, int]:
    """Write the page, whole or not at all; returns the numbers of images and detections.

    Raises `InputError` for a mask that is unsound, and if the file cannot be written.
    """
    dataset = found.dataset
    labels = {id: k for k, id in enumerate(dataset.categories)}
    by_image: dict[int, list[CocoAnnotation]] = {id: [] for id in dataset.images}
    for annotation in dataset.annotations.values():
        by_image[annotation.image_id].append(annotation)
    counts = {"images": len(dataset.images), "detections": len(dataset.annotations)}
    scenes, pictures = [], []
    for image_id in _chosen(by_image, found.max_images):
        picture, problem = "", "the photos were not given"
        if found.images is not None:
            picture, problem = gallery.read_picture(dataset, found.images, image_id)
        scenes.append(_scene(found, by_image[image_id], labels, image_id) | {"problem": "" if picture else problem})
        pictures.append(picture)
    least = min(found.scores.values(), default=DEFAULT_THRESHOLD)
    data = {
        "title": found.title,
        "found": counts | {"skipped": len(found.skipped)},
        "classes": _classes(found, labels),
        "bins": analysis.BINS,
        "histograms": _histograms(found, labels).tolist(),
        "threshold": int(analysis.bins(np.asarray([min(DEFAULT_THRESHOLD, least)]))[0]),
        "steps": gallery.SCORE_STEPS,
        "error_kinds": ["detection"],
        "scenes": scenes,
        "skipped": [list(one) for one in found.skipped],
        "provenance": {heading: dict(values) for heading, values in found.provenance.items()},
        "notes": list(found.notes),
    }
    write_bytes(path, render(data, {"scenes": pictures}))
    return counts


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _chosen(by_image: Mapping[int, Sequence[Any]], limit: int) -> list[int]:
    """At most so many images, those with detections first, spread evenly; in the order of the file."""
    busy = [id for id, found in by_image.items() if found]
    if len(busy) > limit:
        return [busy[i] for i in np.linspace(0, len(busy) - 1, limit).round().astype(int)] if limit else []
    quiet = [id for id, found in by_image.items() if not found][: limit - len(busy)]
    return [id for id in by_image if id in {*busy, *quiet}]


def _scene(
    found: FoundPhotos, annotations: Sequence[CocoAnnotation], labels: Mapping[int, int], image_id: int
) -> dict[str, Any]:
    image = found.dataset.images[image_id]
    high, wide = gallery.picture_size(image.height, image.width)
    scale = np.array([wide / image.width, high / image.height] * 2)
    rows = []
    for one in sorted(annotations, key=lambda annotation: -found.scores[annotation.id]):
        small = sample_rle(found.dataset.rle(one), high, wide)["counts"]
        box = [round(float(v), 1) for v in np.asarray(one.bbox) * scale]
        score = int(np.floor(found.scores[one.id] * gallery.SCORE_STEPS))
        rows.append([labels[one.category_id], score, small, box, 0, -1, 0])
    scene = {"width": wide, "height": high, "objects": [], "detections": rows}
    return {"id": image_id, "name": image.file_name, **scene}


def _classes(found: FoundPhotos, labels: Mapping[int, int]) -> list[dict[str, Any]]:
    """Of each class: how many detections in how many photos, and their areas, in pixels and as a share of the photo."""
    dataset = found.dataset
    areas: list[list[int]] = [[] for _ in labels]
    shares: list[list[float]] = [[] for _ in labels]
    photos: list[set[int]] = [set() for _ in labels]
    for one in dataset.annotations.values():
        area, image, k = int(rle_areas([dataset.rle(one)])[0]), dataset.images[one.image_id], labels[one.category_id]
        areas[k].append(area)
        shares[k].append(area / max(1, image.height * image.width))
        photos[k].add(one.image_id)
    colours = class_colours([category.name for category in dataset.categories.values()])
    return [
        {
            "name": name,
            "colour": colour,
            "detections": len(areas[k]),
            "images": len(photos[k]),
            "area": int(np.median(areas[k])) if areas[k] else None,
            "least_area": min(areas[k], default=None),
            "most_area": max(areas[k], default=None),
            "share": round(float(np.median(shares[k])), 5) if shares[k] else None,
        }
        for k, (name, colour) in enumerate(colours)
    ]


def _histograms(found: FoundPhotos, labels: Mapping[int, int]) -> np.ndarray:
    """Detections by class and score, `[K, BINS]`."""
    table = np.zeros((len(labels), analysis.BINS), np.int64)
    annotations = list(found.dataset.annotations.values())
    if annotations:
        rows = np.asarray([labels[one.category_id] for one in annotations])
        np.add.at(table, (rows, analysis.bins(np.asarray([found.scores[one.id] for one in annotations]))), 1)
    return table
