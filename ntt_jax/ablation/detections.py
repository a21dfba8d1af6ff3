"""Detections of one image by many memories, which share their masks: on the host, as a record, and back."""

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import ImageDetections, image_record, parse_record
from ntt_jax.files import describe
from ntt_jax.images.rle import Rle

_WHOLE = ("image_id", "height", "width", "boxes", "counts")  # as in the record of one memory with every mask once
_KEYS = (*_WHOLE, "shape", "masks", "labels", "scores")
_TYPES = {"masks": "<i4", "labels": "<i4", "scores": "<f4"}
_MAX_ROWS = 2**24


@dataclass(frozen=True, eq=False)
class SharedDetections:
    """What M memories found in one image. Every mask is held once, whoever found it.

    height, width: of the image, in pixels. boxes: float32 `[U, 4]` x1, y1, x2, y2, corners inclusive; rles: their U
    masks. masks: int32 `[M, D]`, an index into these for every detection, -1 where a memory has fewer than D; labels
    int32 and scores float32 `[M, D]`, best first.
    """

    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    rles: tuple[Rle, ...]
    masks: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def of(self, memory: int) -> ImageDetections:
        """The detections of one memory."""
        filled = self.masks[memory] >= 0
        masks = self.masks[memory][filled]
        return self.image_id, HostDetections(
            self.height,
            self.width,
            self.boxes[masks],
            self.scores[memory][filled],
            self.labels[memory][filled],
            tuple(self.rles[i] for i in masks),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` gives back the same, bit for bit. Memories that agree take little room."""
        count = len(self.rles)
        every = image_record(
            self.image_id,
            HostDetections(self.height, self.width, self.boxes, np.zeros(count), np.zeros(count), self.rles),
        )
        return {
            **{name: every[name] for name in _WHOLE},
            "shape": list(self.masks.shape),
            **{name: pack_array(getattr(self, name).astype(kind)) for name, kind in _TYPES.items()},
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> "SharedDetections":
        """Inverse of `to_json`; `where` starts the messages. Raises `InputError` unless the data has this form."""
        if type(data) is not dict or set(data) != set(_KEYS):
            raise InputError(f"{where}: expected an object with the keys {', '.join(_KEYS)}, found {describe(data)}")
        shape = data["shape"]
        fits = type(shape) is list and len(shape) == 2 and all(type(n) is int and n >= 0 for n in shape)
        if not fits or shape[0] * shape[1] > _MAX_ROWS:
            raise InputError(f"{where}: shape: expected two sizes, found {describe(shape)}")
        arrays = {name: unpack_array(data[name], kind, shape, f"{where}: {name}") for name, kind in _TYPES.items()}
        count = len(data["counts"]) if type(data["counts"]) is list else 0
        whole = {key: data[key] for key in _WHOLE}
        image_id, every = parse_record({**whole, "scores": [0] * count, "labels": [0] * count}, where)
        masks, labels, scores = arrays["masks"], arrays["labels"], arrays["scores"]
        if np.any(masks < -1) or np.any(masks >= count) or np.any(labels[masks >= 0] < 0) or np.isnan(scores).any():
            raise InputError(f"{where}: a detection has no mask, label or score")
        return cls(image_id, every.height, every.width, every.boxes, every.rles, **arrays)


def pack_array(array: np.ndarray) -> str:
    """The bytes of an array, compressed, as text; `unpack_array` gives it back."""
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode("ascii")


def unpack_array(text: Any, kind: str, shape: Sequence[int], where: str) -> np.ndarray:
    """Inverse of `pack_array` for text from a file; no more is unpacked than the shape and type (`<f4`) take."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(text, validate=True), size + 1)
    except (TypeError, ValueError, zlib.error):
        data = None
    if data is None or len(data) != size or not inflate.eof:
        raise InputError(f"{where}: expected {size} compressed bytes")
    return np.frombuffer(data, kind).reshape(shape)
