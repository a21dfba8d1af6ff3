"""COCO's annotation file with polygons, as annotation tools import it: `coco/annotations/instances_default.json`.

`detections.json`, which is always written, is COCO too, with masks as run lengths: exact, but tools such as Label
Studio read polygons only. Here a hole is cut open to its border, which pycocotools and others fill as a hole.
"""

import json
from collections.abc import Iterable
from typing import Any

from ntt_jax.detection.on_host import decimals
from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo
from ntt_jax.images.polygons import Part

FILE = "coco/annotations/instances_default.json"
"""The name that CVAT gives and expects in an archive."""


def write(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write the file: ids of images and annotations from 1; boxes and areas are those of the masks, in pixels."""
    content: dict[str, Any] = {
        "info": {"description": "Instances found by ntt-jax"},
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": ""}
            for i, name in zip(classes.category_ids, classes.names, strict=True)
        ],
        "images": [],
        "annotations": [],
    }
    for image_id, photo in enumerate(photos, 1):
        content["images"].append(
            {"id": image_id, "file_name": photo.name, "height": photo.height, "width": photo.width}
        )
        for label, score, area, box, parts in zip(
            photo.detections.labels.tolist(),
            decimals(photo.detections.scores),
            photo.areas.tolist(),
            photo.boxes.tolist(),
            photo.parts,
            strict=True,
        ):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(classes.category_ids[label]),
                    "segmentation": polygons(parts),
                    "area": area,
                    "bbox": box,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    output.write(FILE, json.dumps(content, indent=1) + "\n")


def polygons(parts: list[Part]) -> list[list[float]]:
    """COCO's polygons of one object: x1, y1, x2, y2, ... of each part, its holes cut open."""
    return [part.ring().ravel().tolist() for part in parts]


COCO = Format("coco", "one COCO file with polygons (CVAT, Label Studio, pycocotools)", write)
