import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.errors import InputError
from ntt_jax.memory import aggregate as memory
from ntt_jax.memory import analysis

K, S, HW, C = 4, 3, 25, 7


def references(seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((K, S, HW, C)).astype(np.float32) + 1
    masks = np.maximum(0, rng.random((K, S, HW)).astype(np.float32) - 0.5)
    masks[1, 2] = 0  # two shots
    masks[2, 1:] = 0  # one shot
    masks[3] = 0  # none
    return features, masks


def test_against_numpy_with_unequal_shots():
    features, masks = references()
    bank = jax.jit(memory.aggregate_memory)(features, masks)
    np.testing.assert_array_equal(bank.shots, [3, 2, 1, 0])
    for k in range(K):
        shots = [s for s in range(S) if masks[k, s].any()]
        means = [np.average(features[k, s].astype(np.float64), axis=0, weights=masks[k, s]) for s in shots]
        np.testing.assert_allclose(bank.instance_means[k, : len(shots)], np.array(means).reshape(-1, C), atol=1e-6)
        if shots:
            mean = np.mean(means, axis=0)
            np.testing.assert_allclose(bank.prototypes[k], mean / np.linalg.norm(mean), rtol=0, atol=1e-6)
    assert not np.any(bank.prototypes[3]) and not np.any(bank.instance_means[3])


def test_grown_one_by_one_is_bit_identical():
    features, masks = references()
    features[1, 2], features[2, 1:] = np.nan, np.inf  # what is padded never matters
    whole = jax.jit(memory.aggregate_memory)(features[:3], masks[:3])
    mean = jax.jit(memory.instance_mean)
    grown = [[np.asarray(mean(features[k, s], masks[k, s])) for s in range(S) if masks[k, s].any()] for k in range(3)]
    for classes in (1, 2, 3):
        bank = memory.memory_from_instance_means(grown[:classes], ["a", "b", "c"][:classes])
        np.testing.assert_array_equal(bank.prototypes, whole.prototypes[:classes])
        np.testing.assert_array_equal(bank.instance_means, whole.instance_means[:classes, : bank.valid.shape[1]])
        np.testing.assert_array_equal(bank.valid, whole.valid[:classes, : bank.valid.shape[1]])
    alone = memory.memory_from_instance_means([grown[1]], ["b"])
    np.testing.assert_array_equal(alone.prototypes[0], whole.prototypes[1])
    single = memory.memory_from_instance_means([grown[0][:1]], ["a"])
    padded = memory.prototypes_from_instance_means(whole.instance_means[:1], jnp.array([[True, False, False]]))
    np.testing.assert_array_equal(single.prototypes, padded)


def test_errors_name_the_reference():
    memory.check_reference(np.array([0, 0.1]), "image 5")
    for mask in ([0, 0.0], [0, np.nan], [1, -1]):
        with pytest.raises(InputError, match="image 5"):
            memory.check_reference(np.array(mask), "image 5")
    one = np.ones(3, np.float32)
    with pytest.raises(InputError, match="class bird has no reference"):
        memory.memory_from_instance_means([[one], []], ["cat", "bird"])
    with pytest.raises(InputError, match="bird"):
        memory.memory_from_instance_means([[one], [one[:2]]], ["cat", "bird"])
    with pytest.raises(InputError, match="cancel"):
        memory.memory_from_instance_means([[one, -one]], ["cat"])
    with pytest.raises(InputError, match="features"):
        memory.aggregate_memory(jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 4)))


def test_analysis_never_gives_nan():
    features, masks = references()
    bank = memory.aggregate_memory(jnp.asarray(features), jnp.asarray(masks))
    similarity, defined = analysis.leave_one_out_similarity(jnp.asarray(features), jnp.asarray(masks))
    np.testing.assert_array_equal(defined, [True, True, False, False])
    found = [similarity, analysis.pooled_mean(features, jnp.asarray(masks)), analysis.instance_covariance(bank)]
    centred = np.asarray(bank.instance_means[1, :2]) - np.asarray(bank.instance_means[1, :2]).mean(axis=0)
    np.testing.assert_allclose(found[2][1], centred.T @ centred / 2, rtol=0, atol=1e-6)
    for k in range(K):
        flat, weights = features[k].reshape(-1, C), masks[k].reshape(-1)
        found += analysis.foreground_kmeans(flat, jnp.asarray(weights), jnp.array([0, 1, 2, 3]))
        found += analysis.foreground_pca(flat, jnp.asarray(weights))
    assert all(np.all(np.isfinite(x)) for x in found)


def test_kmeans_keeps_an_empty_cluster_and_starts_on_foreground():
    features = jnp.asarray(np.repeat([[1.0, 0.0], [0.0, 1.0]], 5, axis=0), jnp.float32)
    masks = jnp.array([0.0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    centres, assigned = analysis.foreground_kmeans(features, masks, jnp.array([0, 1, 7]))  # the first two are the same
    np.testing.assert_allclose(centres, [[1, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(assigned, [-1, 0, 0, 0, 0, 2, 2, 2, 2, -1])
    start = analysis.kmeans_start(jax.random.key(1), masks, 4)
    assert len(set(start.tolist())) == 4 and start.min() >= 0 and start.max() < 8


def test_gradient_of_the_prototypes_is_finite():
    features, masks = references()
    gradient = jax.grad(lambda f: jnp.sum(memory.aggregate_memory(f, masks).prototypes[:, 0]))(jnp.asarray(features))
    assert np.all(np.isfinite(gradient)) and np.any(gradient)
