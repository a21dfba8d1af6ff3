"""DINOv3 vision transformer: image -> patch tokens. Mirrors `transformers`' `DINOv3ViTModel`, channels-last.

Attribute names are Hugging Face's, so the keys of a checkpoint lead to the parameters; as everywhere in Flax a `weight`
is called `kernel` (`[in, out]` or `[k, k, in, out]`), or `scale` in a norm.

Unlike DINOv2 it has no position table: queries and keys of the patches are rotated by angles that their places give
(arXiv 2508.10104, section 3.2; rotary embedding: 2104.09864). Queries, keys and values have projections of their own,
that of the keys without a bias, and the norms' epsilon is 1e-5.

The token stream between the blocks is float32 whatever `dtype` is, as in `dinov2`.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from ntt_jax.config import DinoV3Config
from ntt_jax.errors import InputError
from ntt_jax.models.attention import attention
from ntt_jax.models.dinov2 import check_images, check_input_size, normal, patch_grid
from ntt_jax.models.layers import Conv, LayerNorm, Linear, gelu

LAYER_NORM_EPSILON = 1e-5


class DINOv3ViTEmbeddings(nnx.Module):
    """CLS token, register tokens and projected patches, `[B, 1 + R + h * w, C]` float32."""

    def __init__(self, config: DinoV3Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, dim)))
        # Pre-training replaces hidden patches by this token; kept so that a checkpoint's tensor has its place.
        self.mask_token = nnx.Param(jnp.zeros((1, 1, dim), jnp.float32))
        self.register_tokens = nnx.Param(normal(rngs.params(), (1, config.num_register_tokens, dim)))
        self.patch_embeddings = Conv(3, dim, config.patch_size, stride=config.patch_size, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        patches = self.patch_embeddings(images).astype(jnp.float32)  # [B, h, w, C]
        b, h, w, c = patches.shape
        learnt = (jnp.broadcast_to(t, (b, *t.shape[1:])) for t in (self.cls_token[...], self.register_tokens[...]))
        return jnp.concatenate([*learnt, patches.reshape(b, h * w, c)], axis=1)


class DINOv3ViTAttention(nnx.Module):
    """Multi-head self-attention, the patches' queries and keys rotated."""

    def __init__(self, config: DinoV3Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim, self.num_heads = config.embed_dim, config.num_heads
        self.q_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(dim, dim, bias=False, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, rotation: tuple[Array, Array]) -> Array:  # [B, N, C]
        b, n, c = x.shape
        q, k, v = (p(x).reshape(b, n, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attention(rotated(q, *rotation), rotated(k, *rotation), v).reshape(b, n, c))


class DINOv3ViTMLP(nnx.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, config: DinoV3Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up_proj = Linear(config.embed_dim, config.ffn_hidden_dim, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(config.ffn_hidden_dim, config.embed_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(gelu(self.up_proj(x)))


class DINOv3ViTLayerScale(nnx.Module):
    """One learnt factor per channel, float32."""

    def __init__(self, dim: int):
        self.lambda1 = nnx.Param(jnp.ones(dim, jnp.float32))

    def __call__(self, x: Array) -> Array:  # [B, N, C], result float32
        return x.astype(jnp.float32) * self.lambda1[...][None, None]


class DINOv3ViTLayer(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: DinoV3Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.norm1 = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
        self.attention = DINOv3ViTAttention(config, dtype=dtype, rngs=rngs)
        self.layer_scale1 = DINOv3ViTLayerScale(dim)
        self.norm2 = LayerNorm(dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)
        self.mlp = DINOv3ViTMLP(config, dtype=dtype, rngs=rngs)
        self.layer_scale2 = DINOv3ViTLayerScale(dim)

    def __call__(self, x: Array, rotation: tuple[Array, Array]) -> Array:  # [B, N, C] float32
        x = x + self.layer_scale1(self.attention(self.norm1(x), rotation))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class DINOv3ViTModel(nnx.Module):
    """DINOv3 ViT with register tokens and rotary positions. Mirrors `transformers`' `DINOv3ViTModel`.

    Stateless: use it as `jax.jit(f)(model, images)`; it works under vmap and grad too.

    Args:
        config: sizes; `DINOV3_CONFIGS` holds the published ones that have this feed-forward layer (S, B, L).
        dtype: type of the kernels and of the matrix products, float32 or bfloat16. Norms, softmax, rotation, layer
            scale, the learnt tokens and the token stream stay float32.
        rngs: random streams for the initial weights (`params`).

    Raises:
        InputError: the configuration is not one of such a transformer (heads that do not divide).
    """

    def __init__(self, config: DinoV3Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        _check_config(config)
        self.config = config
        self.embeddings = DINOv3ViTEmbeddings(config, dtype=dtype, rngs=rngs)
        self.layer = nnx.List([DINOv3ViTLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(config.embed_dim, epsilon=LAYER_NORM_EPSILON, rngs=rngs)

    def __repr__(self) -> str:
        config = self.config
        sizes = f"{config.depth} blocks of width {config.embed_dim}, patches of {config.patch_size} pixels"
        return f"DINOv3ViTModel({config.name}: {sizes})"

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float32[Array, "B h w C"]:
        """Patch features after the final norm.

        Args:
            images: `[B, H, W, 3]`, RGB, normalised by ImageNet's mean and deviation; H and W multiples of 16.

        Returns:
            `[B, H / 16, W / 16, C]` float32. CLS and register tokens are left out.

        Raises:
            InputError: images of another shape or of integers.
        """
        tokens = self.forward_features(images)["norm"]
        return patch_grid(tokens, images, self.config)

    def forward_features(self, images: Float[Array, "B H W 3"]) -> dict[str, Float32[Array, "B N C"]]:
        """Every stage by name, for tests and analysis; what is not used costs nothing under jit.

        Args:
            images: as for `__call__`.

        Returns:
            `[B, 1 + R + h * w, C]` float32 each, tokens in the order CLS, registers, patches row by row: "tokens0"
            (the embeddings), "block0", "block1", ..., and "norm" (after the final norm).

        Raises:
            InputError: images of another shape or of integers.
        """
        config = self.config
        check_images(images, config.patch_size, "DINOv3")
        x = self.embeddings(images)
        height, width = (side // config.patch_size for side in images.shape[1:3])
        rotation = patch_rotation(height, width, config, still=1 + config.num_register_tokens)
        outputs = {"tokens0": x}
        for i, layer in enumerate(self.layer):
            x = outputs[f"block{i}"] = layer(x, rotation)
        outputs["norm"] = self.norm(x)
        return outputs


def patch_rotation(height: int, width: int, config: DinoV3Config, *, still: int) -> tuple[Array, Array]:
    """Cosines and sines `[N, d / 2]` of each token's rotation in a head of d channels, N = still + height * width.

    The centre of a patch has coordinates y and x in [-1, 1]. Each is turned into d / 4 angles, 2 pi times the
    coordinate times theta^(-4 i / d); those of y come first. The first `still` tokens are not rotated.
    """
    quarter = config.embed_dim // config.num_heads // 4
    frequencies = jnp.float32(config.rope_theta) ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    y, x = (2 * (jnp.arange(n, dtype=jnp.float32) + 0.5) / n - 1 for n in (height, width))
    places = jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = (2 * math.pi * places * frequencies.reshape(1, 1, -1)).reshape(-1, 2 * quarter)
    angles = jnp.pad(angles, ((still, 0), (0, 0)))
    return jnp.cos(angles), jnp.sin(angles)


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Channels i and i + d / 2 of each head turned together. x `[B, N, H, d]`, cos and sin `[N, d / 2]`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _check_config(config: DinoV3Config) -> None:
    heads, patch = config.num_heads, config.patch_size
    if heads < 1 or config.embed_dim < 1 or config.embed_dim % (4 * heads):
        raise InputError(
            f"{config.name}: embed_dim {config.embed_dim} must be a multiple of 4 num_heads, {4 * heads}: every head "
            "has as many angles for rows as for columns"
        )
    if config.depth < 1 or patch < 1:
        raise InputError(f"{config.name}: depth and patch_size must be positive, found {config.depth} and {patch}")
    check_input_size(config.name, config.input_size, patch)
    if config.rope_theta <= 0 or config.ffn_hidden_dim < 1:
        raise InputError(f"{config.name}: rope_theta and ffn_hidden_dim must be above 0")
