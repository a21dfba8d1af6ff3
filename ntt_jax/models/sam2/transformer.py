"""The two-way transformer of the mask decoder (`sam2/modeling/sam/transformer.py`)."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ntt_jax.config import Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.models.attention import attention
from ntt_jax.models.layers import LayerNorm, Linear
from ntt_jax.models.sam2.sam2_utils import MLP

LAYER_NORM_EPSILON = 1e-5  # torch's default, which the norms here keep


class Attention(nnx.Module):
    """Multi-head attention with projections; heads share `embedding_dim / downsample_rate` channels."""

    def __init__(
        self, embedding_dim: int, num_heads: int, *, downsample_rate: int = 1, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        internal = embedding_dim // downsample_rate
        if internal % num_heads:
            raise InputError(
                f"configuration: the decoder's attention width {internal} (d_model {embedding_dim} / "
                f"{downsample_rate}) is not a multiple of decoder_num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.q_proj = Linear(embedding_dim, internal, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(embedding_dim, internal, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(embedding_dim, internal, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(internal, embedding_dim, dtype=dtype, rngs=rngs)

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        """q `[P, N, D]`, k and v `[P, M, D]` -> `[P, N, D]`. A batch axis of 1 on either side is shared by all P."""
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        p, n = max(q.shape[0], k.shape[0]), q.shape[1]
        if k.shape[0] < p:  # every prompt's queries in one product against the shared keys
            q = q.reshape(1, p * n, *q.shape[2:])
        elif q.shape[0] < p:
            q = jnp.broadcast_to(q, (p, *q.shape[1:]))
        return self.out_proj(attention(q, k, v).reshape(p, n, -1))

    def _heads(self, x: Array) -> Array:  # [P, N, C] -> [P, N, H, C/H]
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class TwoWayAttentionBlock(nnx.Module):
    """Self-attention of the tokens, tokens to image, MLP on the tokens, image to tokens; a norm after each."""

    def __init__(self, config: Sam2Config, *, skip_first_layer_pe: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        dim, heads, rate = config.d_model, config.decoder_num_heads, config.attention_downsample_rate
        self.skip_first_layer_pe = skip_first_layer_pe
        self.self_attn = Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
        self.cross_attn_token_to_image = Attention(dim, heads, downsample_rate=rate, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
        self.mlp = MLP(dim, config.decoder_mlp_dim, dim, 2, dtype=dtype, rngs=rngs)
        self.norm3 = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
        self.norm4 = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
        self.cross_attn_image_to_token = Attention(dim, heads, downsample_rate=rate, dtype=dtype, rngs=rngs)

    def __call__(
        self, queries: Array, keys: Array, query_pe: Array, key_pe: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """queries `[P, T, D]`, keys `[P or 1, h*w, D]`, their position encodings alike -> both, updated; intermediates.

        Of these, "norm1", "norm2" and "queries" are the tokens after each of the first three norms, "image_to_token" is
        what the last attention adds to the keys, and "keys" are the image tokens after the fourth norm.
        """
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        norm1 = self.norm1(queries)
        norm2 = self.norm2(norm1 + self.cross_attn_token_to_image(norm1 + query_pe, keys + key_pe, keys))
        queries = self.norm3(norm2 + self.mlp(norm2))
        image_to_token = self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries)
        keys = self.norm4(keys + image_to_token)
        features = {"norm1": norm1, "norm2": norm2, "queries": queries, "image_to_token": image_to_token, "keys": keys}
        return queries, keys, features


class TwoWayTransformer(nnx.Module):
    """Tokens and image attend to each other for `decoder_depth` blocks, then the tokens once more to the image."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dim, heads, rate = config.d_model, config.decoder_num_heads, config.attention_downsample_rate
        self.layers = nnx.List(
            [
                TwoWayAttentionBlock(config, skip_first_layer_pe=index == 0, dtype=dtype, rngs=rngs)
                for index in range(config.decoder_depth)
            ]
        )
        self.final_attn_token_to_image = Attention(dim, heads, downsample_rate=rate, dtype=dtype, rngs=rngs)
        self.norm_final_attn = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)

    def __call__(self, image_embedding: Array, image_pe: Array, tokens: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Image `[P or 1, h*w, D]`, its encoding `[1, h*w, D]`, tokens `[P, T, D]` -> tokens, image, intermediates."""
        queries, keys, features = tokens, image_embedding, {}
        for index, layer in enumerate(self.layers):
            queries, keys, named = layer(queries, keys, tokens, image_pe)
            features |= {f"layer{index}_{name}": value for name, value in named.items()}
        queries = queries + self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries), keys, features
