"""What a recording pass keeps of one image: all that labels, NMS, merging and scoring need of its candidates."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.ablation.detections import pack_array, unpack_array
from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.images.rle import Rle, segmentation_to_rle

STABILITY_OFFSETS = (0.5, 0.7, 1.0)
"""The `stability_offset`s at which a pass records the candidates' stability."""
MAX_CANDIDATES = 4096
"""Candidates of an image at most: points of a grid of 64 x 64."""

_SIZES = ("image_id", "height", "width", "candidates", "channels")
_ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    # name: type, and its axes: L recorded candidates, C channels, a number, or T pairs of candidates
    "place": ("<i4", ("L",)),
    "objects": ("<f4", ("L", "C")),
    "predicted_ious": ("<f4", ("L",)),
    "grid_boxes": ("<i4", ("L", "4")),
    "areas": ("<f4", ("L",)),
    "stabilities": ("<f4", ("L", str(len(STABILITY_OFFSETS)))),
    "boxes": ("<i4", ("L", "4")),
    "intersections": ("<i4", ("T",)),
}


@dataclass(frozen=True, eq=False)
class Proposals:
    """The L candidates of one image that have a mask, a feature, and a predicted IoU above the recording's threshold.

    height, width: of the image, in pixels. candidates: P of the grid of points, of which these are some.
    place: int32 `[L]`, their places among the P, ascending. objects: float32 `[L, C]` of length 1. predicted_ious:
    float32 `[L]`. grid_boxes: int32 `[L, 4]` on the mask grid. areas: float32 `[L]` in pixels of the mask grid.
    stabilities: float32 `[L, 3]` at `STABILITY_OFFSETS`. boxes: int32 `[L, 4]` x1, y1, x2, y2 in pixels of the image,
    inclusive. intersections: int32 `[L, L]` in pixels of the image, areas on the diagonal. rles: the L masks.
    left_out: how many more there were, of lower predicted IoUs, for which a record had no room (`fitted`).
    """

    image_id: int
    height: int
    width: int
    candidates: int
    place: np.ndarray
    objects: np.ndarray
    predicted_ious: np.ndarray
    grid_boxes: np.ndarray
    areas: np.ndarray
    stabilities: np.ndarray
    boxes: np.ndarray
    intersections: np.ndarray
    rles: tuple[Rle, ...]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.place)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` gives back the same, bit for bit. Of the intersections one half is kept."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays["intersections"] = self.intersections[np.tril_indices(len(self))]
        return {
            "image_id": self.image_id,
            "height": self.height,
            "width": self.width,
            "candidates": self.candidates,
            "channels": self.objects.shape[1],
            "counts": [rle["counts"] for rle in self.rles],
            **{name: pack_array(arrays[name].astype(kind)) for name, (kind, _) in _ARRAYS.items()},
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    def best(self, count: int) -> "Proposals":
        """The `count` of the highest predicted IoUs, equal ones by place; the others are `left_out`."""
        rows = np.sort(np.argsort(-self.predicted_ious, kind="stable")[:count])
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[rows] for name in _ARRAYS if name != "intersections"},
            intersections=self.intersections[np.ix_(rows, rows)],
            rles=tuple(self.rles[row] for row in rows),
            left_out=self.left_out + len(self) - len(rows),
        )

    def fitted(self, limit: int) -> dict[str, Any]:
        """`to_json` of as many of the best candidates as `limit` bytes of JSON text hold."""
        some, data = self, self.to_json()
        while len(some) and (size := len(json.dumps(data, separators=(",", ":")))) > limit:
            # Shared pixels grow with the square of the number, all else with the number.
            some = some.best(int(len(some) * min(0.97, math.sqrt(limit / size))))
            data = some.to_json()
        return data

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Proposals":
        """Inverse of `to_json`; `where` starts the messages. Raises `InputError` unless the data has this form."""
        keys = {*_SIZES, "counts", *_ARRAYS}
        if type(data) is not dict or set(data) - {"left_out"} != keys:
            raise InputError(f"{where}: expected an object with the keys {', '.join(sorted(keys))}")
        data = {"left_out": 0, **data}
        limits = (2**63 - 1, 10**6, 10**6, MAX_CANDIDATES, 2**13, MAX_CANDIDATES)
        for name, limit in zip((*_SIZES, "left_out"), limits, strict=True):
            if type(data[name]) is not int or not 0 <= data[name] <= limit:
                raise InputError(
                    f"{where}: {name}: expected a whole number up to {limit}, found {describe(data[name])}"
                )
        counts = data["counts"]
        if type(counts) is not list or len(counts) > data["candidates"]:
            raise InputError(f"{where}: counts: expected a list of at most {data['candidates']} masks")
        count, height, width = len(counts), data["height"], data["width"]
        axes = {"L": count, "C": data["channels"], "T": count * (count + 1) // 2}
        arrays = {
            name: unpack_array(data[name], kind, [axes[a] if a in axes else int(a) for a in shape], f"{where}: {name}")
            for name, (kind, shape) in _ARRAYS.items()
        }
        place = arrays["place"]
        if np.any(np.diff(place) <= 0) or np.any(place < 0) or np.any(place >= data["candidates"]):
            raise InputError(f"{where}: place: expected ascending places among {data['candidates']} candidates")
        numbers = (arrays[name] for name in ("objects", "predicted_ious", "areas", "stabilities"))
        if not all(np.isfinite(array).all() for array in numbers):
            raise InputError(f"{where}: a number is not finite")
        half = np.zeros((count, count), np.int32)
        half[np.tril_indices(count)] = arrays["intersections"]
        arrays["intersections"] = np.maximum(half, half.T)
        rles = tuple(
            segmentation_to_rle({"size": [height, width], "counts": text}, height, width, where) for text in counts
        )
        left_out = data["left_out"]
        return cls(data["image_id"], height, width, data["candidates"], rles=rles, left_out=left_out, **arrays)


def record_bytes(count: int, channels: int) -> int:
    """Bytes of a record of `count` candidates with features of `channels` at most, but for its masks and numbers.

    Features, boxes, areas, stabilities and the shared pixels of each pair, as base64 of what zlib cannot compress.
    """
    axes = {"L": count, "C": channels, "T": count * (count + 1) // 2}
    total = 0
    for kind, shape in _ARRAYS.values():
        size = np.dtype(kind).itemsize * math.prod(axes[a] if a in axes else int(a) for a in shape)
        total += 4 * -(-(size + size // 1000 + 64) // 3)
    return total
