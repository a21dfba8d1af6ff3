"""Detections of images as records, and the COCO results file made from them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.detection.on_host import HostDetections, decimals, number_array
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path, write_bytes
from ntt_jax.images.rle import segmentation_to_rle

MAX_RESULTS_BYTES = 4 * 1024**3
"""Size limit of a results file (5,000 images with 100 detections each: 300 MB)."""


ImageDetections = tuple[int, HostDetections]
"""An image's id and its detections: what scoring takes and results files hold."""


def image_record(image_id: int, detections: HostDetections) -> dict[str, Any]:
    """The detections of one image as JSON-ready data; `parse_record` gives back the same, bit for bit."""
    return {"image_id": image_id, **detections.to_json()}


def parse_record(data: Any, where: str) -> ImageDetections:
    """Inverse of `image_record` for data from a file; `where` starts the messages.

    Raises `InputError` unless the data has exactly this form, masks included.
    """
    image_id = data.get("image_id") if type(data) is dict else None
    if type(image_id) is not int or not 0 <= image_id < 2**63:
        found = describe(image_id if type(data) is dict else data)
        raise InputError(f'{where}: "image_id": expected an integer of at least 0, found {found}')
    rest = {key: value for key, value in data.items() if key != "image_id"}
    return image_id, HostDetections.from_json(rest, where)


def require_image_id(image_id: Any, where: str) -> None:
    """Raise `InputError`, beginning with `where`, for what is no id of an image."""
    if type(image_id) is not int or image_id < 0:
        raise InputError(f"{where}: expected the image's id, an integer of at least 0, found {image_id!r:.60}")


def check_labels(detections: HostDetections, image_id: int, classes: int) -> None:
    """Raise `InputError` if one of an image's detections has a label beyond so many classes."""
    if len(detections) and detections.labels.max() >= classes:
        raise InputError(
            f"detections of image {image_id}: label {detections.labels.max()} has no category"
            f" (there are {classes} classes)"
        )


def coco_results(detections: HostDetections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of one image as entries of COCO's results format, in order.

    category_ids: category id of each class index, ascending. The box is (x1, y1, x2 - x1, y2 - y1) of the inclusive
    corners (METHOD stage 3, step 8). Numbers are the shortest decimals that read back as the same float32, so equal
    detections give equal text.
    Raises `InputError` if a label has no category.
    """
    check_labels(detections, image_id, len(category_ids))
    corners = detections.boxes
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)  # [n, 4] xywh
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": decimals(box),
            "score": score,
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"]},
        }
        for label, box, score, rle in zip(
            detections.labels, boxes, decimals(detections.scores), detections.rles, strict=True
        )
    ]


def write_results(
    path: PathLike,
    detections: Iterable[ImageDetections],
    category_ids: Sequence[int],
    dataset: CocoDataset | None = None,
) -> int:
    """Write a COCO results file, image by image, one detection a line; returns the number of detections.

    dataset: knows the ids that are text in its file, which are written as they are there.

    The file is written whole or not at all, and the same detections always give the same bytes. Images must come by
    ascending id, each once (`InputError`); only one is held in memory.
    """
    count = 0

    def chunks() -> Iterator[bytes]:
        nonlocal count
        last = -1
        yield b"["
        for image_id, found in detections:
            if image_id <= last:
                raise InputError(f"results: image {image_id} after image {last}; give images by ascending id")
            last = image_id
            for entry in coco_results(found, image_id, category_ids):
                if dataset is not None and (dataset.image_ids or dataset.category_ids):
                    entry["image_id"] = dataset.image_ids.get(image_id, image_id)
                    entry["category_id"] = dataset.category_ids.get(entry["category_id"], entry["category_id"])
                line = json.dumps(entry, separators=(",", ":"), allow_nan=False)
                yield (",\n" if count else "\n").encode() + line.encode("ascii")
                count += 1
        yield b"\n]\n"

    write_bytes(path, chunks())
    return count


def read_results(path: PathLike, dataset: CocoDataset, category_ids: Sequence[int]) -> list[ImageDetections]:
    """The detections of a COCO results file by ascending image id; inverse of `write_results`.

    dataset: knows the images and their sizes. category_ids: category id of each class index, ascending; entries of
    other categories are left out. Detections of an image are put in order of descending score.
    Raises `InputError`, naming file and entry, for anything that is not a result with a mask of a known image.
    """
    name = show_path(path)
    content = parse_json(read_bytes(path, max_bytes=MAX_RESULTS_BYTES, what="results file"), path, what="results file")
    if not isinstance(content, list):
        raise InputError(f"{name}: expected a list of COCO results, found {describe(content)}")
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    image_ids = {text: number for number, text in dataset.image_ids.items()}
    texts = {text: number for number, text in dataset.category_ids.items()}
    by_image: dict[int, list[tuple[Any, ...]]] = {}
    for i, entry in enumerate(content):
        where = f"{name}: [{i}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object, found {describe(entry)}")
        if type(entry.get("image_id")) in (int, str) and entry["image_id"] in image_ids:
            entry["image_id"] = image_ids[entry["image_id"]]
        if type(entry.get("category_id")) in (int, str) and entry["category_id"] in texts:
            entry["category_id"] = texts[entry["category_id"]]
        image = dataset.images.get(entry["image_id"]) if type(entry.get("image_id")) is int else None
        if image is None:
            raise InputError(f"{where}: image {describe(entry.get('image_id'))} is not in {show_path(dataset.path)}")
        if type(entry.get("category_id")) is not int:
            raise InputError(f'{where}: "category_id": expected an integer, found {describe(entry.get("category_id"))}')
        box = number_array([entry.get("bbox")], "iuf", 2, f"{where}: bbox")[0]
        score = number_array([entry.get("score")], "iuf", 1, f"{where}: score")[0]
        if entry["category_id"] in labels:
            rle = segmentation_to_rle(entry.get("segmentation"), image.height, image.width, where)
            corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            by_image.setdefault(image.id, []).append((score, labels[entry["category_id"]], corners, rle))
    result = []
    for image_id in sorted(by_image):
        rows = sorted(by_image[image_id], key=lambda row: -row[0])
        scores, classes, corners, rles = zip(*rows, strict=True)
        image = dataset.images[image_id]
        arrays = (np.asarray(corners), np.asarray(scores), np.asarray(classes))
        result.append((image_id, HostDetections(image.height, image.width, *arrays, rles=rles)))
    return result
