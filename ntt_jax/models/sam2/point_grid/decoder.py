"""`GridDecoder`: the arithmetic of the module `grid`, whose notation this file uses.

The tokens of a point come before its heads in all indices: k = (token, head) runs over K = T H, and j over the J =
(T - 1) H of them without the last token. What such rows become in a projection is kept as `[P, J + 1, ...]`, the last
row being e, the sum of the last token's values over the heads: it has no weights, for they are 1 everywhere.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.models.layers import gelu
from ntt_jax.models.sam2.point_grid.blocks import Attended, attend, over_blocks, sum_along, total, unattended
from ntt_jax.models.sam2.point_grid.image_side import ImageSide
from ntt_jax.models.sam2.point_grid.state import FinalQuery, SquaredNorm, Tokens, Upscaling
from ntt_jax.models.sam2.point_grid.weights import GridWeights, bias_of


class GridDecoder(GridWeights):
    """`MaskDecoder` rearranged for single points. Everything but the weights is a method argument."""

    # -- products with the image and with small matrices --------------------------------------------------------------

    def _along_image(self, x: Array, image: Array) -> Array:
        """[P, T, H, d] against [H, d, n], every head with its own -> [P, K, n]."""
        p, t, h, d = x.shape
        y = self.dot("hqd,hdn->hqn", x.transpose(2, 0, 1, 3).reshape(h, p * t, d), image)
        return y.reshape(h, p, t, -1).transpose(1, 2, 0, 3).reshape(p, t * h, -1)

    def _value_along_image(self, value: Array, image: Array) -> tuple[Array, Array]:
        """`_along_image` of `_differences`: [P, J, n], and that of e, [P, 1, n]."""
        x = self._along_image(value, image)
        return x[:, : -self.heads], sum_along(x[:, -self.heads :], 1)

    def _pooled(self, weights: Array, image: Array) -> Array:
        """[P, K, n] over the image against [H, d, n], every head with its own -> [P, K, d]."""
        (p, k, n), (h, d, _) = weights.shape, image.shape
        by_head = weights.reshape(p, -1, h, n).transpose(2, 0, 1, 3).reshape(h, -1, n)
        return self.dot("hqn,hdn->hqd", by_head, image).reshape(h, p, -1, d).transpose(1, 2, 0, 3).reshape(p, k, d)

    def _over_tokens(self, logits: Array) -> Array:
        """Softmax over the tokens of each head, without the last one: [P, K, n] -> [P, J, n]."""
        p, _, n = logits.shape
        return jax.nn.softmax(logits.reshape(p, -1, self.heads, n), axis=1)[:, :-1].reshape(p, -1, n)

    def _through(self, values: Sequence[Array], matrix: Array) -> Array:
        """What the rows of one or both layers become in a projection.

        values: `_differences` [P, T, H, d] of each layer. matrix: [layers * I, o], of `GridWeights`. Returns
        [P, layers * (J + 1), o].
        """
        parts = []
        for value, part in zip(values, jnp.split(matrix, len(values)), strict=True):
            parts.append(_sum_last(self.dot("pthd,hdo->ptho", value, part.reshape(self.heads, -1, part.shape[-1]))))
        return jnp.concatenate(parts, axis=1)

    def _against(self, q: Array, values: Sequence[Array], matrix: Array) -> Array:
        """q [P, T, H, d] against `_through` -> [P, T, H, layers * (J + 1)]."""
        return self.dot("pthd,pkhd->pthk", q, _split(self._through(values, matrix), self.heads))

    def _small(self, q: Array, values: Sequence[Array], matrix: Array) -> tuple[Array, Array]:
        """`_against` of one layer as [P, K, J] and, against e, [P, K, 1]."""
        x = self._against(q, values, matrix)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return x[..., :-1], x[..., -1:]

    # -- steps of the original decoder --------------------------------------------------------------------------------

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

    # -- phase 1: tokens and predicted IoUs, every point --------------------------------------------------------------

    def tokens(self, side: ImageSide, tokens: Array) -> tuple[Tokens, Array, dict[str, Array]]:
        """tokens [P, T, C] (output tokens, then the sparse prompt embeddings) -> `Tokens`, predicted_ious [P, 4].

        Third, intermediates by the names that `MaskDecoder` gives them: "layer0_norm1" and so on, [P, T, C].
        """
        p, t, c = tokens.shape
        h, d = self.heads, side.key0.shape[2]
        k, j = t * h, (t - 1) * h
        tokens = tokens.astype(jnp.float32)

        # Layer 0: keys, values and queries of the image are the shared ones.
        layer = self.layer0
        queries = self._norm(layer.norm1, layer.self_attn(*(tokens.astype(self.dtype),) * 3))
        features = {"layer0_norm1": queries}
        q = self._heads(queries + tokens, layer.cross_attn_token_to_image.q_proj, scaled=True)

        def pool0(pooled: Attended, side: ImageSide) -> tuple[Attended, None]:
            logits = self._along_image(q, side.key0)
            return attend(pooled, logits, lambda w: (total(w), self._pooled(w, side.value0))), None

        whole, pooled = over_blocks(pool0, unattended((p, k), 1, d), side)[0].sums
        pooled = self._heads_last(pooled / whole)
        queries = self._norm(layer.norm2, queries + self._output(layer.cross_attn_token_to_image, pooled))
        features["layer0_norm2"] = queries
        queries = features["layer0_queries"] = self._norm(layer.norm3, queries + self._mlp(layer, queries))
        attn = layer.cross_attn_image_to_token
        key0 = self._heads(queries + tokens, attn.k_proj, scaled=True)
        value0 = _differences(self._heads(queries, attn.v_proj))
        gram = _sum_last(self._against(value0, (value0,), self.gram0))  # [P, J + 1, J + 1]

        # Layer 1, token to image, together with layer 0's image to token and its norm.
        layer = self.layer1
        attended = layer.self_attn(*((queries + tokens).astype(self.dtype),) * 2, queries.astype(self.dtype))
        queries = features["layer1_norm1"] = self._norm(layer.norm1, queries + attended.astype(jnp.float32))
        attn = layer.cross_attn_token_to_image
        q = self._heads(queries + tokens, attn.q_proj, scaled=True)
        small, small_last = self._small(q, (value0,), self.key1_rows)
        against_a0 = jnp.concatenate([gram[:, :-1, :-1], small], axis=1)  # [P, J + K, J]

        def pool1(pooled: Attended, side: ImageSide) -> tuple[Attended, tuple[Array, Array]]:
            a0 = self._over_tokens(self._along_image(key0, side.query0))
            products = self.dot("pkj,pjn->pkn", against_a0, a0)
            linear, last = self._value_along_image(value0, side.out0)
            square = sum_along(a0 * (2 * (linear + gram[:, :-1, -1:]) + products[:, :j]), 1)
            variance = (side.norm0[None] + (square + 2 * last + gram[:, -1:, -1:])[:, 0]) / c + self.epsilon
            r1 = jax.lax.rsqrt(variance)[:, None]
            logits = r1 * (self._along_image(q, side.key1) + products[:, j:] + small_last)
            logits += self._along_image(q, side.key1_pe)

            def weigh(w: Array) -> tuple[Array, ...]:
                scaled = w * r1
                through = self.dot("pqn,pjn->pqj", scaled, a0)
                return total(w), through, total(scaled), self._pooled(scaled, side.value1)

            return attend(pooled, logits, weigh), (a0.astype(self.dtype), variance)

        attended, (a0, variance1) = over_blocks(pool1, unattended((p, k), 1, j, 1, d), side)
        whole, *through, pooled = attended.sums
        pooled = self._heads_last(pooled / whole)
        through = self._heads_last(jnp.concatenate(through, axis=-1) / whole)
        pooled += self.dot("pthj,pjhd->pthd", through, _split(self._through((value0,), self.value1_rows), h))
        pooled += _split(self.value1_b1, h)[None]
        queries = features["layer1_norm2"] = self._norm(layer.norm2, queries + self._output(attn, pooled))
        queries = features["layer1_queries"] = self._norm(layer.norm3, queries + self._mlp(layer, queries))

        # Layer 1, image to token, its norm, and the final attention of the IoU token.
        attn = layer.cross_attn_image_to_token
        key1 = self._heads(queries + tokens, attn.k_proj, scaled=True)
        values = value0, _differences(self._heads(queries, attn.v_proj))
        small, small_last = self._small(key1, values[:1], self.query1_rows)
        norm = self._squared_norm(values)
        final = self._final_query(queries, tokens, values, jnp.ones((p,), jnp.int32))

        def pool2(pooled: Attended, block: tuple[ImageSide, Array, Array]) -> tuple[Attended, tuple[Array, Array]]:
            side, a0, variance1 = block
            r1 = jax.lax.rsqrt(variance1)[:, None]
            logits = r1 * (self._along_image(key1, side.query1) + self.dot("pkj,pjn->pkn", small, a0) + small_last)
            a1 = self._over_tokens(logits + self._along_image(key1, side.query1_pe))
            rows = _rows(a0, a1, r1)
            linear0, last0 = self._value_along_image(values[0], side.out0_1)
            linear1, last1 = self._value_along_image(values[1], side.out1_1)
            linear0 = r1 * (linear0 + norm.linear0_r1) + norm.linear0
            linear1 = r1 * (linear1 + norm.linear1_r1) + norm.linear1
            square = sum_along(rows[:, :j] * (2 * linear0 + self.dot("pkj,pjn->pkn", norm.quadratic0, rows)), 1)
            square += sum_along(a1 * (2 * linear1 + self.dot("pkj,pjn->pkn", norm.quadratic1, a1)), 1)
            r1, square, last0, last1 = (x[:, 0] for x in (r1, square, last0, last1))
            once = r1 * (side.norm1[None] + 2 * last0 + norm.constant_r1_r1) + norm.constant_r1
            square += r1 * (once + 2 * (side.norm1_d[None] + last1)) + norm.constant
            variance2 = square / c + self.epsilon
            pooled = self._final_block(final, pooled, side, rows, variance1, variance2)
            return pooled, (a1.astype(self.dtype), variance2)

        blocks = (side, a0, variance1)
        pooled, (a1, variance2) = over_blocks(pool2, self._final_unattended(p, j, d), blocks)
        features["iou_token"] = self._final_token(queries[:, 1], values, pooled)
        ious = jax.nn.sigmoid(self.decoder.iou_prediction_head(features["iou_token"]))
        return Tokens(queries, tokens, values, a0, a1, variance1, variance2), ious, features

    def _heads_last(self, x: Array) -> Array:  # [P, K, m] -> [P, T, H, m]
        return x.reshape(x.shape[0], -1, self.heads, x.shape[2])

    def _squared_norm(self, values: tuple[Array, Array]) -> SquaredNorm:
        inner = self.gram.shape[0] // 2
        grams = (
            _sum_last(self._against(value, values, columns))
            for value, columns in zip(values, (self.gram[:, :inner], self.gram[:, inner:]), strict=True)
        )
        (gram00, gram01), (gram10, gram11) = (jnp.split(gram, 2, axis=2) for gram in grams)  # [P, J + 1, J + 1]
        along0, along1 = jnp.split(self._through(values, self.d_rows), 2, axis=1)  # [P, J + 1, 1]
        return SquaredNorm(
            quadratic0=jnp.concatenate([gram00[:, :-1, :-1], 2 * gram01[:, :-1, :-1]], axis=2),
            quadratic1=gram11[:, :-1, :-1],
            linear0=gram01[:, :-1, -1:] + along0[:, :-1],
            linear1=gram11[:, :-1, -1:] + along1[:, :-1],
            linear0_r1=gram00[:, :-1, -1:],
            linear1_r1=gram10[:, :-1, -1:],
            constant_r1_r1=gram00[:, -1, -1:],
            constant_r1=2 * (gram01[:, -1, -1:] + along0[:, -1]),
            constant=gram11[:, -1, -1:] + 2 * along1[:, -1] + jnp.sum(self.d * self.d),
        )

    # -- the final attention for one token of each point --------------------------------------------------------------

    def _final_query(self, queries: Array, tokens: Array, values: tuple[Array, Array], index: Array) -> FinalQuery:
        """queries, tokens [P, T, C], values of `Tokens`, index [P] -> `FinalQuery`."""
        token = _take(queries + tokens, index)
        q = self._heads(token[:, None], self.final.q_proj, scaled=True)[:, 0]  # [P, H, d]
        small = self.dot("phd,pkhd->pkh", q, _split(self._through(values, self.key2_rows), self.heads))
        small, constant_r1, constant = (x.mT for x in _by_weight(small))
        return FinalQuery(q, small, constant_r1, constant + total(q * _split(self.key2_d, self.heads)))

    def _final_unattended(self, points: int, rows: int, width: int) -> Attended:
        """Sums, all weighted by the attention: 1, r1 r2, r2, r2 F, r1 r2 values."""
        return unattended((points, self.heads), 1, 1, 1, 2 * rows, width)

    def _final_block(
        self, final: FinalQuery, pooled: Attended, side: ImageSide, rows: Array, variance1: Array, variance2: Array
    ) -> Attended:
        """Takes one block into the final attention."""
        r1, r2 = jax.lax.rsqrt(variance1)[:, None], jax.lax.rsqrt(variance2)[:, None]
        logits = r1 * (self._along_image(final.query[:, None], side.key2) + final.constant_r1)
        logits = r2 * (logits + self.dot("phk,pkn->phn", final.small, rows) + final.constant)
        logits += self._along_image(final.query[:, None], side.key2_pe)

        def weigh(w: Array) -> tuple[Array, ...]:
            r2_w = w * r2
            r1_r2_w = r1 * r2_w
            # "pkn,phn", because a CPU's product of 8 rows by 128 columns takes three times as long as its transpose.
            through = self.dot("pkn,phn->pkh", rows, r2_w).mT
            return total(w), total(r1_r2_w), total(r2_w), through, self.dot("phn,hdn->phd", r1_r2_w, side.value2)

        return attend(pooled, logits, weigh)

    def _final_token(self, query: Array, values: tuple[Array, Array], pooled: Attended) -> Array:
        """The token's queries [P, C], values of `Tokens`, what was attended to -> [P, C] after `norm_final_attn`."""
        whole, *sums = pooled.sums
        e0, e1, through, out = (x / whole for x in sums)
        through0, through1 = jnp.split(through, 2, axis=-1)
        through = jnp.concatenate([through0, e0, through1, e1], axis=-1)  # [P, H, 2 (J + 1)]
        out += self.dot("phk,pkhd->phd", through, _split(self._through(values, self.value2_rows), self.heads))
        out += e1 * _split(self.value2_d, self.heads) + _split(self.value2_b2, self.heads)
        out = self._output(self.final, out[:, None])[:, 0]
        return self._norm(self.decoder.transformer.norm_final_attn, query + out)

    # -- phase 2: one mask, points that pass --------------------------------------------------------------------------

    def mask_token(self, side: ImageSide, state: Tokens, best: Array) -> Array:
        """Mask token `best` [P] in 0..3 after the final attention: [P, C]."""
        p, j, d = len(best), state.attention0.shape[2], side.value2.shape[2]
        index = best + 2  # after the object-score and IoU tokens
        final = self._final_query(state.queries, state.tokens, state.values, index)

        def pool(pooled: Attended, block: tuple[ImageSide, Array, Array, Array, Array]) -> tuple[Attended, None]:
            side, a0, a1, *variances = block
            rows = _rows(a0, a1, jax.lax.rsqrt(variances[0])[:, None])
            return self._final_block(final, pooled, side, rows, *variances), None

        blocks = (side, state.attention0, state.attention1, state.variance1, state.variance2)
        pooled, _ = over_blocks(pool, self._final_unattended(p, j, d), blocks)
        return self._final_token(_take(state.queries, index), state.values, pooled)

    def mask_weights(self, token: Array, best: Array) -> Array:
        """Of `mask_token`, the weights of the upscaled pixels' channels: [P, C / 8]."""
        weights = jnp.stack([mlp(token.astype(self.dtype)) for mlp in self.decoder.output_hypernetworks_mlps], axis=1)
        return _take(weights.astype(jnp.float32), best)

    def masks(self, side: ImageSide, state: Tokens, weights: Array, at: Array, height: int, width: int) -> Array:
        """Masks of the points at the places `at` [Q] of a chunk -> logits [Q, 4 height, 4 width].

        weights: of `mask_weights`, [P, C / 8]. height x width is the token grid.
        """
        q = len(at)
        upscaling = self.upscaling(state, at)
        weights = jnp.broadcast_to(weights[at][:, None, None], (q, 16, 1, weights.shape[-1]))

        def upscale(carry: None, block: tuple[Array, ImageSide]) -> tuple[None, Array]:
            index, side = block
            x = self.upscaled(upscaling, self.upscaled_half(upscaling, side, state, index, at), side)
            # A batched product, because CPUs are slow at sums over channels.
            return carry, jnp.matmul(weights, x, precision="highest")

        blocks = (jnp.arange(len(state.attention0)), side)
        _, logits = over_blocks(upscale, None, blocks)  # [blocks, Q, 16, 1, n]
        logits = logits.reshape(len(logits), q, 2, 2, 2, 2, -1, width).transpose(1, 0, 6, 2, 4, 7, 3, 5)
        return logits.reshape(q, 4 * height, 4 * width)

    def upscaling(self, state: Tokens, at: Array) -> Upscaling:
        """What the points at the places `at` [Q] of a chunk have in common over the image."""
        up2 = self.up[3]
        rows = self._through([value[at] for value in state.values], self.upscaled_rows)
        rows, e0, e1 = (x.mT for x in _by_weight(rows))
        e1 += self.upscaled_d[..., None]
        kernel2 = up2.kernel[...].astype(jnp.float32)  # [2, 2, C / 4, C / 8]
        kernel2 = kernel2.transpose(0, 1, 3, 2).reshape(-1, kernel2.shape[2])  # [4 C/8, C / 4]
        # Repeated for every sub-pixel: batched products keep n last, a shared kernel would transpose twice.
        kernel2 = jnp.broadcast_to(kernel2, (len(at), 4, *kernel2.shape))
        return Upscaling(rows, e0, e1, kernel2, jnp.tile(bias_of(up2), 4).T)

    def upscaled_half(self, upscaling: Upscaling, side: ImageSide, state: Tokens, index: Array, at: Array) -> Array:
        """Block `index` of the image through the first transposed convolution, norm and GELU: [Q, 4, C / 4, n]."""
        norm = self.up[1]
        scale, bias = norm.scale[...].reshape(1, 1, -1, 1), norm.bias[...].reshape(1, 1, -1, 1)
        r1, r2 = (jax.lax.rsqrt(x[index, at])[:, None] for x in (state.variance1, state.variance2))
        rows = _rows(state.attention0[index, at], state.attention1[index, at], r1)
        x = self.dot_upscaled("pok,pkn->pon", upscaling.rows, rows) + r1 * (side.upscaled[None] + upscaling.e0)
        x = r2 * (x + upscaling.e1) + (self.upscaled_b2.T + side.feat_s1)[None]
        # Layer norm over the channels of each of the four sub-pixels, centred already.
        x = x.reshape(len(at), 4, -1, x.shape[-1])
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=2, keepdims=True) + norm.epsilon)
        return gelu(x * scale + bias)

    def upscaled(self, upscaling: Upscaling, half: Array, side: ImageSide) -> Array:
        """`upscaled_half` through the second transposed convolution and GELU: [Q, 16, C / 8, n]."""
        x = self.dot_upscaled("paoc,pacn->paon", upscaling.kernel2, half)
        x = gelu(x + (side.feat_s0 + upscaling.bias2[None])[None])
        return x.reshape(len(x), 16, -1, x.shape[-1])


