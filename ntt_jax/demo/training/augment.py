"""Random changes of images on the device, inside the training step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.images.preprocess import normalise

PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def turn(key: Array, *maps: Array) -> tuple[Array, ...]:
    """One of the eight turns and mirrorings per sample, the same for all maps. Maps: `[B, S, S, ...]`, square."""
    choices = jax.random.bernoulli(key, shape=(3, maps[0].shape[0]))

    def apply(x: Array) -> Array:
        flags = choices.reshape(3, -1, *(1,) * (x.ndim - 1))
        x = jnp.where(flags[0], x[:, ::-1], x)
        x = jnp.where(flags[1], x[:, :, ::-1], x)
        return jnp.where(flags[2], jnp.swapaxes(x, 1, 2), x)

    return tuple(apply(x) for x in maps)


def permute_channels(key: Array, images: Array) -> tuple[Array, Array]:
    """Swap the colour channels at random. `[B, H, W, 3]` -> the same, and which of the six permutations, `[B]`."""
    choice = jax.random.randint(key, (images.shape[0],), 0, len(PERMUTATIONS))
    order = jnp.asarray(PERMUTATIONS)[choice][:, None, None, :]
    return jnp.take_along_axis(images, jnp.broadcast_to(order, (images.shape[0], 1, 1, 3)), axis=3), choice


def colour_maps(key: Array, count: int) -> Array:
    """Random linear maps of RGB, `[count, 3, 3]`: channels swapped and all hues turned by up to 60 degrees, so that any
    hue may become any other while greys stay."""
    swap, angle = jax.random.split(key)
    order = jnp.asarray(PERMUTATIONS)[jax.random.randint(swap, (count,), 0, len(PERMUTATIONS))]
    permutation = jax.nn.one_hot(order, 3)  # row i picks channel order[i]
    angle = jax.random.uniform(angle, (count, 1, 1), minval=-np.pi / 3, maxval=np.pi / 3)
    # Rodrigues' rotation about the grey axis.
    third, axis = jnp.full((1, 3, 3), 1 / 3), 3**-0.5 * jnp.array([[[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]])
    rotation = third + jnp.cos(angle) * (jnp.eye(3)[None] - third) + jnp.sin(angle) * axis
    return jnp.einsum("nij,njk->nik", rotation, permutation)


def recolour(images: Array, maps: Array) -> Array:
    """Each image `[B, H, W, 3]` in [0, 255] through its map `[B, 3, 3]`, clipped, float32."""
    return jnp.clip(jnp.einsum("bhwc,bdc->bhwd", images.astype(jnp.float32), maps), 0, 255)


def normalised(key: Array, images: Array, gain: float) -> Array:
    """`[B, H, W, 3]` in [0, 255] to ImageNet-normalised float32, after a random gain per image and per channel."""
    common, each = jax.random.split(key)
    b = images.shape[0]
    factor = jnp.exp(gain * jax.random.normal(common, (b, 1, 1, 1)) + gain / 2 * jax.random.normal(each, (b, 1, 1, 3)))
    x = jnp.clip(images.astype(jnp.float32) / 255 * factor, 0, 1)
    return normalise(x)
