"""LabelMe's JSON: `labelme/NAME.json` for each photo, which it names by a relative path.

    labelme photos --output found/labelme

Polygons are in LabelMe's own terms, whose pixel (i, j) is the square from (j, i). A hole is cut open to its border; an
object of several parts is several polygons of one `group_id`. LabelMe shows photos upright, and refuses a file whose
size is not the photo's.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ntt_jax.detection.on_host import decimals
from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo
from ntt_jax.images.remote import Address, Location

VERSION = "5.5.0"
"""The version of LabelMe whose files these are like; later ones read them."""


def write(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write a file for each photo, also for those without an object."""
    for photo in photos:
        name = f"labelme/{photo.stem}.json"
        folder = (output.root / name).parent
        content = annotation(photo, classes.names, relative_path(photo.file, folder))
        output.write(name, json.dumps(content, indent=2) + "\n")


def annotation(photo: Photo, class_names: tuple[str, ...], image_path: str) -> dict[str, Any]:
    """The content of a photo's file. image_path: of the photo, as seen from the folder of the file."""
    shapes: list[dict[str, Any]] = []
    rows = zip(photo.detections.labels, decimals(photo.detections.scores), photo.parts, strict=True)
    for number, (label, score, parts) in enumerate(rows, 1):
        for part in parts:
            shapes.append(
                {
                    "label": class_names[label],
                    "points": part.ring().tolist(),
                    "group_id": number if len(parts) > 1 else None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                    "score": score,
                }
            )
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": photo.height,
        "imageWidth": photo.width,
    }


def relative_path(file: Location, folder: Path) -> str:
    """The path from a folder to a file, with slashes; the whole path (or address) where there is none."""
    if isinstance(file, Address):
        return str(file)
    # Links are followed first: ".." leads out of where a folder really is.
    file, folder = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:
        return file.as_posix()


LABELME = Format("labelme", "one LabelMe JSON per photo, with polygons", write)
