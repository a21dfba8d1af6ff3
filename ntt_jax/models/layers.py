"""Layers that both models share. Arrays are channels-last.

Every module takes `dtype`, the type its matrix products run in and its kernels are stored in. Norms keep float32
parameters and statistics whatever `dtype` is, and so do softmax and attention logits.
"""

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
    y = x.astype(max(x.dtype, jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize))
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

    It is one matrix product of the patches, whose gradient XLA's CPU backend computes twenty times faster than a
    convolution's: the map is cut into cells of stride x stride pixels, and a patch is n x n of them, the kernel filled
    up with zeros. Where patches do not overlap n is 1.
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
        self.geometry = (kernel, stride, padding)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:  # [B, H, W, in] -> [B, H', W', out]
        (k, s, padding), (b, height, width, c) = self.geometry, inputs.shape
        n = -(-k // s)  # cells along a side of a patch
        h, w = ((size + 2 * padding - k) // s + 1 for size in (height, width))
        x = inputs.astype(self.kernel[...].dtype)
        if padding or n > 1:
            right = [(h + n - 1) * s - padding - height, (w + n - 1) * s - padding - width]
            x = jax.lax.pad(x, x.dtype.type(0), [(0, 0, 0), (padding, right[0], 0), (padding, right[1], 0), (0, 0, 0)])
        x = x[:, : (h + n - 1) * s, : (w + n - 1) * s].reshape(b, h + n - 1, s, w + n - 1, s, c)
        cells = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h + n - 1, w + n - 1, -1)
        patches = [cells[:, i : i + h, j : j + w] for i in range(n) for j in range(n)]
        kernel = jnp.pad(self.kernel[...], ((0, n * s - k), (0, n * s - k), (0, 0), (0, 0)))
        kernel = kernel.reshape(n, s, n, s, c, -1).transpose(0, 2, 1, 3, 4, 5).reshape(n * n * s * s * c, -1)
        y = (jnp.concatenate(patches, axis=-1) if n > 1 else cells) @ kernel
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, 1, -1)


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
