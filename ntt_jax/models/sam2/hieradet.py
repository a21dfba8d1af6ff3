"""Hiera trunk: image -> four feature maps, strides 4 to 32. Mirrors `sam2.modeling.backbones.hieradet`.

Two things differ from the mirrored code in order, not in result. The queries, keys and values are projected before the
map is padded to whole windows, and the output after the padding is cut away again: a padded token is zero after the
norm, so its projection is the bias alone, and nothing is spent on it. And a CPU gets some rows of a map at a time
(`by_rows`); where windows fill the rows, whole blocks are cut so, by the trunk.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ntt_jax.config import HieraConfig
from ntt_jax.errors import InputError
from ntt_jax.models.attention import attention
from ntt_jax.models.layers import Conv, LayerNorm, Linear, gelu
from ntt_jax.models.sam2.sam2_utils import MLP
from ntt_jax.models.sam2.windows import Q_STRIDE, by_rows, max_pool, window_attention

PATCH_STRIDE = 4


class PatchEmbed(nnx.Module):
    """7 x 7 convolution, stride 4, padding 3: `[B, H, W, 3] -> [B, H/4, W/4, C]`."""

    def __init__(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj = Conv(3, embed_dim, 7, stride=PATCH_STRIDE, padding=3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.proj(x)


class MultiScaleAttention(nnx.Module):
    """Attention inside windows (or over the whole map, `window_size` 0), queries max-pooled 2 x 2 if `q_pool`."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        window_size: int,
        q_pool: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.window_size = window_size
        self.q_pool = q_pool
        self.qkv = Linear(dim, 3 * dim_out, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim_out, dim_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:  # [B, H, W, dim] -> [B, H/s, W/s, dim_out], s = 2 if q_pool else 1
        b, h, w, _ = x.shape
        window, heads = self.window_size, self.num_heads
        qkv = by_rows(self.qkv, x)
        if window:
            out = window_attention(self._pad(qkv), window, heads, q_pool=self.q_pool)
            stride = Q_STRIDE if self.q_pool else 1
            out = out[:, : h // stride, : w // stride]
        else:
            q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, 3, heads, -1), 2, 0)
            out = attention(q, k, v).reshape(b, h, w, -1)
        return by_rows(self.proj, out)

    def _pad(self, qkv: Array) -> Array:
        """To whole windows; the projection of a padded token is the bias."""
        assert self.qkv.bias is not None
        for axis in (1, 2):
            if missing := -qkv.shape[axis] % self.window_size:
                shape = (*qkv.shape[:axis], missing, *qkv.shape[axis + 1 :])
                qkv = jnp.concatenate([qkv, jnp.broadcast_to(self.qkv.bias[...], shape)], axis=axis)
        return qkv


