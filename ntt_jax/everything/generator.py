"""All masks of an image, as SAM 2's automatic generator makes them, by the quick decoder of single points.

    crop      the image and, if asked for, overlapping crops of it           host
    encode    as Meta's image predictor: torch's bilinear, `no_mem_embed`    one program (`prompt_masker`)
    decode    three masks of every point of a grid                           one program (`decode_all`)
    measure   stability, box and run lengths at full size, one mask at a     host, only where the mask is
              time and only the part of it that is not plainly outside
    choose    predicted IoU, stability, crop borders, boxes' NMS             host

No bitmap of the image's size is made for a mask: an image of any size takes the memory of its crops' logits.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.compiled.prompt_masker import EncodedImage, PromptMasker
from ntt_jax.config import COMPILER_OPTIONS, Sam2Config
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.everything.found import FoundMasks
from ntt_jax.everything.settings import Crop, MaskSettings, crops_of
from ntt_jax.images.preprocess import check_image
from ntt_jax.images.resize import resize_taps
from ntt_jax.images.rle import Rle
from ntt_jax.images.rle_crops import place_mask
from ntt_jax.models.sam2.point_grid.decode_all import decode_all
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2

POINTS_AT_ONCE = 256
"""Points decoded by one call; fewer are filled up, so that one program serves any number."""
_BORDER = 20.0  # what ends within so many pixels of a crop's border may go on there
_STRIP = 2**22  # pixels of a mask whose logits are made at once


@functools.partial(jax.jit, static_argnames=("config",), compiler_options=COMPILER_OPTIONS)
def _decode(
    decoder: tuple[Any, Any], features: ImageFeatures, points: Array, live: int, threshold: float, *, config: Sam2Config
) -> tuple[Array, Array]:
    sam2 = PromptDecoder(config, *decoder)
    return decode_all(sam2, features, points, pred_iou_threshold=threshold, live=live)


class Measured(NamedTuple):
    """A mask at full size: run lengths in the whole image; box x1, y1, x2, y2 in it; stability."""

    rle: Rle
    box: tuple[int, int, int, int]
    stability: float


class MaskGenerator:
    """All masks of images, without classes. Called with an image it returns `FoundMasks`; threads may share one.

    sam2: the model. settings: those of SAM 2's generator, its defaults if None; changes: single ones by name, as
    `points_per_side=16`. matmul_precision: as for `Predictor`.

    Raises `InputError` for a model that is none, and for unknown or impossible settings.
    """

    def __init__(
        self, sam2: Sam2, settings: MaskSettings | None = None, *, matmul_precision: str = "highest", **changes: Any
    ):
        if not isinstance(sam2, Sam2):
            raise InputError(f"generate_masks: sam2: expected a Sam2, found a {type(sam2).__name__}")
        self.settings = MaskSettings.of(settings, changes)
        self._masker = PromptMasker(sam2, matmul_precision=matmul_precision)
        self._decoder = sam2.sam_prompt_encoder, sam2.sam_mask_decoder
        self._precision = matmul_precision

    def __call__(self, image: np.ndarray) -> FoundMasks:
        """The masks of an image `[H, W, 3]` uint8 RGB. Raises `InputError` for anything else."""
        check_image(image, "generate_masks")
        height, width = image.shape[:2]
        crops = crops_of(height, width, self.settings)
        parts = [self._of_crop(image, crop) for crop in crops]
        whole = _concatenated(parts, height, width)
        if len(crops) == 1:
            return whole
        areas = np.prod(whole.crop_boxes[:, 2:] - whole.crop_boxes[:, :2], axis=1)
        return _chosen(whole, box_nms(whole.boxes, 1.0 / areas, self.settings.crop_nms_thresh))

    def _of_crop(self, image: np.ndarray, crop: Crop) -> FoundMasks:
        """The masks of one crop, by predicted IoU."""
        height, width = image.shape[:2]
        pixels = np.ascontiguousarray(image[crop.top : crop.bottom, crop.left : crop.right])
        encoded = self._masker.encode(pixels)
        unit = unit_points(self.settings.points_of(crop.layer))
        rows: list[tuple[Measured, float, np.ndarray]] = []
        with ThreadPoolExecutor(4) as workers:
            for start in range(0, len(unit), POINTS_AT_ONCE):
                some = unit[start : start + POINTS_AT_ONCE]
                logits, ious = self._decode(encoded, some)
                point, which = np.nonzero(ious > self.settings.pred_iou_thresh)
                measure = functools.partial(
                    measure_mask, crop=crop, height=height, width=width, offset=self.settings.stability_score_offset
                )
                measured = workers.map(measure, (logits[i, j] for i, j in zip(point, which, strict=True)))
                placed = some * [pixels.shape[1], pixels.shape[0]] + [crop.left, crop.top]
                rows += zip(measured, ious[point, which].tolist(), placed[point], strict=True)
        rows = [row for row in rows if row[0].stability >= self.settings.stability_score_thresh]
        rows = [row for row in rows if not _near_border(row[0].box, crop, height, width)]
        found = FoundMasks(
            HostDetections(
                height,
                width,
                np.array([row[0].box for row in rows]),
                np.array([row[1] for row in rows]),
                np.zeros(len(rows), np.int32),
                tuple(row[0].rle for row in rows),
            ),
            np.array([row[2] for row in rows], np.float32).reshape(-1, 2),
            np.array([row[0].stability for row in rows], np.float32),
            np.tile(np.array(crop[:4]), (len(rows), 1)),
        )
        return _chosen(found, box_nms(found.boxes, found.predicted_ious, self.settings.box_nms_thresh))

    def _decode(self, encoded: EncodedImage, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits `[P, 3, m, m]` and predicted IoUs `[P, 3]` of points of the unit square."""
        filled = np.concatenate([unit, np.repeat(unit[-1:], POINTS_AT_ONCE - len(unit), axis=0)])
        size, count = self._masker.config.image_size, len(unit)
        with published_numbers(self._precision):
            logits, ious = _decode(
                self._decoder,
                encoded.features,
                jnp.asarray(filled * size, jnp.float32),
                count,
                self.settings.pred_iou_thresh,
                config=self._masker.config,
            )
        return np.asarray(logits)[:count], np.asarray(ious)[:count]


