"""From labelled candidates to detections: NMS, full-resolution overlaps, soft merge (METHOD stage 3, steps 7 to 10).

Shapes are fixed, work is not: loops run over as many candidates and pixels as there are. Full-resolution masks exist
one tile at a time, as 0/1 numbers whose pairwise products, summed over tiles, are all the soft merge needs; only the
detections that are returned are resized a second time, to be stored. `height` and `width` may be Python ints or traced
int32 values, so that one compiled program can serve images of every size.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntt_jax.resize import antialias_matrix

Size = int | Array


def mask_boxes(masks: Array) -> Array:
    """Inclusive extents of masks `[..., h, w]` bool -> `[..., 4]` int32 (x1, y1, x2, y2); an empty mask gives 0,0,0,0."""
    height, width = masks.shape[-2:]
    columns, rows = jnp.any(masks, axis=-2), jnp.any(masks, axis=-1)
    box = jnp.stack(
        [
            jnp.argmax(columns, axis=-1),
            jnp.argmax(rows, axis=-1),
            width - 1 - jnp.argmax(columns[..., ::-1], axis=-1),
            height - 1 - jnp.argmax(rows[..., ::-1], axis=-1),
        ],
        axis=-1,
    )
    return jnp.where(jnp.any(rows, axis=-1)[..., None], box, 0).astype(jnp.int32)


def box_iou(boxes: Array) -> Array:
    """Pairwise IoU `[P, 4]` -> `[P, P]` float32 with areas (x2 - x1) (y2 - y1), no + 1; 0 where the union is 0."""
    boxes = boxes.astype(jnp.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low = jnp.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = jnp.prod(jnp.maximum(0.0, high - low), axis=-1)
    union = area[:, None] + area[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), 0.0)


def class_aware_nms(boxes: Array, labels: Array, valid: Array, num_classes: int, iou_threshold: float) -> Array:
    """Greedy class-aware NMS, exactly, without a loop over candidates.

    Greedy NMS is the one solution of keep[i] = no kept j < i of the same class overlaps i. Iterating that equation from
    "all kept" settles everything of suppression depth d after d rounds, and depths are small; a round is one product.

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
    earlier = jnp.tril(jnp.ones((count, count), bool), -1)
    suppresses = ((box_iou(boxes) > iou_threshold) & earlier).astype(jnp.float32)  # [row, earlier row]
    row = jnp.arange(count)[:, None]
    alive = jnp.broadcast_to(valid[:, None], labels.shape)

    def suppress(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        kept = jnp.zeros((count, num_classes), jnp.float32).at[row, labels].set(keep.astype(jnp.float32))
        hits = jnp.dot(suppresses, kept)  # small whole numbers: exact in any precision
        update = alive & (jnp.take_along_axis(hits, labels, axis=1) == 0)
        return update, jnp.any(update != keep)

    keep, _ = lax.while_loop(lambda state: state[1], suppress, (alive, jnp.array(True)))
    return keep


class Tiling(NamedTuple):
    """How the full-resolution sweep cuts its work: pixels of a tile, masks resized together, masks multiplied together."""

    rows: int
    columns: int
    chunk: int
    block: int
    dtype: Any


# Cache-sized tiles where loops are cheap; few large products where every iteration costs a launch.
CPU_TILING = Tiling(rows=32, columns=128, chunk=32, block=64, dtype=jnp.float32)
ACCELERATOR_TILING = Tiling(rows=128, columns=256, chunk=256, block=256, dtype=jnp.bfloat16)


def _tile_weights(first: Array, tile: int, size: Size, in_size: int, band: int) -> tuple[Array, Array]:
    """Rows [first, first + tile) of the resize matrix, cut to the `band` input samples they can touch."""
    base = ((2 * first + 1) * in_size) // (2 * jnp.asarray(size, jnp.int32)) - 1
    start = jnp.clip(base, 0, in_size - band)
    rows = first + jnp.arange(tile, dtype=jnp.int32)
    return start, antialias_matrix(rows, size, in_size, start + jnp.arange(band, dtype=jnp.int32))


def _band(tile: int, size: Size, in_size: int, upscaling: bool) -> int:
    """Input samples that a tile of output samples can touch, at most."""
    if not upscaling:
        return in_size
    step = in_size / size if isinstance(size, int) else 1.0
    return min(in_size, math.ceil(tile * step) + 3)


def _sweep(
    mask_logits: Array,
    candidates: Array,
    count: Array,
    height: Size,
    width: Size,
    tiling: Tiling,
    carry: Any,
    on_chunk: Callable[[Any, Array, Array, Array, Array], Any],
    on_tile: Callable[[Any], Any],
    upscaling: bool,
) -> Any:
    """Resize candidates[:count] to height x width tile by tile, rows first, and hand on the bits.

    Calls `carry = on_chunk(carry, first_mask, first_row, first_column, bits [chunk, rows, columns] bool)` for every
    chunk of masks of a tile, then `carry = on_tile(carry)`. `candidates` is padded to a multiple of the chunk.
    """
    _, in_height, in_width = mask_logits.shape
    rows, columns, chunk = tiling.rows, tiling.columns, tiling.chunk
    band_height = _band(rows, height, in_height, upscaling)
    band_width = _band(columns, width, in_width, upscaling)
    chunks = (count + chunk - 1) // chunk

    def strip(strip_index: Array, state: Any) -> Any:
        first_row = strip_index * rows
        start_row, row_weights = _tile_weights(first_row, rows, height, in_height, band_height)

        def resize_rows(index: Array, strips: Array) -> Array:
            source = lax.dynamic_slice(candidates, (index * chunk,), (chunk,))
            start = jnp.stack([source, jnp.full_like(source, start_row)], axis=-1)
            band = jax.vmap(
                lambda at: lax.dynamic_slice(mask_logits, (at[0], at[1], 0), (1, band_height, in_width))[0]
            )(start)
            resized = jnp.einsum("iy,byx->bix", row_weights, band, precision="highest")
            return lax.dynamic_update_slice(strips, resized, (index * chunk, 0, 0))

        def tile(tile_index: Array, state: Any) -> Any:
            strips, carry = state
            first_column = tile_index * columns
            start_column, column_weights = _tile_weights(first_column, columns, width, in_width, band_width)

            def resize_columns(index: Array, carry: Any) -> Any:
                at = (index * chunk, 0, start_column)
                band = lax.dynamic_slice(strips, at, (chunk, rows, band_width))
                resized = jnp.einsum("jx,bix->bij", column_weights, band, precision="highest")
                return on_chunk(carry, index * chunk, first_row, first_column, resized > 0)

            return strips, on_tile(lax.fori_loop(0, chunks, resize_columns, carry))

        strips, carry = state
        strips = lax.fori_loop(0, chunks, resize_rows, strips)
        return lax.fori_loop(0, (jnp.asarray(width, jnp.int32) + columns - 1) // columns, tile, (strips, carry))

    strips = jnp.zeros((candidates.shape[0], rows, in_width), jnp.float32)
    strip_count = (jnp.asarray(height, jnp.int32) + rows - 1) // rows
    return lax.fori_loop(0, strip_count, strip, (strips, carry))[1]


def _by_direction(mask_logits: Array, height: Size, width: Size, sweep: Callable[[bool], Any]) -> Any:
    """Run `sweep(upscaling)`; the narrow bands of upscaling are chosen when tracing if the sizes are known then."""
    _, in_height, in_width = mask_logits.shape
    if isinstance(height, int) and isinstance(width, int):
        return sweep(height >= in_height and width >= in_width)
    return lax.cond((height >= in_height) & (width >= in_width), lambda: sweep(True), lambda: sweep(False))


def _pad(candidates: Array, multiple: int) -> Array:
    return jnp.pad(candidates, (0, -candidates.shape[0] % multiple))


def full_size_overlaps(
    mask_logits: Array, candidates: Array, count: Array, partners: Array, height: Size, width: Size
) -> tuple[Array, Array]:
    """Pixel counts of all wanted pairs of full-size masks, and the masks' extents.

    Args:
      mask_logits: `[P, m, n]` float32, finite.
      candidates: `[M]` int32 indices of the masks in question; the first `count` of them are live.
      count: int32 scalar.
      partners: `[M, M]` bool, symmetric: the pairs that are wanted. Others may or may not be computed; the diagonal
        always is.
      height, width: full size in pixels.

    Returns:
      intersections `[M, M]` int32 in pixels, the diagonal holding the areas; boxes `[M, 4]` int32 xyxy inclusive,
      0 for masks without pixels. Rows beyond `count` are 0.
    """

    def overlaps(tiling: Tiling) -> Callable[..., tuple[Array, Array]]:
        return lambda *arrays: _by_direction(
            arrays[0], height, width, lambda upscaling: _overlaps(*arrays, height, width, tiling, upscaling)
        )

    return lax.platform_dependent(
        mask_logits, candidates, count, partners, cpu=overlaps(CPU_TILING), default=overlaps(ACCELERATOR_TILING)
    )


def _overlaps(
    mask_logits: Array,
    candidates: Array,
    count: Array,
    partners: Array,
    height: Size,
    width: Size,
    tiling: Tiling,
    upscaling: bool,
) -> tuple[Array, Array]:
    total, block = candidates.shape[0], tiling.block
    candidates = _pad(candidates, math.lcm(tiling.chunk, block))
    padded = candidates.shape[0]
    live = jnp.arange(padded) < count
    blocks = padded // block

    # The block pairs of the lower triangle that hold a wanted pair, listed first. Diagonal blocks give the areas.
    wanted = jnp.pad(partners, ((0, padded - total), (0, padded - total))) & live[:, None] & live[None, :]
    wanted = wanted | (jnp.eye(padded, dtype=bool) & live[:, None])
    wanted = jnp.any(wanted.reshape(blocks, block, blocks, block), axis=(1, 3))
    pairs = blocks * (blocks + 1) // 2
    first_block, second_block = jnp.nonzero(jnp.tril(wanted), size=pairs, fill_value=0)
    pair_count = jnp.sum(jnp.tril(wanted))

    def on_chunk(carry: Any, first_mask: Array, first_row: Array, first_column: Array, bits: Array) -> Any:
        tile_bits, intersections, extents = carry
        flat = bits.reshape(bits.shape[0], -1).astype(tiling.dtype)
        tile_bits = lax.dynamic_update_slice(tile_bits, flat, (first_mask, 0))
        x = first_column + jnp.arange(tiling.columns, dtype=jnp.int32)
        y = first_row + jnp.arange(tiling.rows, dtype=jnp.int32)
        in_column, in_row = jnp.any(bits, axis=1), jnp.any(bits, axis=2)
        # All four as maxima: the first index is minus the greatest negative one.
        here = jnp.stack(
            [
                jnp.max(jnp.where(in_column, -x[None, :], _NOWHERE), axis=1),
                jnp.max(jnp.where(in_row, -y[None, :], _NOWHERE), axis=1),
                jnp.max(jnp.where(in_column, x[None, :], _NOWHERE), axis=1),
                jnp.max(jnp.where(in_row, y[None, :], _NOWHERE), axis=1),
            ],
            axis=1,
        )
        known = lax.dynamic_slice(extents, (first_mask, 0), here.shape)
        return tile_bits, intersections, lax.dynamic_update_slice(extents, jnp.maximum(known, here), (first_mask, 0))

    def on_tile(carry: Any) -> Any:
        tile_bits, intersections, extents = carry

        def multiply(index: Array, intersections: Array) -> Array:
            i, j = first_block[index] * block, second_block[index] * block
            pixels = tile_bits.shape[1]
            first = lax.dynamic_slice(tile_bits, (i, 0), (block, pixels))
            second = lax.dynamic_slice(tile_bits, (j, 0), (block, pixels))
            # 0/1 products summed in float32 over one tile: exact. Tiles are added up as integers.
            product = jnp.einsum("ip,jp->ij", first, second, preferred_element_type=jnp.float32).astype(jnp.int32)
            known = lax.dynamic_slice(intersections, (i, j), (block, block))
            return lax.dynamic_update_slice(intersections, known + product, (i, j))

        return tile_bits, lax.fori_loop(0, pair_count, multiply, intersections), extents

    carry = (
        jnp.zeros((padded, tiling.rows * tiling.columns), tiling.dtype),
        jnp.zeros((padded, padded), jnp.int32),
        jnp.full((padded, 4), _NOWHERE, jnp.int32),
    )
    _, intersections, extents = _sweep(
        mask_logits, candidates, count, height, width, tiling, carry, on_chunk, on_tile, upscaling
    )
    lower = jnp.tril(intersections)
    intersections = jnp.where(live[:, None] & live[None, :], jnp.maximum(lower, lower.T), 0)
    boxes = extents * jnp.array([[-1, -1, 1, 1]])
    boxes = jnp.where((live & (jnp.diagonal(intersections) > 0))[:, None], boxes, 0)
    return intersections[:total, :total], boxes[:total]


_NOWHERE = -(2**30)


def resize_masks(
    mask_logits: Array, candidates: Array, count: Array, height: Size, width: Size, canvas: tuple[int, int]
) -> Array:
    """Full-size masks of candidates[:count]: logits resized by torch's antialiased bilinear, > 0.

    Args:
      mask_logits: `[P, m, n]` float32.
      candidates: `[D]` int32 indices into the logits; count: how many of them are live (int32 scalar).
      height, width: full size in pixels, at most the canvas.
      canvas: (height, width) of the result.

    Returns:
      `[D, canvas height, canvas width]` bool, False outside the image and for masks that are not live.
    """

    def resize(tiling: Tiling, upscaling: bool, arrays: tuple[Array, Array, Array]) -> Array:
        logits, indices, live = arrays
        total = indices.shape[0]
        indices = _pad(indices, tiling.chunk)
        shape = tuple(-(-side // tile) * tile for side, tile in zip(canvas, tiling[:2], strict=True))

        def on_chunk(masks: Array, first_mask: Array, first_row: Array, first_column: Array, bits: Array) -> Array:
            mask = first_mask + jnp.arange(bits.shape[0])
            bits = bits & (mask < live)[:, None, None]
            return lax.dynamic_update_slice(masks, bits, (first_mask, first_row, first_column))

        masks = jnp.zeros((indices.shape[0], *shape), bool)
        masks = _sweep(logits, indices, live, height, width, tiling, masks, on_chunk, lambda m: m, upscaling)
        return masks[:total, : canvas[0], : canvas[1]]

    def with_tiling(tiling: Tiling) -> Callable[..., Array]:
        return lambda *arrays: _by_direction(arrays[0], height, width, lambda up: resize(tiling, up, arrays))

    accelerator = ACCELERATOR_TILING._replace(chunk=64)
    return lax.platform_dependent(
        mask_logits, candidates, count, cpu=with_tiling(CPU_TILING), default=with_tiling(accelerator)
    )


def soft_merge(scores: Array, labels: Array, cosines: Array, intersections: Array, areas: Array, valid: Array) -> Array:
    """Lower the score of every mask that lies inside an earlier mask of its class (METHOD stage 3, step 9).

    score_i *= sqrt(1 - max over j < i of the same class of |i and j| / |i| * clip(cos(f_i, f_j), 0, 1)).

    Args:
      scores `[M]` float32, labels `[M]`, in NMS order; cosines `[M, M]`; intersections `[M, M]` and areas `[M]` in
      pixels; valid `[M]` bool: other rows neither change nor matter.

    Returns:
      scores `[M]` float32.
    """
    order = jnp.arange(scores.shape[0])
    inside = intersections.astype(jnp.float32) / jnp.maximum(areas, 1).astype(jnp.float32)[:, None]
    related = (labels[:, None] == labels[None, :]) & (order[None, :] < order[:, None]) & valid[:, None] & valid[None, :]
    covered = jnp.max(jnp.where(related, inside * jnp.clip(cosines, 0.0, 1.0), 0.0), axis=1, initial=0.0)
    rest = 1.0 - covered
    # sqrt has no gradient at 0, where a mask is an exact repetition of a better one.
    return scores * jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1.0)), 0.0)
