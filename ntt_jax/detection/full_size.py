"""From labelled candidates to detections: NMS, full-resolution overlaps, soft merge (METHOD stage 3, steps 7 to 10).

Shapes are fixed, work is not: loops run over as many candidates and pixels as there are. Full-resolution masks exist
one tile at a time, as 0/1 numbers whose pairwise products, summed over tiles, are all the soft merge needs; only the
detections that are returned are resized a second time, to be stored. `height` and `width` may be Python ints or traced
int32 values, so that one compiled program can serve images of every size.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int32

from ntt_jax.images.resize import antialias_resize
from ntt_jax.models.platform import ACCELERATOR_TILING, CPU_TILING, Tiling

Size = int | Array

_WORD = 32  # rows of a tile that one word holds, one bit each


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
) -> Any:
    """Resize candidates[:count] to height x width tile by tile and hand on the bits.

    Calls `carry = on_chunk(carry, first_mask, first_row, first_column, bits [chunk, rows, columns] bool)` for every
    chunk of masks of a tile, then `carry = on_tile(carry)`. `candidates` is padded to a multiple of the chunk. Bits
    outside the image are False; rows from `count` on hold anything.
    """
    rows, columns, chunk = tiling.rows, tiling.columns, tiling.chunk
    chunks = (count + chunk - 1) // chunk
    tiles_across = (jnp.asarray(width, jnp.int32) + columns - 1) // columns
    tiles_down = (jnp.asarray(height, jnp.int32) + rows - 1) // rows

    def tile(index: Array, carry: Any) -> Any:
        first_row, first_column = index // tiles_across * rows, index % tiles_across * columns
        y = first_row + jnp.arange(rows, dtype=jnp.int32)
        x = first_column + jnp.arange(columns, dtype=jnp.int32)

        def resize(index: Array, carry: Any) -> Any:
            source = lax.dynamic_slice(candidates, (index * chunk,), (chunk,))
            # Columns first, as torch does; the masks are the smaller then.
            resized = antialias_resize(mask_logits[source], x, width, axis=2)
            resized = antialias_resize(resized, y, height, axis=1)
            return on_chunk(carry, index * chunk, first_row, first_column, resized > 0)

        return on_tile(lax.fori_loop(0, chunks, resize, carry))

    return lax.fori_loop(0, tiles_down * tiles_across, tile, carry)


def _pad(candidates: Array, multiple: int) -> Array:
    return jnp.pad(candidates, (0, -candidates.shape[0] % multiple))


def _pack(bits: Array) -> Array:
    """`[n, rows, columns]` bool -> `[n, rows / 32, columns]` uint32, row r of a group in bit r."""
    n, rows, columns = bits.shape
    shift = jnp.arange(_WORD, dtype=jnp.uint32).reshape(1, 1, _WORD, 1)
    groups = bits.reshape(n, rows // _WORD, _WORD, columns).astype(jnp.uint32)
    return jnp.sum(groups << shift, axis=2, dtype=jnp.uint32)


def _unpack(words: Array) -> Array:
    """Bits of uint32 words `[...]` -> `[..., 32]` bool."""
    shift = jnp.arange(_WORD, dtype=jnp.uint32).reshape((1,) * words.ndim + (_WORD,))
    return ((words[..., None] >> shift) & 1).astype(bool)


def _count_cpu(first: Array, second: Array) -> Array:
    """Common bits of every two rows, `[n, words]`, `[n, words]` uint32 -> `[n, n]` int32, one row at a time."""
    return lax.map(lambda row: jnp.sum(lax.population_count(row[None, :] & second).astype(jnp.int32), axis=1), first)


def _count_accelerator(first: Array, second: Array) -> Array:
    """The same as a matrix product of 0/1 numbers, exact in bfloat16 with float32 sums (below 2**24 pixels a tile)."""
    first = _unpack(first).reshape(first.shape[0], -1).astype(jnp.bfloat16)
    second = _unpack(second).reshape(second.shape[0], -1).astype(jnp.bfloat16)
    return jnp.einsum("ip,jp->ij", first, second, preferred_element_type=jnp.float32).astype(jnp.int32)


def full_size_overlaps(
    mask_logits: Float[Array, "P m n"],
    candidates: Int32[Array, " M"],
    count: Array,
    partners: Bool[Array, "M M"],
    height: Size,
    width: Size,
) -> tuple[Int32[Array, "M M"], Int32[Array, "M 4"]]:
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

    def overlaps(tiling: Tiling, count_common: Callable[[Array, Array], Array]) -> Callable[..., tuple[Array, Array]]:
        return lambda *arrays: _overlaps(*arrays, height=height, width=width, tiling=tiling, count_common=count_common)

    return lax.platform_dependent(
        mask_logits,
        candidates,
        count,
        partners,
        cpu=overlaps(CPU_TILING, _count_cpu),
        default=overlaps(ACCELERATOR_TILING, _count_accelerator),
    )


def _overlaps(
    mask_logits: Array,
    candidates: Array,
    count: Array,
    partners: Array,
    *,
    height: Size,
    width: Size,
    tiling: Tiling,
    count_common: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    total, block = candidates.shape[0], tiling.block
    candidates = _pad(candidates, math.lcm(tiling.chunk, block))
    padded = candidates.shape[0]
    live = jnp.arange(padded) < count
    blocks = padded // block

    # The block pairs of the lower triangle that hold a wanted pair, listed first. Diagonal blocks give the areas.
    wanted = jnp.pad(partners, ((0, padded - total), (0, padded - total))) & live[:, None] & live[None, :]
    wanted = wanted | (jnp.eye(padded, dtype=bool) & live[:, None])
    wanted = jnp.tril(jnp.any(wanted.reshape(blocks, block, blocks, block), axis=(1, 3)))
    first_block, second_block = jnp.nonzero(wanted, size=blocks * (blocks + 1) // 2, fill_value=0)
    pair_count = jnp.sum(wanted)

    def on_chunk(carry: Any, first_mask: Array, first_row: Array, first_column: Array, bits: Array) -> Any:
        tile_words, intersections, extents = carry
        words = lax.optimization_barrier(_pack(bits))  # made once, read three times
        tile_words = lax.dynamic_update_slice(tile_words, words.reshape(words.shape[0], -1), (first_mask, 0))
        x = first_column + jnp.arange(tiling.columns, dtype=jnp.int32)
        y = first_row + jnp.arange(tiling.rows, dtype=jnp.int32)
        in_column = jnp.any(words != 0, axis=1)
        in_row = _unpack(lax.reduce(words, np.uint32(0), lax.bitwise_or, (2,))).reshape(words.shape[0], -1)
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
        return tile_words, intersections, lax.dynamic_update_slice(extents, jnp.maximum(known, here), (first_mask, 0))

    def on_tile(carry: Any) -> Any:
        tile_words, intersections, extents = carry

        def multiply(index: Array, intersections: Array) -> Array:
            i, j = first_block[index] * block, second_block[index] * block
            first = lax.dynamic_slice(tile_words, (i, 0), (block, tile_words.shape[1]))
            second = lax.dynamic_slice(tile_words, (j, 0), (block, tile_words.shape[1]))
            known = lax.dynamic_slice(intersections, (i, j), (block, block))
            return lax.dynamic_update_slice(intersections, known + count_common(first, second), (i, j))

        return tile_words, lax.fori_loop(0, pair_count, multiply, intersections), extents

    carry = (
        jnp.zeros((padded, tiling.rows // _WORD * tiling.columns), jnp.uint32),
        jnp.zeros((padded, padded), jnp.int32),
        jnp.full((padded, 4), _NOWHERE, jnp.int32),
    )
    _, intersections, extents = _sweep(mask_logits, candidates, count, height, width, tiling, carry, on_chunk, on_tile)
    lower = jnp.tril(intersections)
    intersections = jnp.where(live[:, None] & live[None, :], jnp.maximum(lower, lower.T), 0)
    boxes = extents * jnp.array([[-1, -1, 1, 1]])
    boxes = jnp.where((live & (jnp.diagonal(intersections) > 0))[:, None], boxes, 0)
    return intersections[:total, :total], boxes[:total]


_NOWHERE = -(2**30)


def resize_masks(
    mask_logits: Float[Array, "P m n"],
    candidates: Int32[Array, " D"],
    count: Array,
    height: Size,
    width: Size,
    canvas: tuple[int, int],
) -> Bool[Array, "D H W"]:
    """Full-size masks of candidates[:count]: logits resized by torch's antialiased bilinear, > 0.

    Args:
      mask_logits: `[P, m, n]` float32.
      candidates: `[D]` int32 indices into the logits; count: how many of them are live (int32 scalar).
      height, width: full size in pixels, at most the canvas.
      canvas: (height, width) of the result.

    Returns:
      `[D, canvas height, canvas width]` bool, False outside the image and for masks that are not live.
    """

    def resize(tiling: Tiling) -> Callable[..., Array]:
        def run(logits: Array, indices: Array, live: Array) -> Array:
            total = indices.shape[0]
            indices = _pad(indices, tiling.chunk)
            shape = [-(-side // tile) * tile for side, tile in zip(canvas, tiling[:2], strict=True)]

            def on_chunk(masks: Array, first_mask: Array, first_row: Array, first_column: Array, bits: Array) -> Array:
                mask = first_mask + jnp.arange(bits.shape[0])
                bits = bits & (mask < live)[:, None, None]
                return lax.dynamic_update_slice(masks, bits, (first_mask, first_row, first_column))

            masks = jnp.zeros((indices.shape[0], *shape), bool)
            masks = _sweep(logits, indices, live, height, width, tiling, masks, on_chunk, lambda masks: masks)
            return masks[:total, : canvas[0], : canvas[1]]

        return run

    return lax.platform_dependent(
        mask_logits, candidates, count, cpu=resize(CPU_TILING), default=resize(ACCELERATOR_TILING)
    )
