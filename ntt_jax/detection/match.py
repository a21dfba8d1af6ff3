"""From candidate masks to labels and scores (METHOD stage 3, step 6).

The paper upsamples the patch features to the mask grid and averages them under each mask. With U the bilinear
upsampling of one axis and m a 0/1 mask that average is

    sum over pixels of m (U F U') = sum over patches of (U' m U) F,

so the mask is pushed down to the patch grid by the adjoint instead of the features being pushed up: the same numbers,
137 -> under 9 GFLOP for 1024 candidates with C = 1024. Nothing here depends on the number of classes but one product.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32, Int32

from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.images.resize import resize_matrix
from ntt_jax.memory.aggregate import unit_vectors

# Rank-ordered classes of a candidate below this share of its best similarity are set to 0 when all classes are kept.
_ALL_CLASSES_FLOOR = 0.6
SMALLEST_DIVISOR = 1e-30
"""What similarities are divided by at least: float32 would round less to 0."""


def mask_weights(masks: Bool[Array, "P m n"], grid: tuple[int, int]) -> Float32[Array, "P h w"]:
    """Push 0/1 masks through the adjoint of the bilinear upsampling from the patch grid.

    Args:
      masks: `[P, m, n]` bool, on the grid of the mask decoder (256 x 256).
      grid: (h, w) of the patch features (37, 37).

    Returns:
      `[P, h, w]` float32, the share of every patch in the mask, in mask pixels: they sum to the mask's area.
    """
    rows = jnp.asarray(resize_matrix(masks.shape[1], grid[0], "bilinear"), jnp.float32)  # [m, h]
    columns = jnp.asarray(resize_matrix(masks.shape[2], grid[1], "bilinear"), jnp.float32)  # [n, w]
    flat = masks.astype(jnp.float32).reshape(-1, masks.shape[2])
    weights = jnp.dot(flat, columns, precision="highest").reshape(*masks.shape[:2], grid[1])
    return jnp.einsum("yh,pyw->phw", rows, weights, precision="highest")


def object_features(
    weights: Float[Array, "P h w"], features: Float[Array, "h w C"]
) -> tuple[Float32[Array, "P C"], Bool[Array, " P"]]:
    """Mean patch feature under each mask, L2-normalised.

    Args:
      weights: `[P, h, w]` float32 of `mask_weights`.
      features: `[h, w, C]` float, not normalised.

    Returns:
      objects `[P, C]` float32 of length 1, or 0 where there is no direction: an empty mask, or features that cancel.
      valid `[P]` bool, whether there is one. Never NaN for finite features.
    """
    features = features.astype(jnp.float32).reshape(-1, features.shape[-1])
    # The mean's division by the area is dropped: it does not change the direction.
    total = jnp.einsum("pk,kc->pc", weights.reshape(weights.shape[0], -1), features, precision="highest")
    return unit_vectors(total)


def similarities(
    objects: Float[Array, "P C"],
    prototypes: Float[Array, "K C"],
    negatives: Float[Array, "K N C"] | None = None,
    sigma: float = DetectConfig.negative_sigma,
) -> Float[Array, "P K"]:
    """Similarity of every object to every class: the cosine with its prototype, clamped at 0 from below.

    With negative references (METHOD section 4) it is lowered where the object looks more like one of the class's
    negatives: p * exp(-max(0, n - p) / sigma), p the cosine with the prototype, n the largest with a negative, both
    clamped.

    Args:
      objects: `[P, C]` float, L2-normalised.
      prototypes: `[K, C]` float; normalised here once more, so that any positive multiple will do.
      negatives: `[K, N, C]` float, of any length; rows of zeros where a class has fewer. Those lower nothing: with
        zeros alone the result is, bit for bit, that without negatives.
      sigma: above 0; the larger, the less negatives matter.

    Returns:
      `[P, K]` float32, at least 0.

    Raises:
      InputError: `sigma` is not above 0.
    """
    unit, _ = unit_vectors(prototypes.astype(jnp.float32))
    positive = jnp.maximum(0.0, jnp.einsum("pc,kc->pk", objects, unit, precision="highest"))
    if negatives is None:
        return positive
    sigma = DetectConfig.limits("negative_sigma").check("negative_sigma", sigma)
    unit, _ = unit_vectors(negatives.astype(jnp.float32))
    negative = jnp.max(jnp.einsum("pc,knc->pkn", objects, unit, precision="highest"), axis=-1, initial=0.0)
    # A sigma that float32 rounds to 0 would make 0 / 0 of objects that look like no negative.
    return positive * jnp.exp(-jnp.maximum(0.0, negative - positive) / max(sigma, SMALLEST_DIVISOR))


def assign_labels(
    similarity: Float[Array, "P K"], classes_per_mask: int
) -> tuple[Int32[Array, "P n"], Float[Array, "P n"]]:
    """Choose the classes of every candidate.

    Args:
      similarity: `[P, K]` float32, at least 0.
      classes_per_mask: 1 keeps the best class of a candidate, n the n best (all if there are fewer), -1 all of them,
        where those strictly under 0.6 times the candidate's best get score 0.

    Returns:
      labels `[P, n]` int32 and scores `[P, n]` float32, best first; equal similarities by class index.

    Raises:
      InputError: `classes_per_mask` is neither -1 nor at least 1, or there is no class.
    """
    num_classes = similarity.shape[-1]
    if num_classes < 1:
        raise InputError("expected at least one class prototype, found none")
    DetectConfig.limits("classes_per_mask").check("classes_per_mask", classes_per_mask)
    if classes_per_mask == 1:
        labels = jnp.argmax(similarity, axis=-1, keepdims=True).astype(jnp.int32)
        return labels, jnp.take_along_axis(similarity, labels, axis=-1)
    rank = num_classes if classes_per_mask == -1 else min(classes_per_mask, num_classes)
    scores, labels = jax.lax.top_k(similarity, rank)
    if classes_per_mask == -1:
        scores = jnp.where(scores < _ALL_CLASSES_FLOOR * scores[:, :1], 0.0, scores)
    return labels.astype(jnp.int32), scores
