"""What the encoder sees inside the references: main components and clusters of their patch features, as pictures."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.errors import InputError
from ntt_jax.images.drawing import distinct_colours, enlarge
from ntt_jax.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from ntt_jax.memory.analysis import foreground_kmeans, foreground_pca, kmeans_start
from ntt_jax.models.encoder import Encoder
from ntt_jax.references.build import read_reference
from ntt_jax.report.gallery import data_uri
from ntt_jax.report.page import ReferenceSource

PER_CLASS, MAX_CLASSES, MAX_PICTURES = 4, 60, 80
PICTURE_BYTES = 12_000
CLUSTERS = 4
_TILE = 148


def patch_pictures(
    dinov2: Encoder, sources: ReferenceSource, *, step: Callable[[], None] = lambda: None
) -> list[list[str]]:
    """Pictures of the first references of each class, data URIs: the crop, its components, its clusters, side by side.

    At most `PER_CLASS` references of each of the first `MAX_CLASSES` classes, and fewer where that would be more than
    `MAX_PICTURES`. The references of a class share their colours: three main components of the foreground patches as
    red, green and blue, and four k-means clusters. step: called after each class.

    Raises `InputError` if an image cannot be read or a mask vanishes on the patch grid.
    """
    if sources.images is None:
        raise InputError("the patches of the references need their images")
    size, grid = dinov2.config.input_size, dinov2.config.grid
    classes = sources.references.classes[:MAX_CLASSES]
    each = min(PER_CLASS, max(1, MAX_PICTURES // len(classes)))
    result = []
    for chosen in classes:
        pairs = [
            read_reference(sources.dataset, sources.images, reference, input_size=size, grid=grid)
            for reference in chosen.references[:each]
        ]
        crops, masks = np.zeros((each, size, size, 3), np.float32), np.zeros((each, grid, grid), np.float32)
        for i, (crop, mask) in enumerate(pairs):  # padded, so that one program serves all classes
            crops[i], masks[i] = crop, mask
        values, clusters = (np.asarray(array) for array in _compiled(dinov2, jnp.asarray(crops), jnp.asarray(masks)))
        colours = _component_colours(values, masks > 0)
        result.append([_strip(crops[i], colours[i], clusters[i], masks[i] > 0) for i in range(len(pairs))])
        step()
    return result


@jax.jit
def _compiled(dinov2: Encoder, crops: Array, masks: Array) -> tuple[Array, Array]:
    """Component values `[n, g, g, 3]` and cluster index `[n, g, g]`, -1 outside, of a class's references."""
    features = dinov2(crops).astype(jnp.float32)  # [n, g, g, C]
    flat, weights = features.reshape(-1, features.shape[-1]), masks.reshape(-1)
    mean, directions = foreground_pca(flat, weights, 3)
    values = jnp.einsum("nc,kc->nk", flat - mean[None, :], directions, precision="highest")
    _, member = foreground_kmeans(flat, weights, kmeans_start(jax.random.key(0), weights, CLUSTERS))
    return values.reshape(*masks.shape, 3), member.reshape(masks.shape)


def _component_colours(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """`[n, g, g, 3]` uint8: the foreground's 2nd to 98th percentile of each component fills its colour's range."""
    low, high = np.percentile(values[inside], [2, 98], axis=0)
    return (np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)


def _strip(crop: np.ndarray, colours: np.ndarray, clusters: np.ndarray, inside: np.ndarray) -> str:
    """The crop, its components and its clusters beside one another; outside the mask the crop shows through, dimmed."""
    side = _TILE // inside.shape[0] * inside.shape[0] or inside.shape[0]
    image = (
        np.clip((crop * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN)) * 255, 0, 255).round().astype(np.uint8)
    )
    rows = (np.arange(side) * 2 + 1) * len(image) // (2 * side)
    small = image[rows[:, None], rows[None, :]]
    shape = enlarge(np.repeat(inside[:, :, None], 3, axis=2).astype(np.uint8), side, side) > 0
    palette = distinct_colours(CLUSTERS)
    tiles = [
        np.where(shape, enlarge(np.ascontiguousarray(tile), side, side), small // 3)
        for tile in (colours, palette[np.maximum(clusters, 0)])
    ]
    return data_uri(np.concatenate([small, *tiles], axis=1), PICTURE_BYTES)
