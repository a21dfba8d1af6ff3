"""Named intermediates of the decoder for a grid of points, to hold beside those of the plain one.

The grid's decoder never forms the image tokens. Here they are formed from what it has instead (attention weights,
values, deviations), so that every stage of `MaskDecoder` has its counterpart: where the two first differ is the fault.
Memory is that of the plain decoder: for few points.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.models.sam2.point_grid.decoder import GridDecoder
from ntt_jax.models.sam2.point_grid.image_side import ImageSide
from ntt_jax.models.sam2.point_grid.state import Tokens
from ntt_jax.models.sam2.point_grid.weights import bias_of, centre, kernel_of

_IN_LAYER = ("norm1", "norm2", "queries", "image_to_token", "keys")
STAGES = (
    *(f"layer{layer}_{name}" for layer in range(2) for name in _IN_LAYER),
    *("iou_token", "predicted_ious", "mask_tokens", "hypernetworks", "upscaled_half", "upscaled_embedding", "logits"),
)
"""The stages in the order of computation: what differs at one differs at those after it."""


def grid_intermediates(
    grid: GridDecoder, image: Array, side: ImageSide, tokens: Array, best: Array
) -> dict[str, Array]:
    """Every stage of `GridDecoder` by the name that `Sam2.forward_sam_heads` gives it (`STAGES`).

    Args:
      image, side, tokens: of `decode_grid.prepare`, for P points.
      best: `[P]` in 0..3, the mask token of which there are a mask and its weights.

    Returns:
      "layer0_norm1", "layer0_norm2", "layer0_queries" `[P, T, C]`, "layer0_image_to_token", "layer0_keys" `[P, N, C]`,
      the same of layer 1, "iou_token" `[P, C]`, "predicted_ious" `[P, 4]`, and of the mask token `best`: "mask_tokens"
      `[P, C]`, "hypernetworks" `[P, C / 8]`, "upscaled_half" `[P, 2h, 2w, C / 4]`, "upscaled_embedding"
      `[P, 4h, 4w, C / 8]`, "logits" `[P, 4h, 4w]`. All float32.
    """
    h, w, c = image.shape
    state, ious, found = grid.tokens(side, tokens)
    keys = image.reshape(1, h * w, c)
    for index, (attention, variance) in enumerate(
        ((state.attention0, state.variance1), (state.attention1, state.variance2))
    ):
        layer = (grid.layer0, grid.layer1)[index]
        added = _image_to_token(grid, layer.cross_attn_image_to_token.out_proj, state.values[index], attention)
        deviation = jnp.sqrt(jnp.moveaxis(variance, 0, 1).reshape(len(tokens), h * w, 1))
        keys = centre(keys + added) / deviation * layer.norm4.scale[...][None, None] + bias_of(layer.norm4)[None]
        found |= {f"layer{index}_image_to_token": added, f"layer{index}_keys": keys}
    token = grid.mask_token(side, state, best)
    weights = grid.mask_weights(token, best)
    half, upscaled = _upscale(grid, side, state, w)
    return found | {
        "predicted_ious": ious,
        "mask_tokens": token,
        "hypernetworks": weights,
        "upscaled_half": half,
        "upscaled_embedding": upscaled,
        "logits": grid.masks(side, state, weights, jnp.arange(len(tokens)), h, w),
    }


def _image_to_token(grid: GridDecoder, out_proj, differences: Array, attention: Array) -> Array:
    """What an image-to-token attention adds to the image, `[P, N, C]`: A^T B + e + bias.

    differences: `[P, T, H, d]`, as in `Tokens.values`. attention: A `[blocks, P, J, n]`, without the last token.
    """
    p = differences.shape[0]
    kernel = kernel_of(out_proj).reshape(grid.heads, -1, out_proj.kernel.shape[-1])
    rows = jnp.einsum("pthd,hdc->pthc", differences, kernel, precision="highest")
    weighted, always = rows[:, :-1].reshape(p, -1, rows.shape[-1]), jnp.sum(rows[:, -1], axis=1)
    weights = jnp.moveaxis(attention, 0, -2).reshape(p, weighted.shape[1], -1)  # [P, J, N]
    added = jnp.einsum("pjn,pjc->pnc", weights.astype(jnp.float32), weighted, precision="highest")
    return added + always[:, None] + bias_of(out_proj)[None]


def _upscale(grid: GridDecoder, side: ImageSide, state: Tokens, width: int) -> tuple[Array, Array]:
    """`[P, 2h, 2w, C / 4]` and `[P, 4h, 4w, C / 8]`: the maps that `GridDecoder.masks` multiplies by weights."""
    at = jnp.arange(state.queries.shape[0])
    upscaling = grid.upscaling(state, at)

    def one(block: tuple[Array, ImageSide]) -> tuple[Array, Array]:
        index, side = block
        half = grid.upscaled_half(upscaling, side, state, index, at)
        return half, grid.upscaled(upscaling, half, side)

    half, full = jax.lax.map(one, (jnp.arange(len(state.attention0)), side))  # [blocks, P, 4 or 16, channels, n]
    (blocks, p, _, channels, _), fewer = half.shape, full.shape[3]
    half = half.reshape(blocks, p, 2, 2, channels, -1, width).transpose(1, 0, 5, 2, 6, 3, 4)
    full = full.reshape(blocks, p, 2, 2, 2, 2, fewer, -1, width).transpose(1, 0, 7, 2, 4, 8, 3, 5, 6)
    return half.reshape(p, -1, 2 * width, channels), full.reshape(p, -1, 4 * width, fewer)
