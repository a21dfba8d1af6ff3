"""All three masks of single points, where `decode_grid` keeps the best of them: what SAM 2's automatic generator takes.

The same arithmetic as `decode_grid`. A point's tokens are worked on once; what belongs to a mask is done for the masks
that pass alone.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.errors import InputError
from ntt_jax.models.platform import on_cpu
from ntt_jax.models.sam2.point_grid.decode_grid import prepare
from ntt_jax.models.sam2.point_grid.decoder import GridDecoder
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2

MASKS = 3


def decode_all(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    points: Array,
    *,
    pred_iou_threshold: float | Array,
    live: int | Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """Masks 1..3 for single foreground points on one image. Pure.

    Args:
      features, points: as for `decode_grid`. pred_iou_threshold: a mask whose predicted IoU is not above it is not
        made. live: how many points count, all if None; the rest fills up the shape and costs nothing.
      chunk: points worked on together; None chooses by platform.

    Returns:
      logits `[P, 3, S/4, S/4]` float32, zero where not made; predicted_ious `[P, 3]` float32.

    Raises:
      InputError: as `decode_grid`.
    """
    if points.ndim != 2 or points.shape[1] != 2 or not points.shape[0]:
        raise InputError(f"decode_all: expected points [P, 2], found {list(points.shape)}")
    if sam2.config.decoder_depth != 2:
        raise InputError(f"decode_all: expected decoder_depth 2, found {sam2.config.decoder_depth}; use Sam2.decode")
    count = points.shape[0]
    chunk = min(chunk or (4 if on_cpu() else 64), count)
    grid = GridDecoder(sam2.sam_mask_decoder)
    image, side, tokens = prepare(grid, sam2, features, points, None)
    h, w = image.shape[:2]
    chunks = -(-count // chunk)
    tokens = jnp.concatenate([tokens, jnp.broadcast_to(tokens[:1], (chunks * chunk - count, *tokens.shape[1:]))])
    together = 1 if on_cpu() else chunk
    live = count if live is None else live
    empty = jnp.zeros((chunk, 4 * h, 4 * w), jnp.float32)

    def one_chunk(start: Array, tokens: Array) -> tuple[Array, Array]:
        state, ious, _ = grid.tokens(side, tokens)
        there = start + jnp.arange(chunk) < live

        def one_mask(index: Array) -> Array:
            passing = (jnp.take(ious, index, axis=1) > pred_iou_threshold) & there
            order = jnp.argsort(~passing, stable=True)
            best = jnp.full((chunk,), index, jnp.int32)

            def made() -> Array:
                weights = grid.mask_weights(grid.mask_token(side, state, best), best)

                def some(i: Array, logits: Array) -> Array:
                    at = jax.lax.dynamic_slice(order, (i * together,), (together,))
                    at, chosen, _ = jax.lax.optimization_barrier((at, state, i))  # as in `decode_grid`
                    masks = grid.masks(side, chosen, weights, at, h, w)
                    return logits.at[jnp.where(passing[at], at, chunk)].set(masks, mode="drop")

                blocks = (jnp.sum(passing) + together - 1) // together
                return jax.lax.fori_loop(0, blocks, some, empty)

            return jax.lax.cond(jnp.any(passing), made, lambda: empty)

        logits = jax.lax.map(one_mask, jnp.arange(1, 1 + MASKS))  # [3, chunk, m, m]
        return logits.swapaxes(0, 1), ious[:, 1:]

    def chunk_or_none(carry: None, args: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        none = jnp.zeros((chunk, MASKS, 4 * h, 4 * w), jnp.float32), jnp.zeros((chunk, MASKS), jnp.float32)
        return carry, jax.lax.cond(args[0] < live, one_chunk, lambda start, tokens: none, *args)

    starts = jnp.arange(chunks) * chunk
    _, (logits, ious) = jax.lax.scan(chunk_or_none, None, (starts, tokens.reshape(chunks, chunk, *tokens.shape[1:])))
    return logits.reshape(-1, MASKS, 4 * h, 4 * w)[:count], ious.reshape(-1, MASKS)[:count]
