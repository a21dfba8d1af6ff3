"""Detections of images as host records, and the COCO results file made from them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path, write_bytes
from ntt_jax.images.rle import Rle, encode_masks, segmentation_to_rle

MAX_RESULTS_BYTES = 4 * 1024**3
"""Size limit of a results file (5,000 images with 100 detections each: 300 MB)."""


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The detections of one image, in order of descending score.

    height, width: of the original image, in pixels.
    boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels, corners inclusive (METHOD stage 3, step 8).
    scores: float32 `[n]`. labels: int32 `[n]`, class indices. rles: n compressed masks of the image's size.

    Arrays of another type are converted. Raises `InputError` if lengths differ, a number is not finite or a label is
    negative.
    """

    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: tuple[Rle, ...]

    def __post_init__(self) -> None:
        arrays = {
            "boxes": np.asarray(self.boxes, np.float32).reshape(-1, 4),
            "scores": np.asarray(self.scores, np.float32),
            "labels": np.asarray(self.labels, np.int32),
        }
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        object.__setattr__(self, "rles", tuple(self.rles))
        lengths = [len(self.boxes), *self.scores.shape, *self.labels.shape, len(self.rles)]
        if lengths != [len(self.boxes)] * 4:
            raise InputError(
                f"detections of image {self.image_id}: expected as many boxes, scores, labels and masks,"
                f" found {lengths}"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all() and (self.labels >= 0).all()):
            raise InputError(
                f"detections of image {self.image_id}: a box or score is not finite or a label is negative"
            )
        if any(rle["size"] != [self.height, self.width] for rle in self.rles):
            raise InputError(f"detections of image {self.image_id}: a mask is not of the image's size")

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_masks(
        cls,
        image_id: int,
        masks: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        valid: np.ndarray | None = None,
    ) -> "ImageDetections":
        """From the fixed-size arrays of `detect`: masks bool `[D, H, W]`, boxes `[D, 4]`, scores, labels, valid `[D]`.

        Rows that are not valid are left out. Arrays on a device are fetched.
        """
        masks = np.asarray(masks)
        rows = np.flatnonzero(np.ones(len(masks), np.bool_) if valid is None else np.asarray(valid))
        height, width = masks.shape[1:]
        rles = encode_masks(masks[rows])
        kept = [np.asarray(array)[rows] for array in (boxes, scores, labels)]
        return cls(image_id, height, width, kept[0], kept[1], kept[2], tuple(rles))

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` gives back the same arrays, bit for bit."""
        return {
            "image_id": self.image_id,
            "height": self.height,
            "width": self.width,
            "boxes": [decimals(box) for box in self.boxes],
            "scores": decimals(self.scores),
            "labels": self.labels.tolist(),
            "counts": [rle["counts"] for rle in self.rles],
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> "ImageDetections":
        """Inverse of `to_json` for data from a file; `where` starts the messages.

        Raises `InputError` unless the data has exactly this form, masks included.
        """
        keys = ("image_id", "height", "width", "boxes", "scores", "labels", "counts")
        if type(data) is not dict or set(data) != set(keys):
            raise InputError(f"{where}: expected an object with the keys {', '.join(keys)}, found {describe(data)}")
        for key, maximum in (("image_id", 2**63 - 1), ("height", 10**6), ("width", 10**6)):
            if type(data[key]) is not int or not 0 <= data[key] <= maximum:
                raise InputError(f'{where}: "{key}": expected an integer in 0..{maximum}, found {describe(data[key])}')
        arrays = {
            "boxes": _numbers(data["boxes"], "iuf", 2, f"{where}: boxes"),
            "scores": _numbers(data["scores"], "iuf", 1, f"{where}: scores"),
            "labels": _numbers(data["labels"], "i", 1, f"{where}: labels"),
        }
        height, width, counts = data["height"], data["width"], data["counts"]
        if type(counts) is not list or not all(type(text) is str for text in counts):
            raise InputError(f"{where}: counts: expected a list of texts, found {describe(counts)}")
        rles = [segmentation_to_rle({"size": [height, width], "counts": text}, height, width, where) for text in counts]
        return cls(data["image_id"], height, width, rles=tuple(rles), **arrays)


def coco_results(detections: ImageDetections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of one image as entries of COCO's results format, in order.

    category_ids: category id of each class index, ascending. The box is (x1, y1, x2 - x1, y2 - y1) of the inclusive
    corners (METHOD stage 3, step 8). Numbers are the shortest decimals that read back as the same float32, so equal
    detections give equal text.
    Raises `InputError` if a label has no category.
    """
    if len(detections) and detections.labels.max() >= len(category_ids):
        raise InputError(
            f"detections of image {detections.image_id}: label {detections.labels.max()} has no category"
            f" (there are {len(category_ids)} classes)"
        )
    corners = detections.boxes
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)  # [n, 4] xywh
    return [
        {
            "image_id": detections.image_id,
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
        for record in detections:
            if record.image_id <= last:
                raise InputError(f"results: image {record.image_id} after image {last}; give images by ascending id")
            last = record.image_id
            for entry in coco_results(record, category_ids):
                if dataset is not None and (dataset.image_ids or dataset.category_ids):
                    entry["image_id"] = dataset.image_ids.get(record.image_id, record.image_id)
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
        box = _numbers([entry.get("bbox")], "iuf", 2, f"{where}: bbox")[0]
        score = _numbers([entry.get("score")], "iuf", 1, f"{where}: score")[0]
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
        result.append(ImageDetections(image_id, image.height, image.width, *arrays, rles=rles))
    return result


def decimals(values: np.ndarray) -> list[float]:
    """float32 `[n]` as the Python floats that print as the shortest decimals identifying the float32."""
    return [float(str(value)) for value in np.asarray(values, np.float32)]


def _numbers(value: Any, kinds: str, rank: int, where: str) -> np.ndarray:
    """A JSON list of numbers as an array; an empty list has any type."""
    try:
        array = np.asarray(value) if type(value) is list else np.zeros((), np.bool_)
    except ValueError:  # ragged
        array = np.zeros((), np.bool_)
    if type(value) is list and array.size == 0 and array.ndim == 1:
        return array.reshape((0, 4) if rank == 2 else (0,))
    shaped = array.ndim == rank and array.shape[1:] in ((), (4,))
    # Beyond this, casting to float32 or int32 would overflow; no pixel, score or label comes near.
    if not shaped or array.dtype.kind not in kinds or not (np.abs(array) < 2**31).all():
        raise InputError(f"{where}: expected a list of {'four numbers each' if rank == 2 else 'numbers'}")
    return array