class MultiScaleBlock(nnx.Module):
    """Pre-norm transformer block on a map; the first block of a stage doubles the channels and may halve the sides."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        window_size: int,
        q_pool: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.q_pool = q_pool
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.attn = MultiScaleAttention(
            dim, dim_out, num_heads, window_size=window_size, q_pool=q_pool, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(dim_out, rngs=rngs)
        self.mlp = MLP(dim_out, int(dim_out * mlp_ratio), dim_out, 2, activation=gelu, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim_out, dtype=dtype, rngs=rngs) if dim != dim_out else None

    def __call__(self, x: Array) -> Array:  # [B, H, W, dim] -> [B, H/s, W/s, dim_out]
        normed = by_rows(self.norm1, x)
        shortcut = x if self.proj is None else by_rows(self.proj, normed)
        if self.q_pool:
            shortcut = max_pool(shortcut)
        x = shortcut + self.attn(normed)
        return by_rows(lambda x: x + self.mlp(self.norm2(x)), x)

    def in_rows(self, x: Array) -> Array:
        """The block applied to some rows of `x` at a time where its windows fill them: no row looks beyond its own."""
        window = self.attn.window_size
        return by_rows(self, x, multiple=window) if window and x.shape[1] % window == 0 else self(x)


class Hiera(nnx.Module):
    """Hierarchical vision transformer with windowed attention (arXiv 2306.00989; position table: 2311.05613)."""

    def __init__(self, config: HieraConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        """Raises `InputError` for a configuration whose blocks cannot be laid out (`check_config`)."""
        check_config(config)
        self.config = config
        init = nnx.initializers.truncated_normal(0.02)
        background, window = config.window_pos_embed_bkg_spatial_size, config.window_spec[0]
        self.patch_embed = PatchEmbed(config.embed_dim, dtype=dtype, rngs=rngs)
        # Stored in float32 whatever `dtype` is: the resized sum is formed once per call and rounded at the end.
        self.pos_embed = nnx.Param(init(rngs.params(), (1, *background, config.embed_dim), jnp.float32))
        self.pos_embed_window = nnx.Param(init(rngs.params(), (1, window, window, config.embed_dim), jnp.float32))
        self.blocks = nnx.List([])
        dim, heads, stage = config.embed_dim, config.num_heads, 0
        starts = stage_starts(config)
        for index in range(sum(config.stages)):
            # The first block of a stage still attends in the windows of the stage before: pooling shrinks them.
            window = 0 if index in config.global_att_blocks else config.window_spec[stage]
            dim_out = dim
            if index in starts[1:]:
                dim_out, heads, stage = 2 * dim, 2 * heads, stage + 1
            self.blocks.append(
                MultiScaleBlock(
                    dim,
                    dim_out,
                    heads,
                    mlp_ratio=config.mlp_ratio,
                    window_size=window,
                    q_pool=index in starts[1 : config.q_pool + 1],
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            dim = dim_out

    def position_embedding(self, height: int, width: int) -> Array:
        """Background table resized bicubically plus the window table tiled: `[1, height, width, C]` float32."""
        table, window = self.pos_embed[...], self.pos_embed_window[...]
        size, c = window.shape[1], window.shape[-1]
        table = jax.image.resize(table, (1, height, width, c), "bicubic-pytorch", antialias=False)
        table = table.reshape(1, height // size, size, width // size, size, c)
        return (table + window.reshape(1, 1, size, 1, size, c)).reshape(1, height, width, c)

    def forward_features(self, images: Array) -> dict[str, Array]:
        """Every intermediate of the trunk by name.

        Args:
          images: `[B, H, W, 3]`, ImageNet-normalised; H and W multiples of 32 (and of 4 * window_spec[0]).

        Returns:
          "patch_embed" `[B, H/4, W/4, C]` (position table added), "block0", "block1", ... and "stage0" ... "stage3",
          the outputs of each stage's last block, finest first.

        Raises:
          InputError: the image's shape does not fit.
        """
        multiple = PATCH_STRIDE * math.lcm(Q_STRIDE**self.config.q_pool, self.config.window_spec[0])
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % multiple or images.shape[2] % multiple:
            raise InputError(
                f"SAM 2 image encoder: expected images [B, H, W, 3] with H and W multiples of {multiple}, "
                f"found {list(images.shape)}; resize them first"
            )
        x = self.patch_embed(images)
        x = x + self.position_embedding(x.shape[1], x.shape[2]).astype(x.dtype)
        features = {"patch_embed": x}
        ends = [start - 1 for start in stage_starts(self.config)[1:]] + [len(self.blocks) - 1]
        for index, block in enumerate(self.blocks):
            x = block.in_rows(x)
            features[f"block{index}"] = x
            if index in ends:
                features[f"stage{ends.index(index)}"] = x
        return features

    def __call__(self, images: Array) -> list[Array]:
        """`[B, H, W, 3]` -> one map per stage, finest first (`forward_features` says more)."""
        features = self.forward_features(images)
        return [features[f"stage{index}"] for index in range(len(self.config.stages))]


def stage_starts(config: HieraConfig) -> list[int]:
    """Index of each stage's first block."""
    return [sum(config.stages[:index]) for index in range(len(config.stages))]


MAX_WINDOW = 64
"""Side of the largest window: four times that of the published models. Attention grows with its fourth power."""


def check_config(config: HieraConfig) -> None:
    """Raise `InputError` if the blocks of `config` cannot be laid out; Meta's code fails on these inside a forward."""
    where = "configuration.hiera"
    if not config.stages or min(config.stages) < 1 or len(config.stages) != len(config.window_spec):
        raise InputError(
            f"{where}: expected as many stages (each of one block or more) as windows, found stages "
            f"{list(config.stages)} and window_spec {list(config.window_spec)}"
        )
    if not 0 <= config.q_pool < len(config.stages):
        raise InputError(f"{where}.q_pool: expected 0 to {len(config.stages) - 1}, found {config.q_pool}")
    if config.num_heads < 1 or config.embed_dim % config.num_heads:
        raise InputError(f"{where}.embed_dim: {config.embed_dim} is not a multiple of num_heads {config.num_heads}")
    if not 1 <= min(config.window_spec) <= max(config.window_spec) <= MAX_WINDOW:
        raise InputError(
            f"{where}.window_spec: expected sizes from 1 to {MAX_WINDOW}, found {list(config.window_spec)}"
        )
    for stage, start in enumerate(stage_starts(config)[1 : config.q_pool + 1]):
        if start in config.global_att_blocks or config.window_spec[stage] % Q_STRIDE:
            raise InputError(
                f"{where}: block {start} pools its queries 2 x 2 inside windows of stage {stage}, so it cannot be in "
                f"global_att_blocks and window_spec[{stage}] must be even, found {config.window_spec[stage]}"
            )
