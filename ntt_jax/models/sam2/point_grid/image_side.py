"""What the module `grid` computes once per image, in its notation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.models.sam2.point_grid.weights import GridWeights, bias_of, centre, kernel_of


class ImageSide(NamedTuple):
    """Arrays over the image: `[blocks, H, d, n]` where heads are involved, `[blocks, ..., n]` otherwise."""

    key0: Array  # layer 0, token to image
    value0: Array
    query0: Array  # layer 0, image to token
    norm0: Array  # [blocks, n], |c(S + b)|^2
    out0: Array  # c(S + b) @ W_out0^T
    key1: Array  # layer 1: the projections of c(S + b) * g1, to be scaled by r1 ...
    value1: Array
    query1: Array
    key1_pe: Array  # ... and of b1 + pe, not scaled
    query1_pe: Array
    norm1: Array  # [blocks, n], |X|^2 with X = c(g1 c(S + b))
    norm1_d: Array  # [blocks, n], X . d with d = c(b1 + b)
    out0_1: Array  # X @ c(g1 W_out0)^T
    out1_1: Array  # X @ W_out1^T
    key2: Array  # final attention: projections of X * g2 ...
    value2: Array
    key2_pe: Array  # ... and of b2 + pe
    upscaled: Array  # [blocks, 4 * C / 4, n], X * g2 through the first transposed convolution
    feat_s1: Array  # [blocks, 4 * C / 4, n], added before the norm, with the bias, centred
    feat_s0: Array  # [blocks, 4, 4 * C / 8, n], added before the last GELU


def image_side(
    weights: GridWeights, image: Array, pe: Array, feat_s1: Array, feat_s0: Array, block_rows: int
) -> ImageSide:
    """image, pe [h, w, C]; feat_s1 [2h, 2w, C / 4]; feat_s0 [4h, 4w, C / 8] -> `ImageSide`, N = h w.

    `image` is the embedding with the dense prompt embedding added. A block is `block_rows` rows of tokens, of which
    h is a multiple.
    """
    h, w, c = image.shape
    n = h * w
    image, pe = image.reshape(n, c).astype(jnp.float32), pe.reshape(n, c).astype(jnp.float32)
    t2i0, i2t0 = weights.layer0.cross_attn_token_to_image, weights.layer0.cross_attn_image_to_token
    t2i1, i2t1 = weights.layer1.cross_attn_token_to_image, weights.layer1.cross_attn_image_to_token
    s = centre(image + bias_of(i2t0.out_proj))
    scaled = s * weights.g1
    x = centre(scaled)
    keyed, keyed1, keyed2 = image + pe, weights.b1 + pe, weights.b2 + pe

    def by_head(x: Array) -> Array:  # [I, N] -> [H, d, N]
        return x.reshape(weights.heads, -1, n)

    def projected(x: Array, linear: Any, *, bias: bool) -> Array:
        y = weights.dot("nc,ci->in", x, kernel_of(linear))
        return by_head(y + bias_of(linear).T if bias else y)

    def out(x: Array, rows: Array) -> Array:
        return by_head(weights.dot("nc,ic->in", x, rows))

    s1 = centre(feat_s1.astype(jnp.float32) + bias_of(weights.up[0])[None])
    s1 = s1.reshape(h, 2, w, 2, -1).transpose(1, 3, 4, 0, 2).reshape(-1, n)
    s0 = feat_s0.reshape(h, 2, 2, w, 2, 2, -1).transpose(1, 4, 2, 5, 6, 0, 3).reshape(4, -1, n)
    side = ImageSide(
        key0=projected(keyed, t2i0.k_proj, bias=True),
        value0=projected(image, t2i0.v_proj, bias=True),
        query0=projected(keyed, i2t0.q_proj, bias=True),
        norm0=jnp.sum(s * s, axis=-1),
        out0=out(s, weights.out0),
        key1=projected(scaled, t2i1.k_proj, bias=False),
        value1=projected(scaled, t2i1.v_proj, bias=False),
        query1=projected(scaled, i2t1.q_proj, bias=False),
        key1_pe=projected(keyed1, t2i1.k_proj, bias=True),
        query1_pe=projected(keyed1, i2t1.q_proj, bias=True),
        norm1=jnp.sum(x * x, axis=-1),
        norm1_d=jnp.sum(x * weights.d, axis=-1),
        out0_1=out(x, weights.out0_1),
        out1_1=out(x, weights.out1),
        key2=projected(x * weights.g2, weights.final.k_proj, bias=False),
        value2=projected(x * weights.g2, weights.final.v_proj, bias=False),
        key2_pe=projected(keyed2, weights.final.k_proj, bias=True),
        upscaled=weights.dot("nc,co->on", x * weights.g2, weights.up_kernel),
        feat_s1=s1,
        feat_s0=s0.astype(jnp.float32),
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], -1, block_rows * w), -2, 0), side)
