"""`GridDecoder`: the arithmetic of the module `grid`, whose notation this file uses.

The image tokens can be worked on in blocks, so that a core of a CPU keeps what belongs to a block of a few points in
its second-level cache; arrays over the image are `[blocks, ..., n]` with blocks x n = N. A softmax over the whole image
runs along the blocks (`_attend`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.layers import gelu
from ntt_jax.sam2.decoder import MaskDecoder


class ImageSide(NamedTuple):
    """What is computed once per image: `[blocks, H, d, n]` where heads are involved, `[blocks, ..., n]` otherwise."""

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


class Tokens(NamedTuple):
    """What phase 1 leaves of a chunk of P points for phase 2."""

    queries: Array  # [P, T, C] after layer 1
    tokens: Array  # [P, T, C] prompt tokens, the queries' positional part
    basis: Array  # [P, 2 K, C], D
    attention0: Array  # [blocks, P, K, n], A, and that of layer 1, in the compute dtype: what F (`_rows`) consists of
    attention1: Array
    variance1: Array  # [blocks, P, n], 1 / r1^2
    variance2: Array  # [blocks, P, n], 1 / r2^2


class Attended(NamedTuple):
    """A softmax over the image in the making: sums over the blocks so far."""

    peak: Array  # [..., 1], the largest logit
    sums: tuple[Array, ...]  # [..., m], weighted by exp(logit - peak)


class FinalQuery(NamedTuple):
    """One token of each point as a query of the final attention."""

    query: Array  # [P, H, d]
    small: Array  # [P, H, 2 K], against the basis
    constant: Array  # [P, H, 1]


def _centre(x: Array) -> Array:
    return x - jnp.mean(x, axis=-1, keepdims=True)


def _split(x: Array, heads: int) -> Array:  # [..., I] -> [..., H, d]
    return x.reshape(*x.shape[:-1], heads, -1)


def _over_blocks(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, blocks: Any) -> tuple[Any, Any]:
    """`lax.scan` over the blocks of an image; a single one needs no loop."""
    if len(jax.tree.leaves(blocks)[0]) > 1:
        return jax.lax.scan(step, carry, blocks)
    carry, found = step(carry, jax.tree.map(lambda x: x[0], blocks))
    return carry, jax.tree.map(lambda x: x[None], found)


def _unattended(shape: Sequence[int], *widths: int) -> Attended:
    return Attended(jnp.full((*shape, 1), -jnp.inf), tuple(jnp.zeros((*shape, width)) for width in widths))


def _attend(attended: Attended, logits: Array, weigh: Callable[[Array], Sequence[Array]]) -> Attended:
    """Take one block into a softmax over the image. weigh: exp(logits - peak) `[..., n]` -> what the sums gain."""
    peak = jnp.maximum(attended.peak, jnp.max(logits, axis=-1, keepdims=True))
    before = jnp.exp(attended.peak - peak)
    added = weigh(jnp.exp(logits - peak))
    return Attended(peak, tuple(total * before + part for total, part in zip(attended.sums, added, strict=True)))


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


def _sum_of_squares(x: Array) -> Array:
    """[..., C, n] -> [..., 1, n]. As a product on a CPU: halves would compute x anew in every fusion that needs it."""
    ones = jnp.ones((*x.shape[:-2], 1, x.shape[-2]), x.dtype)
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: jnp.matmul(ones, x * x, precision="highest"),
        default=lambda x: jnp.sum(x * x, axis=-2, keepdims=True),
    )


def _softmax(x: Array, axis: int) -> Array:
    return jax.lax.platform_dependent(
        x, cpu=partial(_softmax_cpu, axis=axis), default=partial(jax.nn.softmax, axis=axis)
    )


def _softmax_cpu(x: Array, axis: int) -> Array:
    e = jnp.exp(x - _fold(jnp.maximum, x, axis=axis))
    return e / _fold(jnp.add, e, axis=axis)


def _total(x: Array) -> Array:
    return jnp.sum(x, axis=-1, keepdims=True)


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
        """[P, T, H, d] against [H, d, n], every head with its own -> [P, K, n]."""
        p, t, h, d = x.shape
        y = self._dot("hqd,hdn->hqn", x.transpose(2, 0, 1, 3).reshape(h, p * t, d), image)
        return y.reshape(h, p, t, -1).transpose(1, 0, 2, 3).reshape(p, h * t, -1)

    def _pooled(self, weights: Array, image: Array) -> Array:
        """[P, K, n] over the image against [H, d, n], every head with its own -> [P, K, d]."""
        (p, k, n), (h, d, _) = weights.shape, image.shape
        by_head = weights.reshape(p, h, -1, n).transpose(1, 0, 2, 3).reshape(h, -1, n)
        return self._dot("hqn,hdn->hqd", by_head, image).reshape(h, p, -1, d).transpose(1, 0, 2, 3).reshape(p, k, d)

    def _tokens_first(self, pooled: Array) -> Array:  # [P, K, d] -> [P, T, H, d]
        p, _, d = pooled.shape
        return pooled.reshape(p, self.heads, -1, d).transpose(0, 2, 1, 3)

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

    def image_side(self, image: Array, pe: Array, feat_s1: Array, feat_s0: Array, block_rows: int) -> ImageSide:
        """image, pe [h, w, C]; feat_s1 [2h, 2w, C / 4]; feat_s0 [4h, 4w, C / 8] -> `ImageSide`, N = h w.

        `image` is the embedding with the dense prompt embedding added. A block is `block_rows` rows of tokens, of which
        h is a multiple.
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
        side = ImageSide(
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
        return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], -1, block_rows * w), -2, 0), side)

    # -- phase 1: tokens and predicted IoUs, every point --------------------------------------------------------------

    def tokens(self, side: ImageSide, tokens: Array) -> tuple[Tokens, Array]:
        """tokens [P, T, C] (output tokens, then the sparse prompt embeddings) -> `Tokens`, predicted_ious [P, 4]."""
        p, t, c = tokens.shape
        h = self.heads
        k, d = h * t, side.key0.shape[2]
        tokens = tokens.astype(jnp.float32)

        # Layer 0: keys, values and queries of the image are the shared ones.
        layer = self.layer0
        queries = self._norm(layer.norm1, layer.self_attn(*(tokens.astype(self.dtype),) * 3))
        q = self._heads(queries + tokens, layer.cross_attn_token_to_image.q_proj, scaled=True)

        def pool0(pooled: Attended, side: ImageSide) -> tuple[Attended, None]:
            logits = self._along_image(q, side.key0)
            return _attend(pooled, logits, lambda w: (_total(w), self._pooled(w, side.value0))), None

        total, pooled = _over_blocks(pool0, _unattended((p, k), 1, d), side)[0].sums
        pooled = self._tokens_first(pooled / total)
        queries = self._norm(layer.norm2, queries + self._output(layer.cross_attn_token_to_image, pooled))
        queries = self._norm(layer.norm3, queries + self._mlp(layer, queries))
        attn = layer.cross_attn_image_to_token
        key0 = self._heads(queries + tokens, attn.k_proj, scaled=True)
        value0 = self._heads(queries, attn.v_proj)
        basis0 = self._basis(value0, self.out0)
        gram = self._dot("pkc,pjc->pkj", basis0, basis0)
        basis0 = basis0 * self.g1[None]

        # Layer 1, token to image, together with layer 0's image to token and its norm.
        layer = self.layer1
        attn = layer.self_attn
        queries = queries + attn(*((queries + tokens).astype(self.dtype),) * 2, queries.astype(self.dtype))
        queries = self._norm(layer.norm1, queries)
        attn = layer.cross_attn_token_to_image
        q = self._heads(queries + tokens, attn.q_proj, scaled=True)
        against_a0 = jnp.concatenate([gram, self._small(q, basis0, attn.k_proj)], axis=1)

        def pool1(pooled: Attended, side: ImageSide) -> tuple[Attended, tuple[Array, Array]]:
            a0 = self._over_tokens(self._along_image(key0, side.query0))
            products = self._dot("pkj,pjn->pkn", against_a0, a0)
            square = _sum(a0 * (2 * self._along_image(value0, side.out0) + products[:, :k]), 1)[:, 0]
            variance = (side.norm0[None] + square) / c + self.epsilon
            r1 = jax.lax.rsqrt(variance)[:, None]
            logits = r1 * (self._along_image(q, side.key1) + products[:, k:]) + self._along_image(q, side.key1_pe)

            def weigh(w: Array) -> tuple[Array, ...]:
                scaled = w * r1
                return _total(w), self._dot("pqn,pkn->pqk", scaled, a0), self._pooled(scaled, side.value1)

            return _attend(pooled, logits, weigh), (a0.astype(self.dtype), variance)

        attended, (a0, variance1) = _over_blocks(pool1, _unattended((p, k), 1, k, d), side)
        total, through, pooled = attended.sums
        values = _split(self._dot("pkc,ci->pki", basis0, self._kernel(attn.v_proj)), h)
        pooled = self._tokens_first(pooled / total)
        pooled += self._dot("phtk,pkhd->pthd", (through / total).reshape(p, h, t, k), values)
        pooled += _split(self.b1 @ self._kernel(attn.v_proj) + self._bias(attn.v_proj), h)[None]
        queries = self._norm(layer.norm2, queries + self._output(attn, pooled))
        queries = self._norm(layer.norm3, queries + self._mlp(layer, queries))

        # Layer 1, image to token, its norm, and the final attention of the IoU token.
        attn = layer.cross_attn_image_to_token
        key1 = self._heads(queries + tokens, attn.k_proj, scaled=True)
        value1 = self._heads(queries, attn.v_proj)
        small = self._small(key1, basis0, attn.q_proj)
        basis = jnp.concatenate([_centre(basis0), self._basis(value1, self.out1)], axis=1)  # [P, 2 K, C]
        gram = self._dot("pkc,pjc->pkj", basis, basis)
        # The form is symmetric: of its two mixed quarters one is computed, twice as large.
        gram0, gram1 = gram[:, :k] * jnp.where(jnp.arange(2 * k) < k, 1.0, 2.0)[None, None], gram[:, k:, k:]
        along = _total(basis * self.d[None])  # [P, 2 K, 1]
        constant = jnp.sum(self.d * self.d)
        final = self._final_query(queries, tokens, basis, jnp.ones((p,), jnp.int32))

        def pool2(pooled: Attended, block: tuple[ImageSide, Array, Array]) -> tuple[Attended, tuple[Array, Array]]:
            side, a0, variance1 = block
            r1 = jax.lax.rsqrt(variance1)[:, None]
            logits = self._along_image(key1, side.query1) + self._dot("pkj,pjn->pkn", small, a0)
            a1 = self._over_tokens(r1 * logits + self._along_image(key1, side.query1_pe))
            rows = _rows(a0, a1, r1)
            linear0 = r1 * self._along_image(value0, side.out0_1) + along[:, :k]
            linear1 = self._along_image(value1, side.out1_1) * r1 + along[:, k:]
            square = _sum(rows[:, :k] * (2 * linear0 + self._dot("pkj,pjn->pkn", gram0, rows)), 1)[:, 0]
            square += _sum(a1 * (2 * linear1 + self._dot("pkj,pjn->pkn", gram1, a1)), 1)[:, 0]
            r1 = r1[:, 0]
            square += r1 * (r1 * side.norm1[None] + 2 * side.norm1_d[None]) + constant
            variance2 = square / c + self.epsilon
            pooled = self._final_block(final, pooled, side, rows, variance1, variance2)
            return pooled, (a1.astype(self.dtype), variance2)

        blocks = (side, a0, variance1)
        pooled, (a1, variance2) = _over_blocks(pool2, _unattended((p, h), 1, 1, 2 * k, d), blocks)
        iou_token = self._final_token(queries[:, 1], basis, pooled)
        ious = jax.nn.sigmoid(self.decoder.iou_prediction_head(iou_token))
        return Tokens(queries, tokens, basis, a0, a1, variance1, variance2), ious

    def _over_tokens(self, logits: Array) -> Array:
        """Softmax over the tokens of each head: [P, K, n] -> [P, K, n]."""
        p, k, n = logits.shape
        return _softmax(logits.reshape(p, self.heads, -1, n), 2).reshape(p, k, n)

    def _basis(self, value: Array, rows: Array) -> Array:
        """What each (head, token) adds to an image token: [P, T, H, d], [I, C] -> [P, K, C]."""
        b = self._dot("pthd,hdc->phtc", value, rows.reshape(self.heads, -1, rows.shape[-1]))
        return b.reshape(b.shape[0], -1, b.shape[-1])

    def _small(self, q: Array, basis: Array, linear) -> Array:
        """q [P, T, H, d] against a projection of the basis [P, K, C] -> [P, K, K]."""
        projected = _split(self._dot("pkc,ci->pki", basis, self._kernel(linear)), self.heads)
        small = self._dot("pthd,pkhd->phtk", q, projected)
        return small.reshape(small.shape[0], -1, small.shape[-1])

    # -- the final attention for one token of each point --------------------------------------------------------------

    def _final_query(self, queries: Array, tokens: Array, basis: Array, index: Array) -> FinalQuery:
        """queries, tokens [P, T, C], basis [P, 2 K, C], index [P] -> `FinalQuery`."""
        token = _take(queries + tokens, index)
        q = self._heads(token[:, None], self.final.q_proj, scaled=True)[:, 0]  # [P, H, d]
        kernel = self._kernel(self.final.k_proj)
        projected = _split(self._dot("pkc,ci->pki", basis * self.g2[None], kernel), self.heads)
        small = self._dot("phd,pkhd->phk", q, projected)
        return FinalQuery(q, small, _total(q * _split((self.d * self.g2) @ kernel, self.heads)))

    def _final_block(
        self, final: FinalQuery, pooled: Attended, side: ImageSide, rows: Array, variance1: Array, variance2: Array
    ) -> Attended:
        """Takes one block into the final attention, sums: 1, r2, rows, values."""
        r1, r2 = jax.lax.rsqrt(variance1)[:, None], jax.lax.rsqrt(variance2)[:, None]
        logits = r1 * self._dot("phd,hdn->phn", final.query, side.key2) + self._dot("phk,pkn->phn", final.small, rows)
        logits = r2 * (logits + final.constant) + self._dot("phd,hdn->phn", final.query, side.key2_pe)

        def weigh(w: Array) -> tuple[Array, ...]:
            scaled = w * r2
            values = self._dot("phn,hdn->phd", scaled * r1, side.value2)
            # "pkn,phn", because a CPU's product of 8 rows by 128 columns takes three times as long as its transpose.
            return _total(w), _total(scaled), self._dot("pkn,phn->pkh", rows, scaled).mT, values

        return _attend(pooled, logits, weigh)

    def _final_token(self, query: Array, basis: Array, pooled: Attended) -> Array:
        """The token's queries [P, C], basis and what was attended to -> [P, C] after `norm_final_attn`."""
        total, *sums = pooled.sums
        constant, through, pooled_values = (x / total for x in sums)
        kernel, bias = self._kernel(self.final.v_proj), self._bias(self.final.v_proj)
        values = _split(self._dot("pkc,ci->pki", basis * self.g2[None], kernel), self.heads)
        out = pooled_values + self._dot("phk,pkhd->phd", through, values)
        out += constant * _split((self.d * self.g2) @ kernel, self.heads) + _split(self.b2 @ kernel + bias, self.heads)
        out = self._output(self.final, out[:, None])[:, 0]
        return self._norm(self.decoder.transformer.norm_final_attn, query + out)

    # -- phase 2: one mask, points that pass --------------------------------------------------------------------------

    def mask_weights(self, side: ImageSide, state: Tokens, best: Array) -> Array:
        """Of mask token `best` [P] in 0..3, the weights of the upscaled pixels' channels: [P, C / 8]."""
        (p, k, _), d = state.basis.shape, side.value2.shape[2]
        index = best + 2  # after the object-score and IoU tokens
        final = self._final_query(state.queries, state.tokens, state.basis, index)

        def pool(pooled: Attended, block: tuple[ImageSide, Array, Array, Array, Array]) -> tuple[Attended, None]:
            side, a0, a1, *variances = block
            rows = _rows(a0, a1, jax.lax.rsqrt(variances[0])[:, None])
            return self._final_block(final, pooled, side, rows, *variances), None

        blocks = (side, state.attention0, state.attention1, state.variance1, state.variance2)
        pooled, _ = _over_blocks(pool, _unattended((p, self.heads), 1, 1, k, d), blocks)
        token = self._final_token(_take(state.queries, index), state.basis, pooled)
        weights = jnp.stack([mlp(token.astype(self.dtype)) for mlp in self.decoder.output_hypernetworks_mlps], axis=1)
        return _take(weights.astype(jnp.float32), best)

    def masks(self, side: ImageSide, state: Tokens, weights: Array, at: Array, height: int, width: int) -> Array:
        """Masks of the points at the places `at` [Q] of a chunk -> logits [Q, 4 height, 4 width].

        weights: of `mask_weights`, [P, C / 8]. height x width is the token grid.
        """
        q = len(at)
        norm, up2 = self.up[1], self.up[3]
        kernel = self._up_kernel()
        basis = self._dot("pkc,co->pok", state.basis[at] * self.g2[None], kernel)  # [Q, 4 C/4, 2K]
        constant = ((self.d * self.g2) @ kernel)[..., None]  # [1, 4 C/4, 1]
        shift = (self.b2 @ kernel).T
        scale, bias = norm.scale[...].reshape(1, 1, -1, 1), norm.bias[...].reshape(1, 1, -1, 1)
        kernel2 = up2.kernel[...].astype(jnp.float32)  # [2, 2, C / 4, C / 8]
        channels = kernel2.shape[-1]
        kernel2 = kernel2.transpose(0, 1, 3, 2).reshape(-1, kernel2.shape[2])  # [4 C/8, C / 4]
        # Repeated for every sub-pixel: batched products keep n last, a shared kernel would transpose twice.
        kernel2 = jnp.broadcast_to(kernel2, (q, 4, *kernel2.shape))
        bias2 = jnp.tile(self._bias(up2), 4).T
        weights = jnp.broadcast_to(weights[at][:, None, None], (q, 16, 1, channels))

        def upscale(carry: None, block: tuple[Array, ImageSide]) -> tuple[None, Array]:
            index, side = block
            r1, r2 = (jax.lax.rsqrt(x[index, at])[:, None] for x in (state.variance1, state.variance2))
            rows = _rows(state.attention0[index, at], state.attention1[index, at], r1)
            x = self._dot_upscaled("pok,pkn->pon", basis, rows)
            x = r2 * (x + r1 * side.upscaled[None] + constant) + (shift + side.feat_s1)[None]
            # Layer norm over the channels of each of the four sub-pixels, centred already, then the second convolution.
            x = x.reshape(q, 4, -1, x.shape[-1])
            x = x * jax.lax.rsqrt(_sum_of_squares(x) / x.shape[2] + norm.epsilon)
            x = gelu(x * scale + bias)
            x = self._dot_upscaled("paoc,pacn->paon", kernel2, x)
            x = gelu(x + (side.feat_s0 + bias2[None])[None])
            # A batched product, because CPUs are slow at sums over channels.
            return carry, jnp.matmul(weights, x.reshape(q, 16, channels, -1), precision="highest")

        blocks = (jnp.arange(len(state.attention0)), side)
        _, logits = _over_blocks(upscale, None, blocks)  # [blocks, Q, 16, 1, n]
        logits = logits.reshape(len(logits), q, 2, 2, 2, 2, -1, width).transpose(1, 0, 6, 2, 4, 7, 3, 5)
        return logits.reshape(q, 4 * height, 4 * width)


def _rows(a0: Array, a1: Array, r1: Array) -> Array:
    """F `[P, 2 K, n]` of the attention weights of both layers `[P, K, n]` and 1 / deviation `[P, 1, n]`."""
    return jnp.concatenate([a0 * r1, a1], axis=1)


def _take(x: Array, index: Array) -> Array:  # [P, M, C], [P] -> [P, C]
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
