"""Made scenes as a data set on the disk, in COCO's format."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ntt_jax.demo.scenes.classes import ObjectClass
from ntt_jax.demo.scenes.scene import Scene
from ntt_jax.files import PathLike, write_bytes, write_json
from ntt_jax.images.rle import encode_masks, rle_areas, rle_boxes


def write_coco(folder: PathLike, scenes: Iterable[Scene], classes: Sequence[ObjectClass]) -> Path:
    """Write `folder/images/*.png` and `folder/annotations.json`; returns the path of the latter, written last.

    Category ids count from 1 in the order of `classes`; image and annotation ids count from 1. Masks are compressed
    run lengths, boxes are theirs. Distractors (label -1) are left out. The same scenes give the same bytes.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, scene in enumerate(scenes, 1):
        name = f"images/{number:06d}.png"
        write_bytes(folder / name, encode_png(scene.image))
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        known = np.flatnonzero(scene.labels >= 0)
        rles = encode_masks(scene.masks[known])
        rows = zip(known, rles, rle_areas(rles), rle_boxes(rles), strict=True)
        for index, rle, area, box in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(scene.labels[index]) + 1,
                    "bbox": [float(v) for v in box],
                    "area": int(area),
                    "iscrowd": 0,
                    "segmentation": {"size": list(rle["size"]), "counts": rle["counts"]},
                }
            )
    categories = [{"id": k + 1, "name": kind.name} for k, kind in enumerate(classes)]
    path = folder / "annotations.json"
    write_json(path, {"images": images, "categories": categories, "annotations": annotations})
    return path


def encode_png(image: np.ndarray) -> bytes:
    """uint8 `[H, W, 3]` (or `[H, W]`) as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
