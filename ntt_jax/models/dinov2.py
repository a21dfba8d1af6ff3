"""DINOv2 vision transformer: image -> patch tokens. Mirrors `dinov2.models.vision_transformer`, channels-last.

Attribute names are Meta's, so the keys of a checkpoint lead to the parameters; as everywhere in Flax a `weight` is
called `kernel` (`[in, out]` or `[k, k, in, out]`), or `scale` in a norm.

The token stream between the blocks is float32 whatever `dtype` is: LayerScale makes the branches small beside it, and
a bfloat16 sum would round most of what they add away. Matrix products run in `dtype`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from ntt_jax.config import DinoV2Config, EncoderConfig
from ntt_jax.errors import InputError
from ntt_jax.model_config import MAX_SIDE
from ntt_jax.models.attention import attention
from ntt_jax.models.layers import Conv, LayerNorm, Linear, Mlp, ShapesOnly


class PatchEmbed(nnx.Module):
    """Cut the image into patches and project each one. Mirrors `dinov2.layers.patch_embed.PatchEmbed`."""

    def __init__(self, patch_size: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj = Conv(3, dim, patch_size, stride=patch_size, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array) -> Array:  # [B, H, W, 3] -> [B, h, w, C]
        return self.proj(images)


class Attention(nnx.Module):
    """Multi-head self-attention. Mirrors `dinov2.layers.attention.Attention`."""

    def __init__(self, dim: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: Array) -> Array:  # [B, N, C]
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])  # [B, N, heads, C / heads]
        return self.proj(out.reshape(b, n, c))


class SwiGLUFFN(nnx.Module):
    """Gated feed-forward layer of the giant. Mirrors `dinov2.layers.swiglu_ffn.SwiGLUFFNFused`."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.w12 = Linear(dim, 2 * hidden, dtype=dtype, rngs=rngs)
        self.w3 = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * value)