def _differences(value: Array) -> Array:
    """Values of tokens [P, T, H, d] less that of the last, and that one."""
    return jnp.concatenate([value[:, :-1] - value[:, -1:], value[:, -1:]], axis=1)


def _sum_last(x: Array) -> Array:
    """Of `_differences`, [P, T, H, m] -> [P, J + 1, m]."""
    first = x[:, :-1].reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([first, jnp.sum(x[:, -1], axis=1, keepdims=True)], axis=1)


def _by_weight(x: Array) -> tuple[Array, Array, Array]:
    """[P, 2 (J + 1), m] of both layers -> what F weighs [P, 2 J, m], what r1 does [P, 1, m], and the rest [P, 1, m]."""
    x = x.reshape(x.shape[0], 2, -1, x.shape[-1])
    return x[:, :, :-1].reshape(x.shape[0], -1, x.shape[-1]), x[:, 0, -1:], x[:, 1, -1:]


def _rows(a0: Array, a1: Array, r1: Array) -> Array:
    """F `[P, 2 J, n]` of the attention weights of both layers `[P, J, n]` and 1 / deviation `[P, 1, n]`."""
    return jnp.concatenate([a0.astype(jnp.float32) * r1, a1.astype(jnp.float32)], axis=1)


def _split(x: Array, heads: int) -> Array:  # [..., I] -> [..., H, d]
    return x.reshape(*x.shape[:-1], heads, -1)


def _take(x: Array, index: Array) -> Array:  # [P, M, C], [P] -> [P, C]
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
