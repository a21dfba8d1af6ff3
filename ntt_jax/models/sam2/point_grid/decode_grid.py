"""The mask decoder for a grid of single points: the same masks from a quarter of the arithmetic.

The automatic pass prompts one image with a thousand single points. `MaskDecoder` would carry 4096 image tokens of 256
channels through two layers for each of them (3.56 GFLOP per point). This module computes the same function (METHOD
stage 3, steps 4 and 5) and never forms those tokens. Nothing is approximated: only rounding differs.

Notation of `GridDecoder`, which does it. N image tokens, C channels, H heads of d, I = H d; T tokens per point; k =
(token, head) runs over K = T H, j over the J = (T - 1) H of them without the last token.
`c(x)` is x minus its mean over channels. All per-point arrays keep N as the last axis, so that every elementwise
step and every reduction over heads, tokens or channels runs along contiguous memory.

1. Layer 0 sees the same image tokens S for every point: keys, values and queries of both its cross attentions are
   projected once per image. Its image-to-token attention adds to pixel n the vector `sum_k A[k, n] v[k] @ W_out[h]`,
   where A are attention weights. Those of a head sum to 1, so the last token's are not needed:
       sum_j A[j, n] B[j] + e,    B[t, h] = (v[t, h] - v[T-1, h]) @ W_out[h],    e = sum_h v[T-1, h] @ W_out[h],
   with J = 56 rows. So the image tokens after it are
       X1 = g1 * (c(S + b) + c(e) + A^T c(B)) * r1 + b1,
   with r1 = 1 / sigma. The variance needs no X1 either: with S' = c(S + b) + c(e),
       sigma^2 C = |S'|^2 + sum_j A[j] * (2 E[j] + (G A)[j]),    G = c(B) c(B)^T,  E[j] = S' . c(B[j]),
   and `c(S + b) W_out^T` is once more the same for all points.
2. Any projection `X1 W` in layer 1 is r1 * (shared + e W + A^T (B W)) + shared. A query q against such keys is
   `r1 * (q . shared + q . e W + (q . B W) A)`: products with K x J matrices instead of C x I ones. Values: the pooled
   `w X1 W_v` is `(w r1) . shared + (sum of w r1) e W_v + ((w r1) A^T) (B W_v)`.
3. After layer 1 the same holds with the 2 J rows F = [r1 A; A1] over D = [c(g1 B); c(B1)], and e0 = c(g1 e), e1:
       X2 = g2 * (r1 (c(g1 c(S + b)) + e0) + c(b1 + b) + e1 + F^T D) * r2 + b2.
   The quadratic form of its variance is symmetric: of the mixed quarters of D D^T one is used, twice as large.
4. Of the final token-to-image attention the predicted IoUs need the IoU token's row only. The best of masks 1..3 is
   chosen from them; then one mask token's row is computed, and only for points whose best IoU passes the threshold.
   Those points alone are upscaled, with one hypernetwork output instead of four. The first transposed convolution
   is a projection of X2 (item 3), so it costs a [4 C/4, 2 J] x [2 J, N] product.
5. B, D and e only ever meet another projection or each other, and `v (W_out W)` is cheaper than `(v W_out) W`: the
   products of two weights are made once (`GridWeights`), and per point there are only d numbers for each row.

MFLOP per point of the published sizes (N = 4096, C = 256, I = 128, H = 8, T = 8), products only; both spend another
50 on the tokens themselves:
                                             MaskDecoder    here
    layer 0, both cross attentions                  1107      25
    norm after layer 0                                 -      34
    layer 1, both cross attentions                  1107     131
    norm after layer 1                                 -      95
    final attention, for the IoUs                    554      19
    every point                                                   304
    final attention, for one mask                                  19
    upscaling and the product with a mask's weights  822     511
    points that pass                                              530
    sum                                             3590     834
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32

from ntt_jax.errors import InputError
from ntt_jax.models.platform import ACCELERATOR_GRID, CPU_GRID, on_cpu
from ntt_jax.models.sam2.point_grid.decoder import GridDecoder
from ntt_jax.models.sam2.point_grid.image_side import ImageSide, image_side
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2, one_image


def grid_points(image_size: int, points_per_side: int) -> np.ndarray:
    """The prompt grid of METHOD stage 3, step 4: `[points_per_side ** 2, 2]` float32 pixels (x, y), x-major.

    `linspace(0, image_size - 1, points_per_side) + 0.5`; the prompt encoder adds another 0.5. On the host, where it
    needs no programs of its own.
    """
    line = (np.linspace(0, image_size - 1, points_per_side) + 0.5).astype(np.float32)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def decode_grid(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    points: Float[Array, "P 2"],
    *,
    pred_iou_threshold: float,
    chunk: int | None = None,
    mask_chunk: int | None = None,
    block: int | None = None,
) -> tuple[Float32[Array, "P m m"], Float32[Array, " P"], Bool[Array, " P"]]:
    """The best of masks 1..3 for single foreground points on one image (METHOD stage 3, steps 4 and 5).

    Args:
      features: of one image, as for `Sam2.decode`.
      points: `[P, 2]` pixels of the model's input, (x, y).
      pred_iou_threshold: a point whose best predicted IoU is not above it gets no mask.
      chunk, mask_chunk: points worked on together in the two phases. block: image tokens worked on together, rounded
        to rows that divide the image. None chooses by platform. They do not change the result beyond rounding.

    Returns:
      logits `[P, S/4, S/4]` float32 (zero where not valid), predicted_ious `[P]` float32 of the best of masks 1..3,
      valid `[P]` bool: predicted IoU above the threshold.

    Raises:
      InputError: points of another shape, or a decoder whose depth is not 2.
    """
    if points.ndim != 2 or points.shape[1] != 2 or not points.shape[0]:
        raise InputError(f"decode_grid: expected points [P, 2], found {list(points.shape)}")
    if sam2.config.decoder_depth != 2:
        raise InputError(f"decode_grid: expected decoder_depth 2, found {sam2.config.decoder_depth}; use Sam2.decode")
    sizes, count = CPU_GRID if on_cpu() else ACCELERATOR_GRID, points.shape[0]
    chunk = min(chunk or sizes.chunk, count)
    mask_chunk = min(mask_chunk or sizes.mask_chunk, chunk)

    grid = GridDecoder(sam2.sam_mask_decoder)
    image, side, tokens = prepare(grid, sam2, features, points, block)
    h, w = image.shape[:2]

    chunks = -(-count // chunk)
    tokens = jnp.concatenate([tokens, jnp.broadcast_to(tokens[:1], (chunks * chunk - count, *tokens.shape[1:]))])

    def one_chunk(logits: Array, args: tuple[Array, Array]) -> tuple[Array, Array]:
        start, tokens = args
        state, ious, _ = grid.tokens(side, tokens)
        best = 1 + jnp.argmax(ious[:, 1:], axis=1)
        best_iou = jnp.take_along_axis(ious, best[:, None], axis=1)[:, 0]
        passing = (best_iou > pred_iou_threshold) & (start + jnp.arange(chunk) < count)
        order = jnp.argsort(~passing, stable=True)  # those that pass come first

        weights = jax.lax.cond(
            jnp.any(passing),
            lambda: grid.mask_weights(grid.mask_token(side, state, best), best),
            lambda: jnp.zeros((chunk, sam2.config.d_model // 8), jnp.float32),
        )

        def some_masks(i: Array, logits: Array) -> Array:
            at = jax.lax.dynamic_slice(order, (jnp.minimum(i * mask_chunk, chunk - mask_chunk),), (mask_chunk,))
            # Tied to the counter: a single block would not depend on it, and XLA would compute it outside the loop,
            # that is always.
            at, chosen, _ = jax.lax.optimization_barrier((at, state, i))
            masks = grid.masks(side, chosen, weights, at, h, w)
            # Rows that fill the last block up point behind the end and are dropped.
            return logits.at[jnp.where(passing[at], start + at, count)].set(masks, mode="drop")

        blocks = (jnp.sum(passing) + mask_chunk - 1) // mask_chunk
        return jax.lax.fori_loop(0, blocks, some_masks, logits), best_iou

    logits = jnp.zeros((count, 4 * h, 4 * w), jnp.float32)
    starts = jnp.arange(chunks) * chunk
    logits, ious = jax.lax.scan(one_chunk, logits, (starts, tokens.reshape(chunks, chunk, *tokens.shape[1:])))
    ious = ious.reshape(-1)[:count]
    return logits, ious, ious > pred_iou_threshold


def prepare(
    grid: GridDecoder, sam2: Sam2 | PromptDecoder, features: ImageFeatures, points: Array, block: int | None
) -> tuple[Array, ImageSide, Array]:
    """What the decoding of points `[P, 2]` starts from; arguments as for `decode_grid`.

    Returns the image `[h, w, C]` (dense prompt embedding added), what is computed of it once, and tokens `[P, T, C]`.
    """
    labels = jnp.ones((points.shape[0], 1), jnp.int32)
    return prepare_prompts(grid, sam2, features, points[:, None], labels, block)


def prepare_prompts(
    grid: GridDecoder,
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    points: Array,
    labels: Array,
    block: int | None,
) -> tuple[Array, ImageSide, Array]:
    """`prepare` for prompts of several points each, `[P, N, 2]` with labels `[P, N]`, as for `Sam2.decode`."""
    features = one_image(sam2.config, features)
    h, w = features.embedding.shape[1:3]
    pe = sam2.sam_prompt_encoder.get_dense_pe()
    sparse, dense = sam2.sam_prompt_encoder(points, labels)
    image = features.embedding[0].astype(jnp.float32) + dense[0].astype(jnp.float32)
    feat_s0, feat_s1 = features.high_res
    tokens_together = block or h * w
    rows = max(r for r in range(1, h + 1) if h % r == 0 and (r == 1 or r * w <= tokens_together))
    side = image_side(grid, image, pe[0], feat_s1[0], feat_s0[0], rows)
    return image, side, sam2.sam_mask_decoder.output_tokens(sparse)
