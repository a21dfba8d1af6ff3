"""Reductions over arrays that end in image tokens, whole images or blocks of them, as each platform does them best.

The image tokens can be worked on in blocks, so that a core of a CPU keeps what belongs to a block of a few points in
its second-level cache; arrays over the image are `[blocks, ..., n]` with blocks x n = N. A softmax over the whole image
runs along the blocks (`attend`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def over_blocks(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, blocks: Any) -> tuple[Any, Any]:
    """`lax.scan` over the blocks of an image; a single one needs no loop."""
    if len(jax.tree.leaves(blocks)[0]) > 1:
        return jax.lax.scan(step, carry, blocks)
    carry, found = step(carry, jax.tree.map(lambda x: x[0], blocks))
    return carry, jax.tree.map(lambda x: x[None], found)


class Attended(NamedTuple):
    """A softmax over the image in the making: sums over the blocks so far."""

    peak: Array  # [..., 1], the largest logit
    sums: tuple[Array, ...]  # [..., m], weighted by exp(logit - peak)


def unattended(shape: Sequence[int], *widths: int) -> Attended:
    """Before the first block: sums `[*shape, width]`."""
    return Attended(
        jnp.full((*shape, 1), -jnp.inf, jnp.float32), tuple(jnp.zeros((*shape, width), jnp.float32) for width in widths)
    )


def attend(attended: Attended, logits: Array, weigh: Callable[[Array], Sequence[Array]]) -> Attended:
    """Take one block into a softmax over the image. weigh: exp(logits - peak) `[..., n]` -> what the sums gain."""
    peak = jnp.maximum(attended.peak, jnp.max(logits, axis=-1, keepdims=True))
    before = jnp.exp(attended.peak - peak)
    added = weigh(jnp.exp(logits - peak))
    return Attended(peak, tuple(total * before + part for total, part in zip(attended.sums, added, strict=True)))


def total(x: Array) -> Array:
    """[..., n] -> [..., 1]."""
    return jnp.sum(x, axis=-1, keepdims=True)


def sum_along(x: Array, axis: int) -> Array:
    """Sum over a short axis that is not the last one, keeping it with length 1."""
    return jax.lax.platform_dependent(
        x, cpu=partial(_sum_of_halves, axis=axis), default=partial(jnp.sum, axis=axis, keepdims=True)
    )


def _sum_of_halves(x: Array, *, axis: int) -> Array:
    """`sum_along` on a CPU: halves are added again and again.

    XLA turns that into one loop along the last axis, together with the products that are summed here; its own sum of
    them takes almost three times as long. On GPUs it is the halves that are slow, to compile as to run.
    """
    odd = None  # what the halves have left over
    while (length := x.shape[axis]) > 1:
        half = length // 2
        low, high, rest = (
            jax.lax.slice_in_dim(x, a, b, axis=axis) for a, b in ((0, half), (half, 2 * half), (2 * half, length))
        )
        x = low + high
        if length % 2:
            odd = rest if odd is None else odd + rest
    return x if odd is None else x + odd
