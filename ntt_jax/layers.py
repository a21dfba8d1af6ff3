"""Layers that both models share. Arrays are channels-last.

Every module takes `dtype`, the type its matrix products run in and its kernels are stored in. Norms keep float32
parameters and statistics whatever `dtype` is, and so do softmax and attention logits.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, as `torch.nn.GELU()`; the tanh approximation is off by up to 5e-4.

    At least float32 inside. Written with erf: `jax.nn.gelu` has erfc, three times slower on CPUs. The error against
    float64 is at most 2.1e-7 max(1, |x|) (torch's own: 3.6e-7).
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


class ShapesOnly:
    """In place of `nnx.Rngs` inside `nnx.eval_shape`, where no value is made.

    The kernels of `Linear` and `Conv` are zeros then: to trace random numbers, or only the counting of their streams,
    takes longer than all else.
    """

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> Array:
        return self._key


def _kernel_initializer(rngs: nnx.Rngs | ShapesOnly) -> nnx.Initializer:
    """Flax's own for kernels `[..., in, out]`, or zeros where only shapes are wanted."""
    return nnx.initializers.zeros if isinstance(rngs, ShapesOnly) else nnx.initializers.lecun_normal()


class LayerNorm(nnx.Module):
    """Layer norm over the last axis in two passes (mean, then centred variance), like torch's.

    Also Meta's `LayerNorm2d`, which normalises over channels: channels are last here.
    Statistics and parameters are float32; the result has the dtype of the input.
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(dim, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (y * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(x.dtype)


class Linear(nnx.Linear):
    """`nnx.Linear` whose kernel `[in, out]` is stored in the type it computes in."""

    def __init__(self, din: int, dout: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        init = _kernel_initializer(rngs)
        super().__init__(din, dout, use_bias=bias, kernel_init=init, dtype=dtype, param_dtype=dtype, rngs=rngs)


class Conv(nnx.Conv):
    """`nnx.Conv` with a square `[k, k, in, out]` kernel and torch's symmetric padding.

    Where patches do not overlap (stride = kernel, no padding: 1 x 1, patch embeddings) it is one matrix product, whose
    gradient XLA's CPU backend computes twenty times faster than a convolution's.
    """

    def __init__(
        self,
        din: int,
        dout: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            din,
            dout,
            (kernel, kernel),
            strides=stride,
            padding=((padding, padding), (padding, padding)),
            kernel_init=_kernel_initializer(rngs),
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.patch = kernel if stride == kernel and padding == 0 else None

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:  # [B, H, W, in] -> [B, H', W', out]
        if self.patch is None:
            return super().__call__(inputs, out_sharding)
        x, k = inputs, self.patch
        b, height, width, c = x.shape
        h, w = height // k, width // k
        x = x[:, : h * k, : w * k].reshape(b, h, k, w, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        kernel, bias = self.kernel[...], self.bias
        y = x.astype(kernel.dtype) @ kernel.reshape(k * k * c, -1)
        return y if bias is None else y + bias[...].reshape(1, 1, 1, -1)


class ConvTranspose2x2(nnx.Module):
    """Transposed convolution with kernel 2 and stride 2, where no two taps overlap.

    `kernel` is `[2, 2, in, out]`: `out[2i + a, 2j + b] = x[i, j] @ kernel[a, b] + bias`, torch's
    `ConvTranspose2d.weight[in, out, a, b]` permuted and, since this is written as a product, not flipped.
    """

    def __init__(self, din: int, dout: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, din, dout), dtype))
        self.bias = nnx.Param(jnp.zeros(dout, dtype))

    def __call__(self, x: Array) -> Array:  # [B, H, W, in] -> [B, 2H, 2W, out]
        b, h, w, _ = x.shape
        kernel, bias = self.kernel[...], self.bias[...]
        y = jnp.einsum("bhwc,ijcd->bhiwjd", x, kernel)
        return y.reshape(b, 2 * h, 2 * w, -1) + bias.reshape(1, 1, 1, -1)


class Mlp(nnx.Module):
    """Linear, exact GELU, linear. Mirrors `dinov2.layers.mlp.Mlp`."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(gelu(self.fc1(x)))


def attention(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention. q `[B, N, H, D]`, k and v `[B, M, H, D]` -> `[B, N, H, D]`, scale 1 / sqrt(D).

    Logits and softmax are float32. One result, the fastest known way to it on each platform.
    """
    return jax.lax.platform_dependent(q, k, v, cpu=_attention_cpu, default=_attention_accelerator)


def _attention_einsum(q: Array, k: Array, v: Array) -> Array:
    scale = 1.0 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


# Logits held at once on a CPU: 8 MiB in float32. All 4096 x 4096 of a head (64 MiB) take 1.4 times as long.
_CPU_LOGITS = 2**21


def _attention_cpu(q: Array, k: Array, v: Array) -> Array:
    """XLA's CPU backend is three times faster one head at a time and few enough queries to stay in the cache."""
    if q.shape[1] * k.shape[1] < 512 * 512:
        return _attention_einsum(q, k, v)
    (b, n, h, d), m = q.shape, k.shape[1]
    chunk = n
    while chunk % 2 == 0 and chunk * m > _CPU_LOGITS:
        chunk //= 2
    scale = 1.0 / math.sqrt(d)

    def heads_first(x: Array, length: int) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(b * h, length, d)

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv

        def some_queries(q: Array) -> Array:
            logits = jnp.einsum("nd,md->nm", q * scale, k, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
            total = jnp.sum(weights, axis=-1, keepdims=True)
            return (jnp.dot(weights.astype(v.dtype), v) / total).astype(v.dtype)

        return some_queries(q) if chunk == n else jax.lax.map(some_queries, q.reshape(-1, chunk, d)).reshape(n, d)

    out = jax.lax.map(one_head, (heads_first(q, n), heads_first(k, m), heads_first(v, m)))
    return out.reshape(b, h, n, d).transpose(0, 2, 1, 3)


def _attention_accelerator(q: Array, k: Array, v: Array) -> Array:
    dtype = fused_attention_dtype(q, k)
    if dtype is None:
        return jax.nn.dot_product_attention(q, k, v)
    return fused_attention(q, k, v, dtype)


def fused_attention_dtype(q: Array, k: Array) -> Any:
    """The type in which cuDNN's fused attention loses no more than the products around it; None without one.

    q `[B, N, H, D]`, k `[B, M, H, D]`. bfloat16 stays so. float32 whose products run in TensorFloat-32 may go through
    float16, which rounds operands to the same 10 bits (not to the same range: numbers above 65504 would overflow).
    Exact float32 has no fused kernel, nor has a GPU older than Ampere or of another maker.
    """
    if jax.default_backend() != "gpu" or q.shape[1] * k.shape[1] < 16 * 64:
        return None
    if q.shape[-1] % 8 or q.shape[-1] > 128 or not _has_fused_attention():
        return None
    if q.dtype == jnp.float32:
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        return jnp.float16 if precision == "tensorfloat32" else None
    return q.dtype if q.dtype in (jnp.bfloat16, jnp.float16) else None


@functools.cache
def _has_fused_attention() -> bool:
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version.lower():
        return False
    return tuple(map(int, device.compute_capability.split("."))) >= (8, 0)


def fused_attention(q: Array, k: Array, v: Array, dtype: DTypeLike) -> Array:
    """`attention` in one cuDNN kernel that never writes its logits, on operands of `dtype`; the result has v's type."""
    rounded = (x.astype(dtype) for x in (q, k, v))
    return jax.nn.dot_product_attention(*rounded, implementation="cudnn").astype(v.dtype)
