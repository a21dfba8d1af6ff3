"""Masks of many boxes, or of earlier masks, on one image, as Meta's `SAM2ImagePredictor` makes them: one for each.

The number of prompts is fixed, the work is not: prompts that are not there cost nothing but memory. Boxes leave the
image side of the decoder the same for all of them, so `decode_boxes` uses the arithmetic of `point_grid`, which is
several times quicker; mask prompts do not, and go through the plain decoder.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.errors import InputError
from ntt_jax.models.platform import on_cpu
from ntt_jax.models.sam2.point_grid.decode_grid import prepare_prompts
from ntt_jax.models.sam2.point_grid.decoder import GridDecoder
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2, one_image
from ntt_jax.models.sam2.single_mask import choose_mask, is_stable

_CORNERS = (2, 3)  # labels of the points that are the corners of a box


def without_memory(no_mem_embed: Array, features: ImageFeatures) -> ImageFeatures:
    """The features with `no_mem_embed` added to the embedding, as Meta's predictor does and the method does not."""
    added = no_mem_embed.astype(features.embedding.dtype).reshape((1,) * (features.embedding.ndim - 1) + (-1,))
    return ImageFeatures(features.embedding + added, features.high_res)


def corner_points(boxes: Array) -> tuple[Array, Array]:
    """Boxes `[P, 4]` as the points `[P, 2, 2]` and labels `[P, 2]` that Meta's predictor makes of them.

    Given as points, they are joined by a padding point.
    """
    labels = jnp.broadcast_to(jnp.array([_CORNERS], jnp.int32), (boxes.shape[0], 2))
    return boxes.reshape(-1, 2, 2), labels


def decode_boxes(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    boxes: Array,
    valid: Array,
    *,
    ambiguous: bool = False,
    chunk: int | None = None,
    mask_chunk: int | None = None,
    block: int | None = None,
) -> tuple[Array, Array]:
    """One mask of each box: the single one, or the best of three where that is unstable. Pure.

    Args:
      features: of one image, `no_mem_embed` added (`without_memory`).
      boxes: `[P, 4]` float32 pixels of the model's input, x1, y1, x2, y2. valid: `[P]` bool, the boxes that are there.
      ambiguous: the best of three always.
      chunk, mask_chunk, block: as for `decode_grid`. They do not change the result beyond rounding.

    Returns:
      logits `[P, S/4, S/4]` and predicted_ious `[P]`, float32, 0 where not valid.

    Raises:
      InputError: boxes of another shape, or a decoder whose depth is not 2.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.shape[0] or valid.shape != boxes.shape[:1]:
        raise InputError(f"decode_boxes: expected boxes [P, 4], valid [P], found {list(boxes.shape)}, {valid.shape}")
    if sam2.config.decoder_depth != 2:
        raise InputError(f"decode_boxes: expected decoder_depth 2, found {sam2.config.decoder_depth}; use Sam2.decode")
    cpu, count = on_cpu(), boxes.shape[0]
    chunk = min(chunk or (4 if cpu else 32), count)
    mask_chunk = min(mask_chunk or (1 if cpu else 16), chunk)
    grid = GridDecoder(sam2.sam_mask_decoder)
    order = jnp.argsort(~valid, stable=True)  # those that are there come first
    image, side, tokens = prepare_prompts(grid, sam2, features, *corner_points(boxes[order]), block)
    h, w = image.shape[:2]
    chunks = -(-count // chunk)
    tokens = jnp.concatenate([tokens, jnp.broadcast_to(tokens[:1], (chunks * chunk - count, *tokens.shape[1:]))])
    live = jnp.sum(valid)

    def draw(state: Any, token: Array, wanted: Array, masks: Array) -> Array:
        """The masks `[chunk, 4h, 4w]` with those that are wanted drawn anew, of their mask token `[chunk]`."""
        weights = grid.mask_weights(grid.mask_token(side, state, token), token)
        first = jnp.argsort(~wanted, stable=True)

        def some(i: Array, masks: Array) -> Array:
            at = jax.lax.dynamic_slice(first, (jnp.minimum(i * mask_chunk, chunk - mask_chunk),), (mask_chunk,))
            # Tied to the counter, as in `decode_grid`: what does not depend on it would be computed always.
            at, chosen, _ = jax.lax.optimization_barrier((at, state, i))
            drawn = grid.masks(side, chosen, weights, at, h, w)
            return masks.at[jnp.where(wanted[at], at, chunk)].set(drawn, mode="drop")

        return jax.lax.fori_loop(0, (jnp.sum(wanted) + mask_chunk - 1) // mask_chunk, some, masks)

    def one_chunk(index: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        start = index * chunk
        state, ious, _ = grid.tokens(side, jax.lax.dynamic_slice_in_dim(tokens, start, chunk))
        there = start + jnp.arange(chunk) < live
        best = 1 + jnp.argmax(ious[:, 1:], axis=1)
        chosen = best if ambiguous else jnp.zeros_like(best)
        masks = draw(state, chosen, there, jnp.zeros((chunk, 4 * h, 4 * w), jnp.float32))
        if not ambiguous:
            unstable = there & ~is_stable(masks)
            chosen = jnp.where(unstable, best, 0)
            masks = jax.lax.cond(jnp.any(unstable), draw, lambda *given: given[-1], state, best, unstable, masks)
        rated = jnp.where(there, jnp.take_along_axis(ious, chosen[:, None], axis=1)[:, 0], 0.0)
        parts = zip(found, (masks, rated), strict=True)
        logits, predicted = (jax.lax.dynamic_update_slice_in_dim(x, part, start, 0) for x, part in parts)
        return logits, predicted

    found = jnp.zeros((chunks * chunk, 4 * h, 4 * w), jnp.float32), jnp.zeros(chunks * chunk, jnp.float32)
    logits, ious = jax.lax.fori_loop(0, (live + chunk - 1) // chunk, one_chunk, found)
    place = jnp.argsort(order)
    return logits[place], ious[place]


def decode_masks(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    masks: Array,
    valid: Array,
    boxes: Array | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """`decode_boxes` for mask prompts, with boxes or without. Pure.

    Args:
      masks: `[P, S/4, S/4]` float32 logits of earlier masks. chunk: prompts worked on together. The others are those of
        `decode_boxes`.

    Returns:
      As `decode_boxes`.
    """
    features = one_image(sam2.config, features)
    count = masks.shape[0]
    chunk = min(chunk or (2 if on_cpu() else 16), count)
    order = jnp.argsort(~valid, stable=True)
    live, position = jnp.sum(valid), sam2.sam_prompt_encoder.get_dense_pe()

    def one_chunk(index: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        places = index * chunk + jnp.arange(chunk)
        at = order[jnp.minimum(places, count - 1)]
        corners = (None, None) if boxes is None else corner_points(boxes[at])
        sparse, dense = sam2.sam_prompt_encoder(*corners, masks=masks[at])
        decoded = sam2.sam_mask_decoder(features.embedding, position, sparse, dense, features.high_res)
        chosen = choose_mask(decoded["logits"], decoded["predicted_ious"], ambiguous=False)
        target = jnp.where(places < live, at, count)
        logits, ious = (x.at[target].set(part, mode="drop") for x, part in zip(found, chosen, strict=True))
        return logits, ious

    found = jnp.zeros(masks.shape, jnp.float32), jnp.zeros(count, jnp.float32)
    return jax.lax.fori_loop(0, (live + chunk - 1) // chunk, one_chunk, found)
