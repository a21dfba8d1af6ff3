"""Points beside the grid, where the image's patches look most like a prototype: for objects that the grid misses."""

import jax.numpy as jnp
from jax import Array, lax

from ntt_jax.memory.aggregate import unit_vectors

_CELLS = 8  # cells along each side of the image; each gives one point at most


def similar_points(patches: Array, prototypes: Array, count: int, image_size: int) -> tuple[Array, Array]:
    """The centres of the patches that are most like a prototype, the most similar first.

    A patch counts where its largest cosine with a prototype is above 0 and that of none of its eight neighbours is
    larger; of those in one cell of an 8 x 8 grid the most similar one.

    Args:
      patches: `[h, w, C]`, not normalised. prototypes: `[K, C]`. count: of points, 1 to 64.
      image_size: side in pixels of SAM 2's square input.

    Returns:
      points `[count, 2]` float32 pixels (x, y) of that input, the prompt encoder's half pixel taken off;
      there `[count]` bool, False where there are fewer.
    """
    h, w, _ = patches.shape
    objects, _ = unit_vectors(patches.astype(jnp.float32).reshape(h * w, -1))
    classes, _ = unit_vectors(prototypes.astype(jnp.float32))
    similarity = jnp.max(jnp.einsum("pc,kc->pk", objects, classes, precision="highest"), axis=1).reshape(h, w)
    around = lax.reduce_window(similarity, -jnp.inf, lax.max, (3, 3), (1, 1), "SAME")
    peak = jnp.where((similarity > 0) & (similarity >= around), similarity, 0.0).reshape(-1)
    row, column = jnp.divmod(jnp.arange(h * w), w)
    cell = row * _CELLS // h * _CELLS + column * _CELLS // w
    by_cell = jnp.where(cell[None, :] == jnp.arange(_CELLS**2)[:, None], peak[None, :], 0.0)  # [64, h w]
    value, place = lax.top_k(jnp.max(by_cell, axis=1), count)
    patch = jnp.argmax(by_cell, axis=1)[place]
    x, y = ((patch % w).astype(jnp.float32) + 0.5) / w, ((patch // w).astype(jnp.float32) + 0.5) / h
    return jnp.stack([x, y], axis=1).astype(jnp.float32) * image_size - 0.5, value > 0
