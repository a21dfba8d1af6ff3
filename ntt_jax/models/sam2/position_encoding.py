"""Positions as random Fourier features (`sam2/modeling/position_encoding.py`)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


class Buffer(nnx.Variable):
    """Part of the model's state and of its checkpoint, but never trained (torch's `register_buffer`)."""


def embedding(count: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Embed:
    """Learned vectors, drawn from N(0, 1) like `torch.nn.Embedding`: the scale of the position encoding they join."""
    return nnx.Embed(count, dim, dtype=dtype, param_dtype=dtype, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)


class PositionEmbeddingRandom(nnx.Module):
    """Sines and cosines of random projections of a position. Always float32; no gradient reaches the projection."""

    def __init__(self, num_pos_feats: int, *, rngs: nnx.Rngs):
        self.positional_encoding_gaussian_matrix = Buffer(
            jax.random.normal(rngs.params(), (2, num_pos_feats), jnp.float32)
        )

    def __call__(self, positions: Array) -> Array:
        """Positions in [0, 1], `[..., 2]` as (x, y) -> `[..., 2 * num_pos_feats]`."""
        matrix = jax.lax.stop_gradient(self.positional_encoding_gaussian_matrix[...])
        matrix = matrix.reshape((2,) + (1,) * (positions.ndim - 1) + (-1,))
        centred = 2.0 * positions - 1.0
        # Not a matrix product: with two terms there is nothing to gain, and TF32 would ruin the phases.
        phases = 2.0 * math.pi * (centred[..., :1] * matrix[0] + centred[..., 1:] * matrix[1])
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
