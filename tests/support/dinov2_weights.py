"""DINOv2 filled with the recipe's weights, read by their checkpoint keys."""

import re

from flax import nnx
from recipe import recipe

from ntt_jax.config import DinoV2Config
from ntt_jax.models.dinov2 import DinoVisionTransformer
from weight_port import convert_state_dict


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
    """A float32 model of this size with the recipe's tensors, through the weight tool."""
    params = nnx.to_flat_state(nnx.state(skeleton(config), nnx.Param))
    shapes = dict(checkpoint_shape(path, param.shape) for path, param in params)
    return convert_state_dict({key: recipe(key, shape, seed) for key, shape in shapes.items()}, config)