class LayerScale(nnx.Module):
    """One learnt factor per channel, float32. Mirrors `dinov2.layers.layer_scale.LayerScale`."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs
        self.gamma = nnx.Param(jnp.ones(dim, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return x.astype(jnp.float32) * self.gamma[...].reshape((1,) * (x.ndim - 1) + (-1,))


class Block(nnx.Module):
    """Pre-norm transformer block. Mirrors `dinov2.layers.block.Block`."""

    def __init__(self, config: DinoV2Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim, feed_forward = config.embed_dim, SwiGLUFFN if config.ffn_layer == "swiglu" else Mlp
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.attn = Attention(dim, config.num_heads, dtype=dtype, rngs=rngs)
        self.ls1 = LayerScale(dim, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.mlp = feed_forward(dim, config.ffn_hidden_dim, dtype=dtype, rngs=rngs)
        self.ls2 = LayerScale(dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:  # [B, N, C] float32
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoVisionTransformer(nnx.Module):
    """DINOv2 ViT, with or without register tokens. Mirrors `dinov2.models.vision_transformer.DinoVisionTransformer`.

    Stateless: use it as `jax.jit(f)(model, images)`; it works under vmap and grad too.

    A new model starts as Meta's does (`init_weights`), but for LayerScale: its factors start at 1. Meta's pre-training
    starts them at 1e-5, for the sake of ViT-g; a small model then spends its first thousand steps growing them.

    Args:
        config: sizes; `DINOV2_CONFIGS` holds the published ones.
        dtype: type of the kernels and of the matrix products, float32 or bfloat16. Norms, softmax, LayerScale, the
            learnt tokens and the position table, and the token stream stay float32.
        rngs: random streams for the initial weights (`params`).

    Raises:
        InputError: the configuration is not one of a vision transformer (sides or heads that do not divide).
    """

    def __init__(self, config: DinoV2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        _check_config(config)
        self.config = config
        dim, table_side = config.embed_dim, config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, dim, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, dim), 1e-6))
        if config.num_register_tokens:
            self.register_tokens = nnx.Param(normal(rngs.params(), (1, config.num_register_tokens, dim), 1e-6))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1, 1 + table_side**2, dim)))
        # Pre-training replaces hidden patches by this token; kept so that a checkpoint's tensor has its place.
        self.mask_token = nnx.Param(jnp.zeros((1, dim), jnp.float32))
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(dim, rngs=rngs)
        self._init_weights(rngs)

    def __repr__(self) -> str:
        config = self.config
        sizes = f"{config.depth} blocks of width {config.embed_dim}, patches of {config.patch_size} pixels"
        return f"DinoVisionTransformer({config.name}: {sizes})"

    def _init_weights(self, rngs: nnx.Rngs) -> None:
        if isinstance(rngs, ShapesOnly):
            return
        linears = [module for _, module in nnx.iter_modules(self) if isinstance(module, Linear)]
        for module, key in zip(linears, jax.random.split(rngs.params(), len(linears)), strict=True):
            module.kernel = nnx.Param(normal(key, module.kernel.shape).astype(module.kernel.dtype))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float32[Array, "B h w C"]:
        """Patch features after the final norm (`x_norm_patchtokens` in Meta's code, as a grid).

        Args:
            images: `[B, H, W, 3]`, RGB, normalised by ImageNet's mean and deviation; H and W multiples of 14.

        Returns:
            `[B, H / 14, W / 14, C]` float32. CLS and register tokens are left out.

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
            (after patch embedding and position table), "block0", "block1", ..., and "norm" (after the final norm).

        Raises:
            InputError: images of another shape or of integers.
        """
        check_images(images, self.config.patch_size, "DINOv2")
        x = self._prepare_tokens(images)
        outputs = {"tokens0": x}
        for i, block in enumerate(self.blocks):
            x = outputs[f"block{i}"] = block(x)
        outputs["norm"] = self.norm(x)
        return outputs

    def _prepare_tokens(self, images: Array) -> Array:
        patches = self.patch_embed(images).astype(jnp.float32)  # [B, h, w, C]
        b, h, w, c = patches.shape
        table = self.pos_embed[...]  # [1, 1 + N, C]
        patches = patches.reshape(b, h * w, c) + self._position_table(h, w)
        cls = self.cls_token[...] + table[:, :1]
        learnt = [cls, self.register_tokens[...]] if self.config.num_register_tokens else [cls]  # no position for these
        return jnp.concatenate([*(jnp.broadcast_to(t, (b, *t.shape[1:])) for t in learnt), patches], axis=1)

    def _position_table(self, h: int, w: int) -> Array:
        """Position embedding of the patches at an `h` x `w` grid, `[1, h * w, C]`.

        Meta's `interpolate_pos_encoding`: bicubic, over coordinates scaled by `(h + offset) / side` (the plain models)
        or `h / side` with antialiasing (those with registers; torch's antialiased cubic has a = -0.5, its plain one
        -0.75). The stored table is used as it is when it fits.
        """
        patch_table = self.pos_embed[:, 1:]
        side = self.config.image_size // self.config.patch_size
        if h == w == side:
            return patch_table
        antialias, dim = self.config.interpolate_antialias, patch_table.shape[-1]
        table = jax.image.scale_and_translate(
            patch_table.reshape(side, side, dim),
            (h, w, dim),
            (0, 1),
            (jnp.array([h, w], jnp.float32) + self.config.interpolate_offset) / side,
            jnp.zeros(2, jnp.float32),
            "cubic" if antialias else "cubic-pytorch",
            antialias=antialias,
            precision=jax.lax.Precision.HIGHEST,
        )
        return table.reshape(1, h * w, dim)


def patch_grid(tokens: Array, images: Array, config: EncoderConfig) -> Array:
    """The patches of `tokens` `[B, 1 + R + h * w, C]` as `[B, h, w, C]`, without CLS and registers."""
    (b, height, width, _), p = images.shape, config.patch_size
    return tokens[:, 1 + config.num_register_tokens :].reshape(b, height // p, width // p, -1)


def check_images(images: Array, patch_size: int, name: str) -> None:
    """Raise `InputError` unless these are normalised images `[B, H, W, 3]` of whole patches. name: the encoder's."""
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise InputError(f"{name} images: expected shape [B, H, W, 3], found {list(images.shape)}")
    if images.shape[1] % patch_size or images.shape[2] % patch_size:
        raise InputError(
            f"{name} images: height and width must be multiples of {patch_size}, found {images.shape[1]} x "
            f"{images.shape[2]}; resize or pad them first"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"{name} images: expected normalised floating-point values, found {images.dtype}; "
            "see ntt_jax.preprocess.encoder_input"
        )


def normal(key: Array, shape: tuple[int, ...], deviation: float = 0.02) -> Array:
    """Meta's `trunc_normal_(std=0.02)` cuts at +-2, a hundred deviations: a plain normal distribution."""
    return deviation * jax.random.normal(key, shape, jnp.float32)


def _check_config(config: DinoV2Config) -> None:
    if config.ffn_layer not in ("mlp", "swiglu"):
        raise InputError(f'{config.name}: ffn_layer must be "mlp" or "swiglu", found {config.ffn_layer!r}')
    sizes = (config.embed_dim, config.depth, config.num_heads, config.patch_size, config.image_size)
    if min(sizes) < 1 or config.ffn_hidden_dim < 1:
        raise InputError(f"{config.name}: embed_dim, depth, num_heads, patch_size, image_size and MLP must be positive")
    if config.embed_dim % config.num_heads:
        raise InputError(f"{config.name}: embed_dim {config.embed_dim} does not divide by num_heads {config.num_heads}")
    if config.image_size % config.patch_size:
        raise InputError(
            f"{config.name}: image_size {config.image_size} does not divide by patch_size {config.patch_size}"
        )
    check_input_size(config.name, config.input_size, config.patch_size)


def check_input_size(name: str, input_size: int, patch_size: int) -> None:
    """Raise `InputError` unless an encoder's input is of whole patches, one or more, and of at most `MAX_SIDE`."""
    if not patch_size <= input_size <= MAX_SIDE or input_size % patch_size:
        raise InputError(
            f"{name}: expected input_size a multiple of patch_size {patch_size} and at most {MAX_SIDE}, found "
            f"{input_size}"
        )
