"""Random features of an image for the small SAM 2 of the tests."""

import jax
import jax.numpy as jnp
import numpy as np
from sam2_weights import SMALL

from ntt_jax.models.sam2.sam2_base import ImageFeatures


def random_features(seed: int) -> ImageFeatures:
    rng = np.random.default_rng(seed)
    side, dim = SMALL.embedding_size, SMALL.d_model

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return ImageFeatures(
        draw(side, side, dim), (draw(4 * side, 4 * side, dim // 8), draw(2 * side, 2 * side, dim // 4))
    )
