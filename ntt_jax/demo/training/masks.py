"""Masks of made objects on the grids that the models work on."""

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.demo.training.data import GRID, MAX_OBJECTS


def soft_targets(instances: Array) -> Array:
    """Part of every 4 x 4 block that each object covers: `[B, S, S]` -> `[B, S/4, S/4, M + 1]`, 0 is background."""
    b, side, _ = instances.shape
    blocks = instances.reshape(b, side // 4, 4, side // 4, 4)
    one_hot = blocks[..., None] == jnp.arange(MAX_OBJECTS + 1, dtype=instances.dtype).reshape(1, 1, 1, 1, 1, -1)
    return jnp.mean(one_hot, axis=(2, 4), dtype=jnp.float32)


def outside_box(target: Array) -> Array:
    """1 where a cell lies beyond the box of all cells that `target` `[..., h, w]` covers and the cells next to it."""

    def between(hit: Array) -> Array:  # from just before the first hit to just after the last
        n = hit.shape[-1]
        place = jnp.arange(n).reshape((1,) * (hit.ndim - 1) + (n,))
        first = jnp.argmax(hit, axis=-1, keepdims=True) - 1
        last = n - jnp.argmax(hit[..., ::-1], axis=-1, keepdims=True)
        return (place >= first) & (place <= last) & jnp.any(hit, axis=-1, keepdims=True)

    rows, columns = (between(jnp.any(target > 0, axis=axis)) for axis in (-1, -2))
    return 1.0 - rows[..., :, None] * columns[..., None, :].astype(jnp.float32)


def true_ious(logits: Array, target: Array) -> Array:
    """IoU of `logits > 0` `[..., 4, h, w]` with `target > 0.5` `[..., h, w]` -> `[..., 4]`."""
    mask, wanted = logits > 0, (target > 0.5)[..., None, :, :]
    both = jnp.sum(mask & wanted, axis=(-2, -1))
    return both / jnp.maximum(1, jnp.sum(mask | wanted, axis=(-2, -1)))


def patch_cover(soft: Array) -> Array:
    """Weight of each DINOv2 patch in the mean over each object: `soft_targets` -> `[B, 24, 24, M + 1]`.

    METHOD stage 3 step 6 averages bilinearly enlarged features over a mask; this is the same average, written on the
    patches. The weights of an object add up to its area in patches.
    """
    side = soft.shape[1]
    enlarge = jax.image.resize(jnp.eye(GRID), (side, GRID), "linear", antialias=False) * (GRID / side)
    return jnp.einsum("pi,bpqm,qj->bijm", enlarge, soft, enlarge)
