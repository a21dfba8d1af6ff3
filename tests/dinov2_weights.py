"""DINOv2 filled with the recipe's weights, read by their checkpoint keys."""

import re

import jax.numpy as jnp
from flax import nnx
from recipe import recipe

from ntt_jax.config import DinoV2Config
from ntt_jax.dinov2 import DinoVisionTransformer


def skeleton(config: DinoV2Config) -> DinoVisionTransformer:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: DinoVisionTransformer(config, rngs=nnx.Rngs(0)))


def checkpoint_shape(path: tuple, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Key and torch shape of the checkpoint tensor that belongs to one of our parameters."""
    key = re.sub(r"\.(kernel|scale)$", ".weight", ".".join(map(str, path)))
    if path[-1] == "kernel":
        shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])
    return key, shape


def recipe_model(config: DinoV2Config, seed: int = 0) -> DinoVisionTransformer:
    """A float32 model of this size with the recipe's tensors."""
    model, filled = skeleton(config), []
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = recipe(*checkpoint_shape(path, param.shape), seed)
        if path[-1] == "kernel":
            value = value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
        filled.append((path, param.replace(jnp.asarray(value))))
    nnx.update(model, nnx.from_flat_state(filled))
    return model
