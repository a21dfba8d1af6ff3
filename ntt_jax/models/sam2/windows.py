"""Attention inside the windows of a map, and work on a map by rows."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.models import platform
from ntt_jax.models.attention import fused_attention, fused_attention_dtype

Q_STRIDE = 2


def by_rows(function: Callable[..., Array], *maps: Array, multiple: int = 1) -> Array:
    """`function(*maps)` for one that treats groups of `multiple` rows of its maps `[B, H, W, C]` each by itself.

    On a CPU it gets few enough rows at a time for what it makes of them to stay in the cache (BENCHMARKS.md says what
    that gives). All maps have the same number of rows, a multiple of `multiple`.
    """
    b, h, w, c = maps[0].shape
    # Not by `platform_dependent`, which would trace every block twice.
    if not platform.on_cpu() or b * h * w * c <= platform.CPU_CHUNK:
        return function(*maps)
    fitting = (
        r for r in range(multiple, h + 1, multiple) if h % r == 0 and (r == multiple or r * w * c <= platform.CPU_CHUNK)
    )
    rows = max(fitting)
    chunks = tuple(x.reshape(b * h // rows, 1, rows, *x.shape[2:]) for x in maps)
    out = jax.lax.map(lambda chunk: function(*chunk), chunks)
    return out.reshape(b, -1, *out.shape[3:])


def max_pool(x: Array) -> Array:
    """2 x 2 maximum, stride 2: `[B, H, W, C] -> [B, H/2, W/2, C]`, H and W even."""
    b, h, w, c = x.shape
    return jnp.max(x.reshape(b, h // Q_STRIDE, Q_STRIDE, w // Q_STRIDE, Q_STRIDE, c), axis=(2, 4))


def window_attention(qkv: Array, window: int, num_heads: int, *, q_pool: bool) -> Array:
    """Attention inside each window, queries max-pooled 2 x 2 if `q_pool`.

    qkv: `[B, H, W, 3 * C]`, H and W multiples of `window`. Returns `[B, H/s, W/s, C]`, s = 2 if `q_pool` else 1.
    Softmax in float32. On a CPU one row of windows is done at a time, which keeps it in cache: 2 to 3 times faster.
    """
    b, h, w, c = qkv.shape
    rows = qkv.reshape(b * h // window, window, w, c)
    attend = partial(_attend_rows, num_heads=num_heads, q_pool=q_pool)
    out = jax.lax.platform_dependent(
        rows,
        cpu=lambda x: jax.lax.map(lambda row: attend(row[None])[0], x),
        default=partial(_attend_rows_fused, num_heads=num_heads, q_pool=q_pool),
    )
    stride = Q_STRIDE if q_pool else 1
    return out.reshape(b, h // stride, w // stride, -1)


def _attend_rows(qkv: Array, *, num_heads: int, q_pool: bool) -> Array:
    """Rows of windows `[R, window, W, 3 * C]` -> `[R, window/s, W/s, C]`."""
    r, window, width, _ = qkv.shape
    count = width // window
    x = qkv.reshape(r, window, count, window, 3, num_heads, -1)
    q, k, v = x.transpose(4, 0, 2, 5, 1, 3, 6)  # [R, count, heads, window, window, d] each
    side = window
    if q_pool:
        side = window // Q_STRIDE
        q = jnp.max(q.reshape(r, count, num_heads, side, Q_STRIDE, side, Q_STRIDE, -1), axis=(4, 6))
    q, k, v = (y.reshape(r, count, num_heads, -1, y.shape[-1]) for y in (q, k, v))
    scale = 1.0 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("rchnd,rchmd->rchnm", q * scale, k, preferred_element_type=jnp.float32)
    weights, total = platform.softmax_parts(logits)
    out = jnp.einsum("rchnm,rchmd->rchnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    out = out.astype(v.dtype).reshape(r, count, num_heads, side, side, -1)
    return out.transpose(0, 3, 1, 4, 2, 5).reshape(r, side, count * side, -1)


def _attend_rows_fused(qkv: Array, *, num_heads: int, q_pool: bool) -> Array:
    """`_attend_rows` in cuDNN's fused kernel where there is one that is exact enough: windows are its batch."""
    r, window, width, _ = qkv.shape
    count = width // window
    x = qkv.reshape(r, window, count, window, 3, num_heads, -1).transpose(4, 0, 2, 1, 3, 5, 6)
    q, k, v = x.reshape(3, r * count, window, window, num_heads, x.shape[-1])
    side = window
    if q_pool:
        side = window // Q_STRIDE
        q = jnp.max(q.reshape(-1, side, Q_STRIDE, side, Q_STRIDE, *q.shape[3:]), axis=(2, 4))
    q, k, v = (y.reshape(r * count, -1, *y.shape[3:]) for y in (q, k, v))  # [windows, tokens, heads, d]
    dtype = fused_attention_dtype(q, k)
    if dtype is None:
        return _attend_rows(qkv, num_heads=num_heads, q_pool=q_pool)
    out = fused_attention(q, k, v, dtype).reshape(r, count, side, side, -1)
    return out.transpose(0, 2, 1, 3, 4).reshape(r, side, count * side, -1)