def generate_masks(
    sam2: Sam2, image: Any, settings: MaskSettings | None = None, *, matmul_precision: str = "highest", **changes: Any
) -> FoundMasks:
    """All masks of one image, without classes: SAM 2's automatic generator (docs/everything.md).

    Args:
      sam2: the model, from `load_sam2`.
      image: uint8 RGB `[H, W, 3]`.
      settings, changes, matmul_precision: as for `everything.MaskGenerator`, which is for many images. Programs are
        compiled once per process, whatever the images' sizes.

    Raises:
      InputError: a model or an image that is none, unknown or impossible settings.
    """
    return MaskGenerator(sam2, settings, matmul_precision=matmul_precision, **changes)(image)


def unit_points(count: int) -> np.ndarray:
    """The middles of count x count cells of the unit square, row by row: `[count ** 2, 2]` float64 (x, y)."""
    line = (np.arange(count) + 0.5) / count
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def measure_mask(logits: np.ndarray, *, crop: Crop, height: int, width: int, offset: float) -> Measured:
    """A mask's logits `[m, m]` at the size of its crop, by torch's bilinear: mask where > 0, and its stability.

    Only the part of the crop is made where an interpolated logit can be above -offset.
    """
    wide, high = crop.right - crop.left, crop.bottom - crop.top
    above = logits > -offset
    (y0, y1), (x0, x1) = (_span(np.asarray(above.any(axis=axis)), side) for axis, side in ((1, high), (0, wide)))
    rows = [part[y0:y1] for part in resize_taps(high, logits.shape[0], "bilinear")]
    inside = np.zeros((y1 - y0, x1 - x0), np.bool_)
    inner = outer = 0
    step = max(1, _STRIP // max(1, y1 - y0))
    for first in range(x0, x1, step):
        columns = [part[first : min(first + step, x1)] for part in resize_taps(wide, logits.shape[1], "bilinear")]
        values = _taken(_taken(logits, columns, 1), rows, 0)
        inner += int(np.count_nonzero(values > offset))
        outer += int(np.count_nonzero(values > -offset))
        inside[:, first - x0 : first - x0 + values.shape[1]] = values > 0
    rle = place_mask(inside, crop.left + x0, crop.top + y0, height, width)
    corner = (crop.left + x0, crop.top + y0) if inside.any() else (crop.left, crop.top)
    return Measured(rle, _box(inside, *corner), inner / max(outer, 1))


def _taken(array: np.ndarray, taps: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """One axis resized by `resize_taps`, float32."""
    indices, weights = taps
    shape = (1, -1) if axis else (-1, 1)
    parts = (
        np.take(array, indices[:, tap], axis=axis) * weights[:, tap].astype(np.float32).reshape(shape)
        for tap in range(indices.shape[1])
    )
    return functools.reduce(np.add, parts)


def _span(there: np.ndarray, side: int) -> tuple[int, int]:
    """First and one after the last of `side` pixels that touch the samples `there` `[m]` bool; 0, 0 for none."""
    found = np.flatnonzero(there)
    if not len(found):
        return 0, 0
    indices, _ = resize_taps(side, len(there), "bilinear")
    touched = np.flatnonzero((indices[:, 0] <= found[-1]) & (indices[:, -1] >= found[0]))
    return (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 0)


def _box(inside: np.ndarray, left: int, top: int) -> tuple[int, int, int, int]:
    """First and last pixels; the corner itself for an empty mask."""
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if not len(columns):
        return left, top, left, top
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]), top + int(rows[-1])


def _near_border(box: Sequence[int], crop: Crop, height: int, width: int) -> bool:
    """Whether a box ends near a border of its crop that is not near the image's."""
    image = (0, 0, width, height)
    return any(
        abs(own - edge) <= _BORDER and abs(own - outer) > _BORDER
        for own, edge, outer in zip(box, crop[:4], image, strict=True)
    )


def box_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes `[n, 4]` that greedy NMS keeps, best first; ties in their order (`torchvision.ops.nms`)."""
    boxes = boxes.astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(0, high - low), axis=1)
        union = areas[best] + areas[order] - common
        with np.errstate(invalid="ignore"):
            order = order[~((common / union).astype(np.float64) > threshold)]
    return np.array(kept, np.intp)


def _chosen(found: FoundMasks, rows: np.ndarray) -> FoundMasks:
    return FoundMasks(found.detections.select(rows), found.points[rows], found.stability[rows], found.crop_boxes[rows])


def _concatenated(parts: Sequence[FoundMasks], height: int, width: int) -> FoundMasks:
    every = [part.detections for part in parts]
    return FoundMasks(
        HostDetections(
            height,
            width,
            np.concatenate([one.boxes for one in every]),
            np.concatenate([one.scores for one in every]),
            np.concatenate([one.labels for one in every]),
            tuple(rle for one in every for rle in one.rles),
        ),
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.stability for part in parts]),
        np.concatenate([part.crop_boxes for part in parts]),
    )
