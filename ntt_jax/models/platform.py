"""What each kind of device does best, and which kind a program is traced for.

XLA's CPU backend is fastest with little work at a time, which stays in the cache; accelerators with all of it at once.
Where that is a matter of sizes, the sizes are here and the tracing code asks `on_cpu`. Where both ways are traced
(`lax.platform_dependent`), the choice falls when the program is compiled.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_traced_for: ContextVar[str | None] = ContextVar("traced_for", default=None)


def backend() -> str:
    """ "cpu", "gpu" or "tpu": what the program that is being traced will run on, JAX's default backend if unsaid."""
    return _traced_for.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether the program that is being traced will run on a CPU."""
    return backend() == "cpu"


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Inside, programs are traced for this backend ("cpu", "gpu", "tpu"), whatever this machine has (`ntt_jax.export`).

    What has been traced already is not traced again: give `jax.jit` a new function.
    """
    token = _traced_for.set(name)
    try:
        yield
    finally:
        _traced_for.reset(token)


# -- attention ------------------------------------------------------------------------------------------------------

CPU_LOGITS = 2**21
"""Logits of an attention held at once on a CPU: 8 MiB in float32. All 4096 x 4096 of a head (64 MiB) take 1.4 times as
long."""


def softmax_parts(logits: Array) -> tuple[Array, Array]:
    """exp(logits - their largest) along the last axis, and its sum `[..., 1]`: a softmax before the division.

    A CPU divides the product with the values instead, which has fewer numbers than the weights.
    """
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


# -- the image encoder ----------------------------------------------------------------------------------------------

CPU_CHUNK = 2**19
"""Numbers of a map worked on at once on a CPU: 2 MiB."""


# -- the decoder for a grid of points -------------------------------------------------------------------------------


class GridSizes(NamedTuple):
    """Points worked on together in the two phases of `decode_grid`, and image tokens worked on together (None: all)."""

    chunk: int
    mask_chunk: int
    block: int | None = None


CPU_GRID = GridSizes(4, 1)
ACCELERATOR_GRID = GridSizes(128, 64)
ONE_CORE_GRID = GridSizes(8, 2, 128)
"""Where every core of a CPU decodes points of its own, in its own second-level cache."""


# -- masks ----------------------------------------------------------------------------------------------------------

CPU_MASKS, ACCELERATOR_MASKS = 4, 256
"""Masks reduced together to weights and boxes: a few stay in a CPU's cache between the reductions and the product."""


class Tiling(NamedTuple):
    """How the full-size sweep cuts its work: pixels of a tile, masks resized together, masks multiplied together."""

    rows: int
    columns: int
    chunk: int
    block: int


# Cache-sized pieces where loops are cheap; few large ones where every iteration costs a launch.
CPU_TILING = Tiling(rows=512, columns=128, chunk=8, block=32)
ACCELERATOR_TILING = Tiling(rows=512, columns=256, chunk=128, block=256)
