"""References to class prototypes, and the analysis tensors beside them (METHOD stage 2).

One reference is the patch features of one object's crop and its soft mask on the patch grid. Classes with fewer
references than others are padded with all-zero masks; what is padded never reaches a result. Sums are taken in a fixed
order, one reference at a time, so that a bank grown reference by reference equals, bit for bit, one made at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Float32, Shaped

from ntt_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What the target pass knows of K classes with up to S references each.

    prototypes: `[K, C]` float32, L2-normalised mean of the instance means; 0 for a class without any valid reference.
    instance_means: `[K, S, C]` float32, not normalised; 0 where not valid.
    valid: `[K, S]` bool, which references are there.
    negatives: `[K, N, C]` float32, means of instances that look like the class and are none (`match.similarities`); 0
    after the class's last one. None where no class has any.
    """

    prototypes: Array
    instance_means: Array
    valid: Array
    negatives: Array | None = None

    @property
    def shots(self) -> Array:
        """Valid references per class, `[K]` int32."""
        return jnp.sum(self.valid, axis=-1, dtype=jnp.int32)

    @property
    def negative_shots(self) -> Array:
        """Negative references per class, `[K]` int32."""
        if self.negatives is None:
            return jnp.zeros(len(self.prototypes), jnp.int32)
        return jnp.sum(jnp.any(self.negatives != 0, axis=-1), axis=-1, dtype=jnp.int32)


def unit_vectors(vectors: Float[Array, "*rows C"]) -> tuple[Float[Array, "*rows C"], Bool[Array, "*rows"]]:
    """L2-normalise `[..., C]`; zero vectors stay zero, without a NaN in value or gradient. Returns (unit, valid)."""
    # Scaled by the largest entry first, so that squares neither overflow nor vanish.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
    valid = (largest > 0) & jnp.isfinite(largest)
    safe = jnp.where(valid, vectors / jnp.where(valid, largest, 1.0), 1.0)
    unit = safe / jnp.sqrt(jnp.sum(safe * safe, axis=-1, keepdims=True))
    return jnp.where(valid, unit, 0.0), valid[..., 0]


def instance_mean(features: Shaped[Array, "hw C"], mask: Shaped[Array, " hw"]) -> Float32[Array, " C"]:
    """Mean of patch features `[hw, C]` weighted by a soft mask `[hw]` -> `[C]` float32; 0 for an all-zero mask."""
    mask = mask.astype(jnp.float32)
    total = jnp.sum(mask)
    weighted = jnp.where(mask[:, None] > 0, features.astype(jnp.float32) * mask[:, None], 0.0)
    return jnp.sum(weighted, axis=0) / jnp.where(total > 0, total, 1.0)


def encode_references(
    dinov2: Callable[[Array], Array], crops: Float[Array, "B E E 3"], masks: Float[Array, "B g g"]
) -> Float32[Array, "B C"]:
    """Mean patch feature of each reference, weighted by its mask. Pure.

    Args:
      dinov2: the encoder.
      crops: `[B, E, E, 3]` float32, normalised, E the encoder's input side (`preprocess.reference_crop`).
      masks: `[B, g, g]` float32 in [0, 1] on the patch grid (`preprocess.mask_to_grid`).

    Returns:
      `[B, C]` float32, not normalised; 0 for an all-zero mask.
    """
    features = dinov2(crops)  # [B, g, g, C]
    flat = features.reshape(features.shape[0], -1, features.shape[-1]), masks.reshape(masks.shape[0], -1)
    return lax.map(lambda reference: instance_mean(*reference), flat)


def prototypes_from_instance_means(
    instance_means: Float[Array, "K S C"], valid: Bool[Array, "K S"]
) -> Float[Array, "K C"]:
    """Class prototypes `[K, C]`: mean over the valid of `[K, S, C]`, then L2-normalised; 0 where none is valid.

    The references of a class are added up one after the other: padding or a longer S changes no bit of the result.
    """
    terms = jnp.where(valid[:, :, None], instance_means, 0.0)
    start = jnp.zeros((terms.shape[0], terms.shape[2]), terms.dtype)
    total, _ = lax.scan(lambda total, term: (total + term, None), start, jnp.swapaxes(terms, 0, 1))
    # The division of the mean does not change the direction.
    return lax.map(lambda vector: unit_vectors(vector)[0], total)


