"""The plain multi-layer perceptron of SAM 2. Mirrors `sam2.modeling.sam2_utils.MLP`."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ntt_jax.models.layers import Linear


class MLP(nnx.Module):
    """`num_layers` linear maps with an activation between them: `[..., din] -> [..., dout]`."""

    def __init__(
        self,
        din: int,
        hidden: int,
        dout: int,
        num_layers: int,
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = [din] + [hidden] * (num_layers - 1) + [dout]
        self.layers = nnx.List([Linear(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)
