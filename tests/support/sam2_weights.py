"""SAM 2 filled with the recipe's weights, read by their checkpoint keys."""

import functools
import re

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from recipe import recipe

from ntt_jax.config import HieraConfig, Sam2Config
from ntt_jax.models.sam2.sam2_base import Sam2

# Every branch of the code at a size that compiles in seconds: padding (windows of 7 on 8 x 8), global blocks, pooling.
SMALL = Sam2Config(
    name="small",
    hiera=HieraConfig(24, 1, (1, 2, 4, 1), (4, 6), (8, 4, 14, 7), (4, 4)),
    image_size=256,
    d_model=96,
)


def skeleton(config: Sam2Config, dtype: DTypeLike = jnp.float32) -> Sam2:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: Sam2(config, dtype=dtype, rngs=nnx.Rngs(0)))


def to_torch(path: tuple, value: np.ndarray) -> np.ndarray:
    """One of our tensors in torch's layout."""
    if path[-1] in ("pos_embed", "pos_embed_window"):
        return value.transpose(0, 3, 1, 2)
    if path[-1] != "kernel":
        return value
    if value.ndim == 2:
        return value.T
    return value.transpose(2, 3, 0, 1) if "output_upscaling" in path else value.transpose(3, 2, 0, 1)


def from_torch(path: tuple, value: np.ndarray) -> np.ndarray:
    """One of torch's tensors in our layout."""
    if path[-1] in ("pos_embed", "pos_embed_window"):
        return value.transpose(0, 2, 3, 1)
    if path[-1] != "kernel":
        return value
    if value.ndim == 2:
        return value.T
    return value.transpose(2, 3, 0, 1) if "output_upscaling" in path else value.transpose(2, 3, 1, 0)


def checkpoint_key(path: tuple) -> str:
    """Meta's name of the parameter at a path of ours."""
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", ".".join(map(str, path)))


@functools.lru_cache
def checkpoint_shapes(config: Sam2Config) -> dict[str, tuple[int, ...]]:
    """Meta's names and torch's shapes of everything on the image path."""
    flat = nnx.to_flat_state(nnx.state(skeleton(config)))
    return {checkpoint_key(path): to_torch(path, np.broadcast_to(0.0, v.shape)).shape for path, v in flat}


@functools.lru_cache(maxsize=2)
def recipe_model(config: Sam2Config, seed: int = 0, dtype: DTypeLike = jnp.float32) -> Sam2:
    """A model of this size with the recipe's tensors."""
    model, shapes, filled = skeleton(config, dtype), checkpoint_shapes(config), []
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        key = checkpoint_key(path)
        value = from_torch(path, recipe(key, shapes[key], seed))
        filled.append((path, variable.replace(jnp.asarray(value, variable.dtype))))
    nnx.update(model, nnx.from_flat_state(filled))
    return model
