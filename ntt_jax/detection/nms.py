"""Boxes of masks and class-aware non-maximum suppression (METHOD stage 3, step 7)."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Float32, Int32, Shaped

# Candidates that NMS decides on together: all of the published 1024 at once, and memory that grows with their number.
_NMS_ROWS = 1024


def mask_boxes(mask_logits: Float[Array, "P h w"]) -> Int32[Array, "P 4"]:
    """Inclusive extents of the pixels > 0 of `[P, h, w]` -> `[P, 4]` int32 x1, y1, x2, y2; 0, 0, -1, -1 if none."""

    def first_and_last(found: Array) -> tuple[Array, Array]:
        first, last = jnp.argmax(found, axis=-1), found.shape[-1] - 1 - jnp.argmax(found[:, ::-1], axis=-1)
        some = jnp.any(found, axis=-1)
        return jnp.where(some, first, 0), jnp.where(some, last, -1)

    # Maxima of the logits themselves: a quarter of the time of reducing booleans on a CPU.
    x1, x2 = first_and_last(jnp.max(mask_logits, axis=1) > 0)
    y1, y2 = first_and_last(jnp.max(mask_logits, axis=2) > 0)
    return jnp.stack([x1, y1, x2, y2], axis=-1).astype(jnp.int32)


def box_iou(boxes: Shaped[Array, "P 4"], others: Shaped[Array, "Q 4"]) -> Float32[Array, "P Q"]:
    """IoU of `[P, 4]` with `[Q, 4]` -> `[P, Q]` float32, areas (x2 - x1) (y2 - y1), no + 1; 0 where the union is 0."""
    boxes, others = boxes.astype(jnp.float32), others.astype(jnp.float32)
    area, other_area = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (boxes, others))
    low = jnp.maximum(boxes[:, None, :2], others[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = jnp.prod(jnp.maximum(0.0, high - low), axis=-1)
    union = area[:, None] + other_area[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), 0.0)


def class_aware_nms(
    boxes: Shaped[Array, "P 4"],
    labels: Shaped[Array, "P n"],
    valid: Bool[Array, " P"],
    num_classes: int,
    iou_threshold: float,
) -> Bool[Array, "P n"]:
    """Greedy class-aware NMS, exactly, without a loop over candidates.

    Greedy NMS is the one solution of keep[i] = no kept j < i of the same class overlaps i. Iterating that equation from
    "all kept" settles everything of suppression depth d after d rounds, and depths are small; a round is one product.
    More than 1024 candidates are decided on block by block, the best first.

    Args:
      boxes: `[P, 4]` int32 xyxy, in order of decreasing predicted IoU.
      labels: `[P, n]` int32, the distinct classes of every candidate; each (candidate, class) is one row.
      valid: `[P]` bool; other candidates are neither kept nor suppress.
      num_classes: K, above every label.
      iou_threshold: a row is suppressed by an earlier kept row of its class whose box overlaps it by more.

    Returns:
      keep `[P, n]` bool.
    """
    count, per_candidate = labels.shape
    if per_candidate == num_classes > 1:  # every candidate has every class, so that all classes decide alike
        keep = class_aware_nms(boxes, jnp.zeros((count, 1), jnp.int32), valid, 1, iou_threshold)
        return jnp.broadcast_to(keep, labels.shape)
    rows = min(count, _NMS_ROWS)
    blocks = -(-count // rows)
    boxes, labels, valid = (
        jnp.pad(x, ((0, blocks * rows - count), *[(0, 0)] * (x.ndim - 1))) for x in (boxes, labels, valid)
    )

    def decide(kept: Array, start: Array) -> tuple[Array, Array]:
        """kept: `[P, K]`, 1 where a candidate of an earlier block is kept with a class."""
        own_boxes, own_labels, own_valid = (lax.dynamic_slice_in_dim(x, start, rows) for x in (boxes, labels, valid))
        row = jnp.arange(rows)[:, None]
        earlier = jnp.arange(blocks * rows)[None] < start + row
        suppresses = ((box_iou(own_boxes, boxes) > iou_threshold) & earlier).astype(jnp.float32)
        alive = jnp.broadcast_to(own_valid[:, None], own_labels.shape)

        def with_own(keep: Array) -> Array:
            own = jnp.zeros((rows, num_classes), jnp.float32).at[row, own_labels].set(keep.astype(jnp.float32))
            return lax.dynamic_update_slice_in_dim(kept, own, start, axis=0)

        def suppress(state: tuple[Array, Array]) -> tuple[Array, Array]:
            keep, _ = state
            hits = jnp.dot(suppresses, with_own(keep))  # small whole numbers: exact in any precision
            update = alive & (jnp.take_along_axis(hits, own_labels, axis=1) == 0)
            return update, jnp.any(update != keep)

        keep, _ = lax.while_loop(lambda state: state[1], suppress, (alive, jnp.array(True)))
        return with_own(keep), keep

    starts = jnp.arange(blocks) * rows
    _, keep = lax.scan(decide, jnp.zeros((blocks * rows, num_classes), jnp.float32), starts)
    return keep.reshape(blocks * rows, per_candidate)[:count]