def aggregate_memory(features: Float[Array, "K S hw C"], masks: Shaped[Array, "K S hw"]) -> Memory:
    """References of K classes to their memory.

    Args:
      features: `[K, S, hw, C]` float, patch features of the reference crops, not normalised.
      masks: `[K, S, hw]` float in [0, 1], soft masks on the patch grid; all zero where a class has fewer than S.

    Returns:
      `Memory`. Prototypes are the normalised mean of the (not normalised) instance means. Never NaN: a class without
      any non-zero mask has prototype 0 and no valid reference; `check_reference` names such references beforehand.

    Raises:
      InputError: shapes that do not fit together.
    """
    _check_shapes(features, masks)
    valid = jnp.sum(masks.astype(jnp.float32), axis=-1) > 0
    k, s, hw, c = features.shape
    # One reference at a time, as when they are added one by one; it also bounds the memory of the products.
    flat = (features.reshape(k * s, hw, c), masks.reshape(k * s, hw))
    means = lax.map(lambda reference: instance_mean(*reference), flat).reshape(k, s, c)
    return Memory(prototypes_from_instance_means(means, valid), means, valid)


def check_reference(mask: np.ndarray, name: str) -> None:
    """Host: refuse a reference whose mask has no weight on the patch grid (it would have no mean), or is not finite.

    Raises `InputError` naming the reference.
    """
    mask = np.asarray(mask)
    if not np.all(np.isfinite(mask)) or np.any(mask < 0):
        raise InputError(f"reference {name}: its mask holds negative values or values that are not finite")
    if not np.sum(mask) > 0:
        raise InputError(f"reference {name}: its mask is empty on the patch grid; choose another reference")


def memory_from_instance_means(
    instance_means: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    negative_means: Sequence[Sequence[np.ndarray]] = (),
) -> Memory:
    """Host: the memory of classes whose references were encoded one by one, with any number of them each.

    Args:
      instance_means: per class, `[C]` float32 for every reference (`instance_mean`). names: of the classes.
      negative_means: the same of negative references, of which a class may have none; empty if no class has any.

    Returns:
      `Memory`, bit for bit that of `aggregate_memory` on the same references, in whatever order it was grown.

    Raises:
      InputError: naming a class without references, or whose means differ in size or are not finite, or cancel out.
    """
    shots = max((len(means) for means in instance_means), default=0)
    if not instance_means or shots == 0:
        raise InputError("memory: expected at least one class with a reference, found none")
    if empty := [name for means, name in zip(instance_means, names, strict=True) if not len(means)]:
        raise InputError(f"class {empty[0]} has no reference; every class needs at least one")
    dim = np.shape(instance_means[0][0])
    stacked, valid = _stack(instance_means, names, dim, "reference")
    prototypes = prototypes_from_instance_means(jnp.asarray(stacked), jnp.asarray(valid))
    if not np.all(there := np.any(np.asarray(prototypes) != 0, axis=1)):
        raise InputError(f"class {names[int(np.argmin(there))]}: the features of its references cancel out")
    negatives = None
    if any(map(len, negative_means)):
        stacked_negatives, there = _stack(negative_means, names, dim, "negative reference")
        if np.any(there & ~np.any(stacked_negatives != 0, axis=2)):
            raise InputError("memory: the features of a negative reference are all zero")
        negatives = jnp.asarray(stacked_negatives)
    return Memory(prototypes, jnp.asarray(stacked), jnp.asarray(valid), negatives)


def _stack(
    means: Sequence[Sequence[np.ndarray]], names: Sequence[str], dim: tuple[int, ...], what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Means `[C]` of each class as `[K, S, C]`, 0 after the last, and `[K, S]` bool, which are there."""
    most = max(map(len, means))
    stacked, valid = np.zeros((len(means), most, *dim), np.float32), np.zeros((len(means), most), bool)
    for k, (own, name) in enumerate(zip(means, names, strict=True)):
        for s, mean in enumerate(own):
            if np.shape(mean) != dim or len(dim) != 1 or not np.all(np.isfinite(mean)):
                raise InputError(f"class {name}, {what} {s}: expected {dim} finite features, found {np.shape(mean)}")
            stacked[k, s], valid[k, s] = mean, True
    return stacked, valid


def require_arrays(where: str, **values: object) -> None:
    """Raise `InputError` for a value that is no array: a whole `Memory`, an image of PIL, a path, a list, a model."""
    for name, value in values.items():
        if isinstance(value, Memory):
            raise InputError(f"{where}: {name}: expected an array, found a whole Memory; give its .prototypes")
        if not (hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "ndim")):
            kind = type(value).__name__
            raise InputError(f"{where}: {name}: expected an array of numpy or JAX, found {kind}")


def _check_shapes(features: Array, masks: Array) -> None:
    require_arrays("memory", features=features, masks=masks)
    if features.ndim != 4 or masks.shape != features.shape[:3] or min(features.shape) < 1:
        raise InputError(
            f"memory: expected features [K, S, hw, C] and masks [K, S, hw], found {features.shape} and {masks.shape}"
        )
