"""The mask decoder for a grid of single points: the same masks from a third of the arithmetic.

The automatic pass prompts one image with a thousand single points. `MaskDecoder` would carry 4096 image tokens of 256
channels through two layers for each of them (3.56 GFLOP per point). This module computes the same function (METHOD
stage 3, steps 4 and 5) and never forms those tokens. Nothing is approximated: only rounding differs.

Notation. N image tokens, C channels, H heads of d, I = H d; T tokens per point; k = (head, token) runs over K = H T.
`c(x)` is x minus its mean over channels. All per-point arrays keep N as the last axis, so that every elementwise
step and every reduction over heads, tokens or channels runs along contiguous memory.

1. Layer 0 sees the same image tokens S for every point: keys, values and queries of both its cross attentions are
   projected once per image. Its image-to-token attention adds to pixel n the vector `sum_k A[k, n] B[k]`, where A are
   attention weights and `B[h, t] = v[h, t] @ W_out[h]` has only K = 64 rows. So the image tokens after it are
       X1 = g1 * (c(S + b) + A^T c(B)) * r1 + b1,
   with r1 = 1 / sigma. The variance needs no X1 either:
       sigma^2 C = |c(S)|^2 + sum_k A[k] * (2 E[k] + (G A)[k]),    G = c(B) c(B)^T,  E[h, t] = c(S) W_out[h]^T v[h, t],
   and `c(S) W_out^T` is once more the same for all points.
2. Any projection `X1 W` in layer 1 is r1 * (shared + A^T (B W)) + shared. A query q against such keys is
   `r1 * (q . shared + (q . B W) A)`: products with K x K matrices instead of C x I ones. Values: the pooled
   `w X1 W_v` is `(w r1) . shared + ((w r1) A^T) (B W_v)`.
3. After layer 1 the same holds with the 2 K rows F = [r1 A; A1] over D = [c(g1 B); c(B1)]:
       X2 = g2 * (r1 c(g1 c(S)) + c(b1 + b) + F^T D) * r2 + b2.
4. Of the final token-to-image attention the predicted IoUs need the IoU token's row only. The best of masks 1..3 is
   chosen from them; then one mask token's row is computed, and only for points whose best IoU passes the threshold.
   Those points alone are upscaled, with one hypernetwork output instead of four. The first transposed convolution
   is a projection of X2 (item 3), so it costs a [4 C/4, 2 K] x [2 K, N] product.

MFLOP per point of the published sizes (N = 4096, C = 256, I = 128, H = 8, T = 8), image side only; both spend another
40 on the tokens themselves:
                                             MaskDecoder    here
    layer 0, both cross attentions                  1107      25
    norm after layer 0                                 -      44
    layer 1, both cross attentions                  1107     156
    norm after layer 1                                 -     159
    final attention, for the IoUs                    554      37
    every point                                                   421
    final attention, for one mask                                  37
    upscaling and the product with a mask's weights  822     557
    points that pass                                              594
    sum                                             3590    1015
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.errors import InputError
from ntt_jax.layers import gelu
from ntt_jax.sam2.decoder import MaskDecoder
from ntt_jax.sam2.model import ImageFeatures, Sam2


def grid_points(image_size: int, points_per_side: int) -> Array:
    """The prompt grid of METHOD stage 3, step 4: `[points_per_side ** 2, 2]` pixels (x, y), x-major.

    `linspace(0, image_size - 1, points_per_side) + 0.5`; the prompt encoder adds another 0.5.
    """
    line = jnp.asarray(np.linspace(0, image_size - 1, points_per_side) + 0.5, jnp.float32)
    return jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def decode_grid(
    sam2: Sam2,
    features: ImageFeatures,
    points: Array,
    *,
    pred_iou_threshold: float,
    chunk: int | None = None,
    mask_chunk: int | None = None,
) -> tuple[Array, Array, Array]:
    """The best of masks 1..3 for single foreground points on one image (METHOD stage 3, steps 4 and 5).

    Args:
      features: of one image, as for `Sam2.decode`.
      points: `[P, 2]` pixels of the model's input, (x, y).
      pred_iou_threshold: a point whose best predicted IoU is not above it gets no mask.
      chunk, mask_chunk: points worked on together in the two phases; None chooses by platform. They do not change
        the result beyond rounding.

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
    cpu = jax.default_backend() == "cpu"
    count = points.shape[0]
    chunk = min(chunk or (4 if cpu else 128), count)
    mask_chunk = min(mask_chunk or (1 if cpu else 64), chunk)

    features = sam2.one_image(features)
    grid = GridDecoder(sam2.sam_mask_decoder)
    h, w = features.embedding.shape[1:3]
    pe = sam2.sam_prompt_encoder.get_dense_pe()
    labels = jnp.ones((count, 1), jnp.int32)
    sparse, dense = sam2.sam_prompt_encoder(points[:, None], labels)
    image = features.embedding[0].astype(jnp.float32) + dense[0].astype(jnp.float32)
    feat_s0, feat_s1 = features.high_res
    side = grid.image_side(image, pe[0], feat_s1[0], feat_s0[0])
    tokens = sam2.sam_mask_decoder.output_tokens(sparse)

    chunks = -(-count // chunk)
    tokens = jnp.concatenate([tokens, jnp.broadcast_to(tokens[:1], (chunks * chunk - count, *tokens.shape[1:]))])

    def one_chunk(logits: Array, args: tuple[Array, Array]) -> tuple[Array, Array]:
        start, tokens = args
        state, ious = grid.tokens(side, tokens)
        best = 1 + jnp.argmax(ious[:, 1:], axis=1)
        best_iou = jnp.take_along_axis(ious, best[:, None], axis=1)[:, 0]
        passing = (best_iou > pred_iou_threshold) & (start + jnp.arange(chunk) < count)
        order = jnp.argsort(~passing, stable=True)  # those that pass come first

        def some_masks(i: Array, logits: Array) -> Array:
            at = jax.lax.dynamic_slice(order, (jnp.minimum(i * mask_chunk, chunk - mask_chunk),), (mask_chunk,))
            # Tied to the counter: a single block would not depend on it, and XLA would compute it outside the loop,
            # that is always.
            at, chosen, _ = jax.lax.optimization_barrier((at, state, i))
            masks = grid.masks(side, jax.tree.map(lambda x: x[at], chosen), best[at], h, w)
            # Rows that fill the last block up point behind the end and are dropped.
            return logits.at[jnp.where(passing[at], start + at, count)].set(masks, mode="drop")

        blocks = (jnp.sum(passing) + mask_chunk - 1) // mask_chunk
        return jax.lax.fori_loop(0, blocks, some_masks, logits), best_iou

    logits = jnp.zeros((count, 4 * h, 4 * w), jnp.float32)
    starts = jnp.arange(chunks) * chunk
    logits, ious = jax.lax.scan(one_chunk, logits, (starts, tokens.reshape(chunks, chunk, *tokens.shape[1:])))
    ious = ious.reshape(-1)[:count]
    return logits, ious, ious > pred_iou_threshold


class ImageSide(NamedTuple):
    """What is computed once per image. Arrays end in the image tokens N; `[H, d, N]` where heads are involved."""

    key0: Array  # layer 0, token to image
    value0: Array
    query0: Array  # layer 0, image to token
    norm0: Array  # [N], |c(S + b)|^2
    out0: Array  # c(S + b) @ W_out0^T
    key1: Array  # layer 1: the projections of c(S + b) * g1, to be scaled by r1 ...
    value1: Array
    query1: Array
    key1_pe: Array  # ... and of b1 + pe, not scaled
    query1_pe: Array
    norm1: Array  # [N], |X|^2 with X = c(g1 c(S + b))
    norm1_d: Array  # [N], X . d with d = c(b1 + b)
    out0_1: Array  # X @ c(g1 W_out0)^T
    out1_1: Array  # X @ W_out1^T
    key2: Array  # final attention: projections of X * g2 ...
    value2: Array
    key2_pe: Array  # ... and of b2 + pe
    upscaled: Array  # [4 * C / 4, N], X * g2 through the first transposed convolution
    feat_s1: Array  # [4 * C / 4, N], added before the norm, with the bias, centred
    feat_s0: Array  # [4, 4 * C / 8, N], added before the last GELU


class Tokens(NamedTuple):
    """What phase 1 leaves of a chunk of P points for phase 2."""

    queries: Array  # [P, T, C] after layer 1
    tokens: Array  # [P, T, C] prompt tokens, the queries' positional part
    rows: Array  # [P, 2 K, N], F, in the compute dtype
    basis: Array  # [P, 2 K, C], D
    r1: Array  # [P, N]
    r2: Array  # [P, N]


def _centre(x: Array) -> Array:
    return x - jnp.mean(x, axis=-1, keepdims=True)


def _fold(operation: Callable[[Array, Array], Array], x: Array, *, axis: int) -> Array:
    """Reduce a short axis that is not the last one, keeping it with length 1, on a CPU.

    Halves are combined again and again, which XLA turns into one loop along the last axis. Its own reductions over any
    other axis take five times as long on CPUs; on GPUs it is the halves that are slow, to compile as to run.
    """
    while (length := x.shape[axis]) > 1:
        half = length // 2
        low, high, rest = (
            jax.lax.slice_in_dim(x, a, b, axis=axis) for a, b in ((0, half), (half, 2 * half), (2 * half, length))
        )
        x = operation(low, high)
        if length % 2:
            x = jnp.concatenate([x, rest], axis=axis) if half > 1 else operation(x, rest)
    return x


def _sum(x: Array, axis: int) -> Array:
    return jax.lax.platform_dependent(
        x, cpu=partial(_fold, jnp.add, axis=axis), default=partial(jnp.sum, axis=axis, keepdims=True)
    )


def _softmax(x: Array, axis: int) -> Array:
    return jax.lax.platform_dependent(
        x, cpu=partial(_softmax_cpu, axis=axis), default=partial(jax.nn.softmax, axis=axis)
    )


def _softmax_cpu(x: Array, axis: int) -> Array:
    e = jnp.exp(x - _fold(jnp.maximum, x, axis=axis))
    return e / _fold(jnp.add, e, axis=axis)


def _split(x: Array, heads: int) -> Array:  # [..., I] -> [..., H, d]
    return x.reshape(*x.shape[:-1], heads, -1)


class GridDecoder:
    """`MaskDecoder` rearranged for single points; holds nothing but views of its parameters.

    decoder: a `MaskDecoder` of depth 2. Everything else is a method argument, so an instance made inside a jitted
    function costs nothing.
    """

    def __init__(self, decoder: MaskDecoder):
        self.decoder = decoder
        self.layer0, self.layer1 = decoder.transformer.layers
        self.final = decoder.transformer.final_attn_token_to_image
        self.heads = self.final.num_heads
        self.dtype = self.final.q_proj.kernel.dtype
        scale, bias = (lambda norm: norm.scale[...][None]), (lambda norm: norm.bias[...][None])
        # Per-channel vectors as rows [1, C].
        self.g1, self.b1 = scale(self.layer0.norm4), bias(self.layer0.norm4)
        self.g2, self.b2 = scale(self.layer1.norm4), bias(self.layer1.norm4)
        self.epsilon = self.layer0.norm4.epsilon
        # Rows of the image-to-token output projections, centred over channels: [I, C].
        self.out0 = _centre(self._kernel(self.layer0.cross_attn_image_to_token.out_proj))
        self.out1 = _centre(self._kernel(self.layer1.cross_attn_image_to_token.out_proj))
        self.d = _centre(self.b1 + self._bias(self.layer1.cross_attn_image_to_token.out_proj))
        self.up: Any = decoder.output_upscaling

    # -- small helpers ------------------------------------------------------------------------------------------------

    @staticmethod
    def _kernel(linear) -> Array:
        return linear.kernel[...].astype(jnp.float32)

    @staticmethod
    def _bias(linear) -> Array:
        return linear.bias[...].astype(jnp.float32)[None]

    def _operands(self, *operands: Array) -> tuple[Array, ...]:
        """Operands of a product, rounded to the compute dtype."""
        operands = tuple(x.astype(self.dtype) for x in operands)
        if jax.default_backend() == "cpu":  # which has no product of bfloat16 into float32
            operands = tuple(x.astype(jnp.float32) for x in operands)
        return operands

    def _dot(self, spec: str, *operands: Array) -> Array:
        """Product of operands rounded to the compute dtype, accumulated and returned in float32."""
        return jnp.einsum(spec, *self._operands(*operands), preferred_element_type=jnp.float32)

    def _dot_upscaled(self, spec: str, *operands: Array) -> Array:
        """`_dot` for the pixels of the upscaling, stored in the compute dtype as the next product takes them.

        They are the largest arrays here, and writing them in float32 takes a GPU longer than the product. For a CPU,
        `_operands` has float32 already.
        """
        operands = self._operands(*operands)
        return jnp.einsum(spec, *operands, preferred_element_type=operands[0].dtype).astype(jnp.float32)

    def _along_image(self, x: Array, image: Array) -> Array:
        """`pthd,hdn->phtn`. As an einsum, XLA's CPU product has N in the middle of its result: five times slower."""
        p, t, h, d = x.shape
        rows, image = self._operands(x.transpose(2, 0, 1, 3).reshape(h, p * t, d), image)
        y = jax.lax.dot_general(rows, image, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)
        return y.reshape(h, p, t, -1).transpose(1, 0, 2, 3)

    def _image(self, x: Array, linear, *, bias: bool) -> Array:
        """[N, C] through a projection, as [H, d, N]."""
        y = self._dot("nc,ci->in", x, self._kernel(linear))
        if bias:
            y = y + self._bias(linear).T
        return y.reshape(self.heads, -1, y.shape[-1])

    def _heads(self, x: Array, linear, *, scaled: bool = False) -> Array:
        """[P, T, C] through a projection, as [P, T, H, d]; with 1 / sqrt(d) folded in if `scaled`."""
        y = _split(linear(x.astype(self.dtype)).astype(jnp.float32), self.heads)
        return y / math.sqrt(y.shape[-1]) if scaled else y

    def _norm(self, norm, x: Array) -> Array:
        return norm(x.astype(jnp.float32))

    def _output(self, attention, x: Array) -> Array:  # [P, T, H, d] -> [P, T, C]
        return attention.out_proj(x.reshape(*x.shape[:2], -1).astype(self.dtype)).astype(jnp.float32)

    def _mlp(self, layer, x: Array) -> Array:
        return layer.mlp(x.astype(self.dtype)).astype(jnp.float32)

    def _up_kernel(self) -> Array:
        """The first transposed convolution as [C, 4 C / 4], columns (row, column, channel).

        Centred over the channels of each sub-pixel: the layer norm that follows then has nothing to subtract.
        """
        kernel = self.up[0].kernel[...].astype(jnp.float32).transpose(2, 0, 1, 3)
        return _centre(kernel).reshape(kernel.shape[0], -1)

    # -- once per image -----------------------------------------------------------------------------------------------

    def image_side(self, image: Array, pe: Array, feat_s1: Array, feat_s0: Array) -> ImageSide:
        """image, pe [h, w, C]; feat_s1 [2h, 2w, C / 4]; feat_s0 [4h, 4w, C / 8] -> `ImageSide`, N = h w.

        `image` is the embedding with the dense prompt embedding added.
        """
        h, w, c = image.shape
        n = h * w
        image, pe = image.reshape(n, c).astype(jnp.float32), pe.reshape(n, c).astype(jnp.float32)
        t2i0, i2t0 = self.layer0.cross_attn_token_to_image, self.layer0.cross_attn_image_to_token
        t2i1, i2t1 = self.layer1.cross_attn_token_to_image, self.layer1.cross_attn_image_to_token
        s = _centre(image + self._bias(i2t0.out_proj))
        x = _centre(s * self.g1)
        keyed, keyed1, keyed2 = image + pe, self.b1 + pe, self.b2 + pe

        def out(x: Array, rows: Array) -> Array:  # [N, C], [I, C] -> [H, d, N]
            return self._dot("nc,ic->in", x, rows).reshape(self.heads, -1, n)

        s1 = _centre(feat_s1.astype(jnp.float32) + self._bias(self.up[0])[None])
        s1 = s1.reshape(h, 2, w, 2, -1).transpose(1, 3, 4, 0, 2).reshape(-1, n)
        s0 = feat_s0.reshape(h, 2, 2, w, 2, 2, -1).transpose(1, 4, 2, 5, 6, 0, 3).reshape(4, -1, n)
        return ImageSide(
            key0=self._image(keyed, t2i0.k_proj, bias=True),
            value0=self._image(image, t2i0.v_proj, bias=True),
            query0=self._image(keyed, i2t0.q_proj, bias=True),
            norm0=jnp.sum(s * s, axis=-1),
            out0=out(s, self.out0),
            key1=self._image(s * self.g1, t2i1.k_proj, bias=False),
            value1=self._image(s * self.g1, t2i1.v_proj, bias=False),
            query1=self._image(s * self.g1, i2t1.q_proj, bias=False),
            key1_pe=self._image(keyed1, t2i1.k_proj, bias=True),
            query1_pe=self._image(keyed1, i2t1.q_proj, bias=True),
            norm1=jnp.sum(x * x, axis=-1),
            norm1_d=jnp.sum(x * self.d, axis=-1),
            out0_1=out(x, _centre(self.out0 * self.g1)),
            out1_1=out(x, self.out1),
            key2=self._image(x * self.g2, self.final.k_proj, bias=False),
            value2=self._image(x * self.g2, self.final.v_proj, bias=False),
            key2_pe=self._image(keyed2, self.final.k_proj, bias=True),
            upscaled=self._dot("nc,co->on", x * self.g2, self._up_kernel()),
            feat_s1=s1,
            feat_s0=s0.astype(jnp.float32),
        )

    # -- phase 1: tokens and predicted IoUs, every point --------------------------------------------------------------

    def tokens(self, side: ImageSide, tokens: Array) -> tuple[Tokens, Array]:
        """tokens [P, T, C] (output tokens, then the sparse prompt embeddings) -> `Tokens`, predicted_ious [P, 4]."""
        p, t, c = tokens.shape
        k = self.heads * t
        n = side.norm0.shape[0]
        tokens = tokens.astype(jnp.float32)
        flat = partial(jnp.reshape, shape=(p, k, n))

        # Layer 0: keys, values and queries of the image are the shared ones.
        layer = self.layer0
        queries = self._norm(layer.norm1, layer.self_attn(*(tokens.astype(self.dtype),) * 3))
        q = self._heads(queries + tokens, layer.cross_attn_token_to_image.q_proj, scaled=True)
        w = jax.nn.softmax(self._along_image(q, side.key0), axis=-1)
        pooled = self._dot("phtn,hdn->pthd", w, side.value0)
        queries = self._norm(layer.norm2, queries + self._output(layer.cross_attn_token_to_image, pooled))
        queries = self._norm(layer.norm3, queries + self._mlp(layer, queries))
        attn = layer.cross_attn_image_to_token
        key = self._heads(queries + tokens, attn.k_proj, scaled=True)
        value0 = self._heads(queries, attn.v_proj)
        a0 = flat(_softmax(self._along_image(key, side.query0), 2)).astype(self.dtype)

        # Its norm.
        b0 = self._basis(value0, self.out0)
        cross = flat(self._along_image(value0, side.out0))
        gram = self._dot("pkc,pjc->pkj", b0, b0)
        square = self._quadratic(a0, 2 * cross, gram)
        r1 = jax.lax.rsqrt((side.norm0[None] + square) / c + self.epsilon)  # [P, N]
        b0 = b0 * self.g1[None]

        # Layer 1, token to image.
        layer = self.layer1
        attn = layer.self_attn
        queries = queries + attn(*((queries + tokens).astype(self.dtype),) * 2, queries.astype(self.dtype))
        queries = self._norm(layer.norm1, queries)
        attn = layer.cross_attn_token_to_image
        q = self._heads(queries + tokens, attn.q_proj, scaled=True)
        w = jax.nn.softmax(self._logits(q, side.key1, side.key1_pe, b0, attn.k_proj, a0, r1), axis=-1)
        w = w * r1[:, None, None]
        through = self._dot("phtn,pkn->phtk", w, a0)
        pooled = self._dot("phtn,hdn->pthd", w, side.value1)
        values = _split(self._dot("pkc,ci->pki", b0, self._kernel(attn.v_proj)), self.heads)
        pooled += self._dot("phtk,pkhd->pthd", through, values)
        pooled += _split(self.b1 @ self._kernel(attn.v_proj) + self._bias(attn.v_proj), self.heads)[None]
        queries = self._norm(layer.norm2, queries + self._output(attn, pooled))
        queries = self._norm(layer.norm3, queries + self._mlp(layer, queries))

        # Layer 1, image to token.
        attn = layer.cross_attn_image_to_token
        key = self._heads(queries + tokens, attn.k_proj, scaled=True)
        value1 = self._heads(queries, attn.v_proj)
        logits = self._logits(key, side.query1, side.query1_pe, b0, attn.q_proj, a0, r1)
        a1 = flat(_softmax(logits, 2)).astype(self.dtype)

        # Its norm.
        basis = jnp.concatenate([_centre(b0), self._basis(value1, self.out1)], axis=1)  # [P, 2K, C]
        rows = jnp.concatenate([(a0 * r1[:, None]).astype(self.dtype), a1], axis=1)  # [P, 2K, N]
        cross = jnp.concatenate(
            [
                flat(self._along_image(value0, side.out0_1)),
                flat(self._along_image(value1, side.out1_1)),
            ],
            axis=1,
        )
        gram = self._dot("pkc,pjc->pkj", basis, basis)
        along = jnp.sum(basis * self.d[None], axis=-1, keepdims=True)  # [P, 2K, 1]
        square = self._quadratic(rows, 2 * (r1[:, None] * cross + along), gram)
        square = square + r1 * (r1 * side.norm1[None] + 2 * side.norm1_d[None]) + jnp.sum(self.d * self.d)
        r2 = jax.lax.rsqrt(square / c + self.epsilon)
        state = Tokens(queries, tokens, rows, basis, r1, r2)

        iou_token = self._final(side, state, jnp.ones((p,), jnp.int32))
        return state, jax.nn.sigmoid(self.decoder.iou_prediction_head(iou_token))

    def _quadratic(self, rows: Array, linear: Array, gram: Array) -> Array:
        """sum over k of rows * (linear + gram rows): [P, K, N], [P, K, N], [P, K, K] -> [P, N]."""
        product = jax.lax.optimization_barrier(self._dot("pkj,pjn->pkn", gram, rows))
        return _sum(rows * (linear + product), 1)[:, 0]

    def _basis(self, value: Array, rows: Array) -> Array:
        """What each (head, token) adds to an image token: [P, T, H, d], [I, C] -> [P, K, C]."""
        b = self._dot("pthd,hdc->phtc", value, rows.reshape(self.heads, -1, rows.shape[-1]))
        return b.reshape(b.shape[0], -1, b.shape[-1])

    def _logits(self, q: Array, shared: Array, positional: Array, basis: Array, linear, rows: Array, r: Array) -> Array:
        """q [P, T, H, d] against r * (shared + rows^T basis W) + positional -> [P, H, T, N]."""
        projected = _split(self._dot("pkc,ci->pki", basis, self._kernel(linear)), self.heads)
        small = self._dot("pthd,pkhd->phtk", q, projected)
        varying = self._along_image(q, shared) + self._dot("phtk,pkn->phtn", small, rows)
        return r[:, None, None] * varying + self._along_image(q, positional)

    def _final(self, side: ImageSide, state: Tokens, index: Array) -> Array:
        """The final attention for one token of each point: index [P] -> [P, C] after `norm_final_attn`."""
        take = partial(jnp.take_along_axis, indices=index[:, None, None], axis=1)
        queries = take(state.queries)
        q = self._heads(queries + take(state.tokens), self.final.q_proj, scaled=True)[:, 0]  # [P, H, d]
        basis, r1, r2 = state.basis * self.g2[None], state.r1[:, None], state.r2[:, None]
        d = self.d * self.g2
        key_basis = _split(self._dot("pkc,ci->pki", basis, self._kernel(self.final.k_proj)), self.heads)
        key_d = _split(d @ self._kernel(self.final.k_proj), self.heads)
        small = self._dot("phd,pkhd->phk", q, key_basis)
        logits = r1 * self._dot("phd,hdn->phn", q, side.key2) + self._dot("phk,pkn->phn", small, state.rows)
        logits = r2 * (logits + jnp.sum(q * key_d, axis=-1, keepdims=True)) + self._dot("phd,hdn->phn", q, side.key2_pe)
        w = jax.nn.softmax(logits, axis=-1) * r2
        through = self._dot("phn,pkn->phk", w, state.rows)
        kernel, bias = self._kernel(self.final.v_proj), self._bias(self.final.v_proj)
        pooled = self._dot("phn,hdn->phd", w * r1, side.value2)
        pooled += self._dot("phk,pkhd->phd", through, _split(self._dot("pkc,ci->pki", basis, kernel), self.heads))
        pooled += jnp.sum(w, axis=-1, keepdims=True) * _split(d @ kernel, self.heads)
        pooled += _split(self.b2 @ kernel + bias, self.heads)
        out = self._output(self.final, pooled[:, None])
        return self._norm(self.decoder.transformer.norm_final_attn, queries + out)[:, 0]

    # -- phase 2: one mask, points that pass --------------------------------------------------------------------------

    def masks(self, side: ImageSide, state: Tokens, best: Array, height: int, width: int) -> Array:
        """The mask of token `best` [P] in 0..3 -> logits [P, 4 height, 4 width]; height x width is the token grid."""
        token = self._final(side, state, best + 2)  # after the object-score and IoU tokens
        hyper = jnp.stack([mlp(token.astype(self.dtype)) for mlp in self.decoder.output_hypernetworks_mlps], axis=1)
        hyper = jnp.take_along_axis(hyper, best[:, None, None], axis=1)[:, 0].astype(jnp.float32)  # [P, C / 8]

        p, n = state.r1.shape
        norm = self.up[1]
        kernel = self._up_kernel()
        basis = self._dot("pkc,co->pok", state.basis * self.g2[None], kernel)  # [P, 4 C/4, 2K]
        constant = ((self.d * self.g2) @ kernel)[..., None]  # [1, 4 C/4, 1]
        x = jax.lax.optimization_barrier(self._dot_upscaled("pok,pkn->pon", basis, state.rows))
        x = x + state.r1[:, None] * side.upscaled[None] + constant
        x = state.r2[:, None] * x + ((self.b2 @ kernel).T + side.feat_s1)[None]
        # Layer norm over the channels of each of the four sub-pixels, centred already, then the second convolution.
        x = x.reshape(p, 4, -1, n)
        x = x * jax.lax.rsqrt(_sum(x * x, 2) / x.shape[2] + norm.epsilon)
        x = gelu(x * norm.scale[...].reshape(1, 1, -1, 1) + norm.bias[...].reshape(1, 1, -1, 1))
        up2 = self.up[3]
        kernel = up2.kernel[...].astype(jnp.float32)  # [2, 2, C / 4, C / 8]
        channels = kernel.shape[-1]
        kernel = kernel.transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])  # [4 C/8, C / 4]
        # The kernel repeated for every sub-pixel: batched products keep N last, a shared one would transpose twice.
        x = self._dot_upscaled("paoc,pacn->paon", jnp.broadcast_to(kernel, (p, 4, *kernel.shape)), x)
        x = gelu(x + (side.feat_s0 + jnp.tile(self._bias(up2), 4).T[None])[None])
        # A batched product, because a sum over channels would be fused with the update in place and run on one core.
        weights = jnp.broadcast_to(hyper[:, None, None], (p, 16, 1, channels))
        logits = jnp.matmul(weights, x.reshape(p, 16, channels, n), precision="highest")
        logits = logits.reshape(p, 2, 2, 2, 2, height, width).transpose(0, 5, 1, 3, 6, 2, 4)
        return logits.reshape(p, 4 * height, 4 * width)
