"""The detections of one image on the host: the one type that every part after the device pass works with."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.images.rle import Rle, decode_rles, segmentation_to_rle

_KEYS = ("height", "width", "boxes", "scores", "labels", "counts")
_MAX_SIDE = 10**6


@dataclass(frozen=True, eq=False)
class HostDetections:
    """The detections of one image, in order of descending score.

    height, width: of the original image, in pixels.
    boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels, corners inclusive (METHOD stage 3, step 8).
    scores: float32 `[n]`. labels: int32 `[n]`, class indices. rles: n compressed masks of the image's size.

    Which image it is stands with the record, not here. Arrays of another type are converted. Raises `InputError` if
    lengths differ, a number is not finite, a label is negative or a mask is of another size.
    """

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
            raise InputError(f"detections: expected as many boxes, scores, labels and masks, found {lengths}")
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all() and (self.labels >= 0).all()):
            raise InputError("detections: a box or score is not finite or a label is negative")
        if any(rle["size"] != [self.height, self.width] for rle in self.rles):
            raise InputError("detections: a mask is not of the image's size")

    def __len__(self) -> int:
        return len(self.rles)

    def select(self, rows: Sequence[int] | np.ndarray) -> "HostDetections":
        """Some of the detections, in the order of `rows`: their indices, or bool `[n]` true where one is kept."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.intp)
        return HostDetections(
            self.height,
            self.width,
            self.boxes[chosen],
            self.scores[chosen],
            self.labels[chosen],
            tuple(self.rles[i] for i in chosen),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` gives back the same arrays, bit for bit."""
        return {
            "height": self.height,
            "width": self.width,
            "boxes": [decimals(box) for box in self.boxes],
            "scores": decimals(self.scores),
            "labels": self.labels.tolist(),
            "counts": [rle["counts"] for rle in self.rles],
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> "HostDetections":
        """Inverse of `to_json` for data from a file; `where` starts the messages.

        Raises `InputError` unless the data has exactly this form, masks included.
        """
        if type(data) is not dict or set(data) != set(_KEYS):
            raise InputError(f"{where}: expected an object with the keys {', '.join(_KEYS)}, found {describe(data)}")
        for key in ("height", "width"):
            if type(data[key]) is not int or not 0 <= data[key] <= _MAX_SIDE:
                raise InputError(
                    f'{where}: "{key}": expected an integer in 0..{_MAX_SIDE}, found {describe(data[key])}'
                )
        arrays = {
            "boxes": number_array(data["boxes"], "iuf", 2, f"{where}: boxes"),
            "scores": number_array(data["scores"], "iuf", 1, f"{where}: scores"),
            "labels": number_array(data["labels"], "i", 1, f"{where}: labels"),
        }
        height, width, counts = data["height"], data["width"], data["counts"]
        if type(counts) is not list or not all(type(text) is str for text in counts):
            raise InputError(f"{where}: counts: expected a list of texts, found {describe(counts)}")
        rles = [segmentation_to_rle({"size": [height, width], "counts": text}, height, width, where) for text in counts]
        try:
            return cls(height, width, rles=tuple(rles), **arrays)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def decimals(values: np.ndarray) -> list[float]:
    """float32 `[n]` as the Python floats that print as the shortest decimals identifying the float32."""
    return [float(str(value)) for value in np.asarray(values, np.float32)]


def number_array(value: Any, kinds: str, rank: int, where: str) -> np.ndarray:
    """A JSON list of numbers (rank 1) or of four numbers each (rank 2) as an array; an empty list has any type.

    kinds: those of numpy that are allowed. Raises `InputError`, which begins with `where`, for anything else.
    """
    try:
        array = np.asarray(value) if type(value) is list else np.zeros((), np.bool_)
    except (ValueError, OverflowError):  # ragged; an integer beyond every float
        array = np.zeros((), np.bool_)
    if type(value) is list and array.size == 0 and array.ndim == 1:
        return array.reshape((0, 4) if rank == 2 else (0,))
    shaped = array.ndim == rank and array.shape[1:] in ((), (4,))
    # Beyond this, casting to float32 or int32 would overflow; no pixel, score or label comes near.
    if not shaped or array.dtype.kind not in kinds or not (np.abs(array) < 2**31).all():
        raise InputError(f"{where}: expected a list of {'four numbers each' if rank == 2 else 'numbers'}")
    return array


class OfImage:
    """What everything that holds the `detections` of one image says of them: their number, and the image's size."""

    detections: HostDetections

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def height(self) -> int:
        """Of the image, in pixels."""
        return self.detections.height

    @property
    def width(self) -> int:
        """Of the image, in pixels."""
        return self.detections.width


class OfDetections(OfImage):
    """What every view of one image's detections says of them."""

    @property
    def boxes(self) -> np.ndarray:
        """`[n, 4]` float32 x1, y1, x2, y2 in pixels, corners inclusive."""
        return self.detections.boxes

    @property
    def rles(self) -> tuple[Rle, ...]:
        """The n masks as COCO run lengths."""
        return self.detections.rles

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """All masks, bool `[n, H, W]`; decoded when first asked for, then kept. `rles` hold them in far less memory."""
        return decode_rles(self.rles, self.height, self.width)

    def _to_supervision(self, data: dict[str, Any]) -> Any:
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(f'to_supervision needs the library: "pip install supervision" ({error})') from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=self.detections.scores,
            class_id=self.detections.labels.astype(int),
            data=data,
        )
