"""What people look at in a memory: agreement of references, clusters and components of the foreground (METHOD stage 2).

Nothing here is read by the target pass.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntt_jax.memory.aggregate import Memory, unit_vectors


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
    own, _ = unit_vectors(sums)
    others, _ = unit_vectors(jnp.sum(sums, axis=1, keepdims=True) - sums)
    agreement = (1.0 + jnp.sum(own * others, axis=-1)) / 2.0
    shots = jnp.sum(valid, axis=1)
    mean = jnp.sum(jnp.where(valid, agreement, 0.0), axis=1) / jnp.maximum(1, shots).astype(jnp.float32)
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
        unit, _ = unit_vectors(centres)
        similarity = jnp.einsum("nc,kc->nk", features, unit, precision="highest")
        return jnp.where(foreground, jnp.argmax(similarity, axis=1), -1).astype(jnp.int32)

    def update(_: int, centres: Array) -> Array:
        member = (assign(centres)[:, None] == index[None, :]).astype(jnp.float32)  # [N, k]
        count = jnp.sum(member, axis=0)[:, None]
        mean = jnp.einsum("nk,nc->kc", member, features, precision="highest") / jnp.maximum(count, 1.0)
        return jnp.where(count > 0, mean, centres)

    centres = lax.fori_loop(0, iterations, update, centres)
    return unit_vectors(centres)[0], assign(centres)


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
