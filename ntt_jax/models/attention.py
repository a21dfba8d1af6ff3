"""Scaled dot-product attention as each platform computes it best."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ntt_jax.models.platform import CPU_LOGITS, backend, softmax_parts


def attention(
    q: Float[Array, "B N H D"], k: Float[Array, "B M H D"], v: Float[Array, "B M H D"]
) -> Float[Array, "B N H D"]:
    """Softmax attention. q `[B, N, H, D]`, k and v `[B, M, H, D]` -> `[B, N, H, D]`, scale 1 / sqrt(D).

    Logits and softmax are float32. One result, the fastest known way to it on each platform.
    """
    return jax.lax.platform_dependent(q, k, v, cpu=_attention_cpu, default=_attention_accelerator)


def _attention_einsum(q: Array, k: Array, v: Array) -> Array:
    scale = 1.0 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _attention_cpu(q: Array, k: Array, v: Array) -> Array:
    """XLA's CPU backend is three times faster one head at a time and few enough queries to stay in the cache."""
    if q.shape[1] * k.shape[1] < 512 * 512:
        return _attention_einsum(q, k, v)
    (b, n, h, d), m = q.shape, k.shape[1]
    chunk = n
    while chunk % 2 == 0 and chunk * m > CPU_LOGITS:
        chunk //= 2
    scale = 1.0 / math.sqrt(d)

    def heads_first(x: Array, length: int) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(b * h, length, d)

    def one_head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv

        def some_queries(q: Array) -> Array:
            logits = jnp.einsum("nd,md->nm", q * scale, k, preferred_element_type=jnp.float32)
            weights, total = softmax_parts(logits)
            return (jnp.dot(weights.astype(v.dtype), v) / total).astype(v.dtype)

        return some_queries(q) if chunk == n else jax.lax.map(some_queries, q.reshape(-1, chunk, d)).reshape(n, d)

    out = jax.lax.map(one_head, (heads_first(q, n), heads_first(k, m), heads_first(v, m)))
    return out.reshape(b, h, n, d).transpose(0, 2, 1, 3)


def _attention_accelerator(q: Array, k: Array, v: Array) -> Array:
    dtype = fused_attention_dtype(q, k)
    if dtype is None:
        with jax.numpy_dtype_promotion("standard"):  # inside, JAX counts on it for bfloat16
            return jax.nn.dot_product_attention(q, k, v)
    return fused_attention(q, k, v, dtype)


def fused_attention_dtype(q: Array, k: Array) -> Any:
    """The type in which cuDNN's fused attention loses no more than the products around it; None without one.

    q `[B, N, H, D]`, k `[B, M, H, D]`. bfloat16 stays so. float32 whose products run in TensorFloat-32 may go through
    float16, which rounds operands to the same 10 bits (not to the same range: numbers above 65504 would overflow).
    Exact float32 has no fused kernel, nor has a GPU older than Ampere or of another maker.
    """
    if backend() != "gpu" or q.shape[1] * k.shape[1] < 16 * 64:
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
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(*rounded, implementation="cudnn").astype(v.dtype)
