"""Pictures and masks for the page: small enough for hundreds of images, whatever they show. Host only."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth
from ntt_jax.images.drawing import overlay
from ntt_jax.images.preprocess import crop_box
from ntt_jax.images.remote import Location
from ntt_jax.images.rle import sample_rle
from ntt_jax.report.matching import MatchedRows, image_rows

PICTURE_BYTES = 36_000
"""A picture is made smaller or coarser until it has at most about this many bytes: 200 of them take 10 MB in a page."""
SIDE = 512
"""Longest side of a picture, and the grid of its masks, in pixels."""
THUMBNAIL_SIDE, THUMBNAIL_BYTES = 176, 6_000
SCORE_STEPS = 10_000
"""Scores are whole numbers of this many steps, rounded down, so that a threshold of whole steps loses nothing."""
_TRIES = ((SIDE, 80), (SIDE, 65), (SIDE, 50), (400, 50), (320, 45), (256, 35))


def data_uri(image: np.ndarray, max_bytes: int = PICTURE_BYTES) -> str:
    """uint8 `[H, W, 3]` as the text of a JPEG of about `max_bytes` or less."""
    data = b""
    for side, quality in _TRIES:
        buffer = io.BytesIO()
        _shrink(image, side).save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= max_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _shrink(image: np.ndarray, side: int) -> Image.Image:
    height, width = picture_size(image.shape[0], image.shape[1], side)
    picture = Image.fromarray(image)
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def picture_size(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """Height and width of an image's picture: the longest side at most `side`, never larger than the image."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def choose_images(rows: MatchedRows, images: int, limit: int) -> list[int]:
    """Positions of at most `limit` of the images, ascending, spread evenly over those with an object or a detection;
    images with neither come only when there is room."""
    busy = np.union1d(rows.image, rows.object_image)
    if len(busy) >= limit:
        return [int(i) for i in busy[np.linspace(0, len(busy) - 1, limit).round().astype(int)]] if limit else []
    quiet = np.setdiff1d(np.arange(images), busy)[: limit - len(busy)]
    return [int(i) for i in np.sort(np.concatenate([busy, quiet]))]


def scene(
    ground_truth: GroundTruth, rows: MatchedRows, position: int, record: HostDetections | None, height: int, width: int
) -> dict[str, Any]:
    """Objects and detections of one image for the page, on the grid of its picture.

    objects: [class, box, mask, row of the detection that finds it or -1, crowd]; detections by descending score:
    [class, score, mask, box, kind, object or -1, IoU in percent, row]. Boxes are x, y, width, height. A mask is ""
    where there is none.
    """
    high, wide = picture_size(height, width)
    scale = np.array([wide / width, high / height] * 2)
    found, truth = next(image_rows(rows, [position]))
    place = {int(row): i for i, row in enumerate(truth)}
    entries = [ground_truth.entries[row] for row in truth]
    masks = [sample_rle(e["segmentation"], high, wide)["counts"] if "segmentation" in e else "" for e in entries]
    objects = [
        [
            int(rows.object_label[row]),
            _box(np.asarray(entry["bbox"]) * scale),
            mask,
            int(rows.found[row]) - int(found[0]) if rows.found[row] >= 0 else -1,
            int(rows.crowd[row]),
        ]
        for row, entry, mask in zip(truth, entries, masks, strict=True)
    ]
    detections = []
    if record is not None:
        order = np.argsort(-record.scores, kind="stable")
        boxes = record.boxes[order].astype(np.float64)
        boxes[:, 2:] += 1 - boxes[:, :2]  # corners are inclusive
        small = [sample_rle(record.rles[i], high, wide)["counts"] for i in order]
        for row, box, mask in zip(found, boxes, small, strict=True):
            detections.append(
                [
                    int(rows.label[row]),
                    int(np.floor(float(rows.score[row]) * SCORE_STEPS)),
                    mask,
                    _box(box * scale),
                    int(rows.kind[row]),
                    place.get(int(rows.target[row]), -1),
                    round(100 * float(rows.overlap[row])),
                ]
            )
    return {"width": wide, "height": high, "objects": objects, "detections": detections}


def _box(box: np.ndarray) -> list[float]:
    return [round(float(v), 1) for v in box]


def reference_thumbnail(image: np.ndarray, mask: np.ndarray, box: tuple[float, float, float, float], label: int) -> str:
    """The crop that the encoder sees of a reference, its mask in the colour of its class, as a data URI."""
    left, top, right, bottom = crop_box(image.shape[0], image.shape[1], box)
    crop, inside = image[top:bottom, left:right], mask[top:bottom, left:right]
    scale = THUMBNAIL_SIDE / max(crop.shape[:2])
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    picture = np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC))
    shape = np.asarray(Image.fromarray(inside).resize(size, Image.Resampling.NEAREST))
    # All but the object is dimmed.
    dimmed = np.where(shape[..., None], picture, (picture.astype(np.uint16) * 2 // 5).astype(np.uint8))
    return data_uri(overlay(dimmed, shape[None], [label], opacity=0.0), THUMBNAIL_BYTES)


def read_picture(dataset: CocoDataset, folder: Location, image_id: int) -> tuple[str, str]:
    """An image as a data URI, and why there is none where it cannot be used."""
    try:
        return data_uri(dataset.read_image(folder, image_id)), ""
    except InputError as error:
        return "", str(error)
