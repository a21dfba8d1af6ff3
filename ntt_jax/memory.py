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

from ntt_jax.errors import InputError
from ntt_jax.match import normalise


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


def instance_mean(features: Array, mask: Array) -> Array:
    """Mean of patch features `[hw, C]` weighted by a soft mask `[hw]` -> `[C]` float32; 0 for an all-zero mask."""
    mask = mask.astype(jnp.float32)
    total = jnp.sum(mask)
    weighted = jnp.where(mask[:, None] > 0, features.astype(jnp.float32) * mask[:, None], 0.0)
    return jnp.sum(weighted, axis=0) / jnp.where(total > 0, total, 1.0)


def encode_references(dinov2: Callable[[Array], Array], crops: Array, masks: Array) -> Array:
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


def prototypes_from_instance_means(instance_means: Array, valid: Array) -> Array:
    """Class prototypes `[K, C]`: mean over the valid of `[K, S, C]`, then L2-normalised; 0 where none is valid.

    The references of a class are added up one after the other: padding or a longer S changes no bit of the result.
    """
    terms = jnp.where(valid[:, :, None], instance_means, 0.0)
    start = jnp.zeros((terms.shape[0], terms.shape[2]), terms.dtype)
    total, _ = lax.scan(lambda total, term: (total + term, None), start, jnp.swapaxes(terms, 0, 1))
    # The division of the mean does not change the direction.
    return lax.map(lambda vector: normalise(vector)[0], total)


def aggregate_memory(features: Array, masks: Array) -> Memory:
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


def _check_shapes(features: Array, masks: Array) -> None:
    if features.ndim != 4 or masks.shape != features.shape[:3] or min(features.shape) < 1:
        raise InputError(
            f"memory: expected features [K, S, hw, C] and masks [K, S, hw], found {features.shape} and {masks.shape}"
        )


def pooled_mean(features: Array, masks: Array) -> Array:
    """sum(mask * feature) / sum(mask) over all patches of all references: `[K, S, hw, C]`, `[K, S, hw]` -> `[K, C]`.

    Soft weights, not normalised; 0 for a class without foreground. Another tensor than the prototype.
    """
    masks = masks.astype(jnp.float32)
    total = jnp.sum(masks, axis=(1, 2))[:, None]
    pooled = jnp.einsum("ksp,kspc->kc", masks, features.astype(jnp.float32), precision="highest")
    return pooled / jnp.where(total > 0, total, 1.0)


def instance_covariance(memory: Memory) -> Array:
    """Covariance of the instance means of every class, divided by the number of references: `[K, C, C]` float32."""
    count = jnp.maximum(1, memory.shots).astype(jnp.float32)[:, None]
    valid = memory.valid[:, :, None]
    mean = jnp.sum(jnp.where(valid, memory.instance_means, 0.0), axis=1) / count
    centred = jnp.where(valid, memory.instance_means - mean[:, None, :], 0.0)
    return jnp.einsum("ksc,ksd->kcd", centred, centred, precision="highest") / count[:, :, None]


def leave_one_out_similarity(features: Array, masks: Array) -> tuple[Array, Array]:
    """How well each reference of a class agrees with its others.

    The mean over references of (1 + cos(a, b)) / 2, a the unweighted mean feature where mask > 0 in the reference and
    b the same over all such patches of the class's other references pooled.

    Args:
      features `[K, S, hw, C]`, masks `[K, S, hw]`, as `aggregate_memory`.

    Returns:
      similarity `[K]` float32 and defined `[K]` bool: with fewer than two references there is none, and 0 is returned.
    """
    foreground = (masks > 0).astype(jnp.float32)
    sums = jnp.einsum("ksp,kspc->ksc", foreground, features.astype(jnp.float32), precision="highest")
    valid = jnp.any(masks > 0, axis=-1)
    # Means differ from sums by a factor, which the cosine does not see.
    own, _ = normalise(sums)
    others, _ = normalise(jnp.sum(sums, axis=1, keepdims=True) - sums)
    agreement = (1.0 + jnp.sum(own * others, axis=-1)) / 2.0
    shots = jnp.sum(valid, axis=1)
    mean = jnp.sum(jnp.where(valid, agreement, 0.0), axis=1) / jnp.maximum(1, shots)
    return jnp.where(shots > 1, mean, 0.0), shots > 1


def foreground_kmeans(features: Array, masks: Array, initial: Array, *, iterations: int = 100) -> tuple[Array, Array]:
    """k-means on the foreground patches (mask > 0) of one class, by cosine.

    Centres are normalised for the assignment, updated to the mean of the raw features, and normalised at the end; an
    empty cluster keeps its centre.

    Args:
      features `[N, C]`: all patches of the class, references concatenated, row-major. masks `[N]`.
      initial `[k]` int32: initial centres, as indices into the list of foreground patches (see `kmeans_start`).

    Returns:
      centres `[k, C]` float32 of length 1, assignment `[N]` int32, -1 for background.
    """
    features = features.astype(jnp.float32)
    foreground = masks > 0
    # Position of the i-th foreground patch: the first place where the running count reaches i + 1.
    start = jnp.searchsorted(jnp.cumsum(foreground), jnp.asarray(initial) + 1, side="left")
    centres = features[jnp.minimum(start, features.shape[0] - 1)]
    index = jnp.arange(centres.shape[0])

    def assign(centres: Array) -> Array:
        unit, _ = normalise(centres)
        similarity = jnp.einsum("nc,kc->nk", features, unit, precision="highest")
        return jnp.where(foreground, jnp.argmax(similarity, axis=1), -1).astype(jnp.int32)

    def update(_: int, centres: Array) -> Array:
        member = (assign(centres)[:, None] == index[None, :]).astype(jnp.float32)  # [N, k]
        count = jnp.sum(member, axis=0)[:, None]
        mean = jnp.einsum("nk,nc->kc", member, features, precision="highest") / jnp.maximum(count, 1.0)
        return jnp.where(count > 0, mean, centres)

    centres = lax.fori_loop(0, iterations, update, centres)
    return normalise(centres)[0], assign(centres)


def kmeans_start(key: Array, masks: Array, clusters: int = 4) -> Array:
    """Distinct foreground patches to start `foreground_kmeans` from: key, `[N]` masks -> `[clusters]` int32."""
    priority = jnp.where(masks > 0, jax.random.uniform(key, masks.shape), -1.0)
    chosen = lax.top_k(priority, clusters)[1]
    return (jnp.cumsum(masks > 0) - 1)[chosen].astype(jnp.int32)


def foreground_pca(features: Array, masks: Array, components: int = 3) -> tuple[Array, Array]:
    """Principal components of the foreground patches (mask > 0) of one class, unweighted.

    Args:
      features `[N, C]`, masks `[N]`, as `foreground_kmeans`.

    Returns:
      mean `[C]` float32; components `[components, C]` float32 of length 1, by decreasing variance, the sign such that
      each one's largest-magnitude entry is positive.
    """
    weight = (masks > 0).astype(jnp.float32)[:, None]
    count = jnp.maximum(1.0, jnp.sum(weight))
    features = features.astype(jnp.float32)
    mean = jnp.sum(features * weight, axis=0) / count
    centred = (features - mean[None, :]) * weight
    covariance = jnp.einsum("nc,nd->cd", centred, centred, precision="highest") / count
    vectors = jnp.linalg.eigh(covariance)[1][:, ::-1][:, :components].T
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True), axis=1)
    return mean, vectors * jnp.where(largest < 0, -1.0, 1.0)
