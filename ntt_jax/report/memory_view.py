"""What a memory file shows without its encoder: references and prototypes on a plane, clusters, similar classes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntt_jax.memory.analysis import foreground_kmeans, foreground_pca
from ntt_jax.memory.bank import MemoryBank

MAX_PAIRS = 15
MAX_MATRIX = 60


def memory_view(bank: MemoryBank) -> dict[str, Any]:
    """JSON-ready data of the memory's pictures.

    points: [class, reference, x, y] of every instance mean, of length 1, on its two main components; prototypes:
    [x, y] per class; explained: their shares of the variance. clusters: `[K][K]` references of each class (column) in
    each k-means cluster (row), started from each class's first reference. similarity: `[K][K]` cosines of the
    prototypes in percent, empty beyond 60 classes; pairs: the most similar ones, [class, class, cosine].
    """
    valid = np.asarray(bank.memory.valid)
    means = np.asarray(bank.memory.instance_means)
    prototypes = np.asarray(bank.memory.prototypes, np.float64)
    label, number = np.nonzero(valid)
    vectors = means[valid]  # [N, C]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    everywhere = jnp.ones(len(vectors), jnp.float32)
    with jax.default_matmul_precision("highest"):
        plane = jax.jit(foreground_pca, static_argnums=2)(jnp.asarray(vectors), everywhere, 2)
        centre, directions = (np.asarray(array, np.float64) for array in plane)
        first = np.searchsorted(label, np.arange(len(valid))).astype(np.int32)
        member = np.asarray(jax.jit(foreground_kmeans)(jnp.asarray(vectors), everywhere, jnp.asarray(first))[1])
    centred = vectors - centre
    places, total = centred @ directions.T, float((centred**2).sum())
    clusters = np.zeros((len(valid), len(valid)), int)
    np.add.at(clusters, (member, label), 1)
    cosines = prototypes @ prototypes.T
    a, b = np.triu_indices(len(cosines), 1)
    closest = np.argsort(-cosines[a, b], kind="stable")[:MAX_PAIRS]
    return {
        "points": [
            [int(k), int(s), *np.round(place, 4).tolist()] for k, s, place in zip(label, number, places, strict=True)
        ],
        "prototypes": np.round((prototypes - centre) @ directions.T, 4).tolist(),
        "explained": [round(float(v), 4) for v in (places**2).sum(axis=0) / max(total, 1e-30)],
        "clusters": clusters.tolist() if len(valid) <= MAX_MATRIX else [],
        "pure": int(clusters.max(axis=1).sum()),
        "similarity": np.round(100 * cosines).astype(int).tolist() if len(valid) <= MAX_MATRIX else [],
        "pairs": [[int(a[i]), int(b[i]), round(float(cosines[a[i], b[i]]), 4)] for i in closest],
    }
