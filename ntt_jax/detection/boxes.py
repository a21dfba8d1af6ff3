"""Boxes from elsewhere as prompts: a detector's or a proposal network's, each with its objectness.

On the host they are rows `[n, 5]` float32: x1, y1, x2, y2 in pixels of the image, and the objectness. On the device
they are as many rows for every image, and those that are not there are 0.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.config import DetectConfig
from ntt_jax.detection.merge import Candidates, Merged, describe_candidates
from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.models.sam2.box_prompts import decode_boxes, without_memory
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2

LARGEST = 1e6
"""Pixels that a corner may be away from the image's."""
NONE = np.zeros((0, 5), np.float32)


class BoxedImage(NamedTuple):
    """An image uint8 `[H, W, 3]` and its boxes `[n, 5]`, as a `Predictor` takes them whose configuration asks for
    `proposals`."""

    image: np.ndarray
    boxes: np.ndarray


def as_boxes(boxes: Any, scores: Any = None, where: str = "boxes") -> np.ndarray:
    """Boxes as people hand them over, as rows `[n, 5]`.

    boxes: `[n, 4]` x1, y1, x2, y2 in pixels. scores: `[n]`, 1 each if None. `where` starts the messages.
    Raises `InputError` for another shape or type, numbers that are not finite, corners in another order.
    """
    rows = _numbers(boxes, f"{where}: expected an array [N, 4] of x1, y1, x2, y2 in pixels")
    if rows.size == 0 and rows.ndim < 3:
        rows = rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise InputError(f"{where}: expected an array [N, 4] of x1, y1, x2, y2 in pixels, found {list(rows.shape)}")
    if not (np.abs(rows) <= LARGEST).all():
        raise InputError(f"{where}: expected finite numbers of at most {LARGEST:,.0f}, found others")
    if (empty := np.flatnonzero((rows[:, 2:] <= rows[:, :2]).any(axis=1))).size:
        found = [round(float(v), 2) for v in rows[empty[0]]]
        raise InputError(f"{where}: box {empty[0]}: expected corners x1 < x2, y1 < y2, not a size, found {found}")
    ranks = np.ones(len(rows)) if scores is None else _numbers(scores, f"{where}: expected a score for each box")
    if ranks.shape != (len(rows),):
        raise InputError(f"{where}: expected {len(rows)} scores, one for each box, found {list(ranks.shape)}")
    if not np.isfinite(ranks).all():
        raise InputError(f"{where}: box {np.flatnonzero(~np.isfinite(ranks))[0]}: expected a finite score")
    return np.concatenate([rows, ranks[:, None]], axis=1).astype(np.float32)


def _numbers(value: Any, expected: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.zeros((), np.bool_)
    if array.dtype.kind not in "iuf" or isinstance(value, (str, bytes)):
        raise InputError(f"{expected}, found {describe(value) if array.dtype.kind == 'O' else array.dtype}")
    return array.astype(np.float64)


def inside(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows `[n, 5]` cut at the border of the image; those that have nothing in it are then without a size."""
    rows = rows.copy()
    rows[:, :4] = np.clip(rows[:, :4], 0, [width, height, width, height])
    return rows


def best_boxes(rows: np.ndarray, config: DetectConfig) -> np.ndarray:
    """The best `max_proposals` that reach the threshold, best first, equal ones in their order."""
    rows = rows[rows[:, 4] >= config.proposal_threshold]
    return rows[np.argsort(-rows[:, 4], kind="stable")][: config.max_proposals]


def choose_boxes(rows: np.ndarray, config: DetectConfig) -> np.ndarray:
    """`best_boxes`, and 0 for the rest: `[max_proposals, 5]`."""
    rows = best_boxes(rows, config)
    return np.pad(rows, ((0, config.max_proposals - len(rows)), (0, 0))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class BoxCandidates:
    """What boxes `[N, 5]` propose. candidates, logits `[N, m, m]`, predicted_ious `[N]`: as of points; order: `[N]`,
    what NMS and merge go by. boxes: `[N, 4]` float32, as given, cut at the image's border."""

    candidates: Candidates
    logits: Array
    predicted_ious: Array
    order: Array
    boxes: Array


def propose_from_boxes(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    grid: tuple[int, int],
    boxes: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
) -> BoxCandidates:
    """A mask of each box: the candidates of one image. Pure.

    features: of the image, as the grid of points gets them; grid: rows and columns of patches. boxes: `[N, 5]` in
    pixels of the image of this height and width, without a size where there is none.
    """
    size = jnp.stack([jnp.asarray(width), jnp.asarray(height)] * 2).astype(jnp.float32)
    corners = jnp.clip(boxes[:, :4], 0, size[None])
    valid = jnp.all(corners[:, 2:] > corners[:, :2], axis=1)
    corners = jnp.where(valid[:, None], corners, 0.0)
    features = without_memory(sam2.no_mem_embed[...], features)
    scaled = corners / size[None] * sam2.config.image_size
    logits, ious = decode_boxes(sam2, features, scaled, valid, ambiguous=config.proposal_mask == "best")
    found = describe_candidates(logits, grid)
    candidates = Candidates(found.weights, found.boxes, found.valid & valid)
    return BoxCandidates(
        candidates, logits, ious, boxes[:, 4] if config.proposal_order == "objectness" else ious, corners
    )


def with_own_boxes(merged: Merged, boxes: Array, first: int) -> Merged:
    """The detections of boxes `[N, 4]` with these in place of their masks' boxes, which are float32 then.

    first: the place of the first box among the candidates.
    """
    index = merged.source - first
    mine = merged.valid & (index >= 0)
    own = boxes[jnp.clip(index, 0, boxes.shape[0] - 1)]
    return dataclasses.replace(merged, boxes=jnp.where(mine[:, None], own, merged.boxes.astype(jnp.float32)))
