"""METHOD stage 2 against what the original PyTorch code stored."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.memory import aggregate as memory
from ntt_jax.memory import analysis


def close(found, want, tolerance):
    """Largest difference over largest value. The inputs are exact (float16); the sums differ in order only."""
    assert np.abs(np.asarray(found) - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("kind", ["frac", "bin"])
def test_aggregation(golden: pathlib.Path, kind):
    data = np.load(golden / f"dev_postprocess_{kind}.npz")
    features = jnp.asarray(data["mem_feats_fp16"].astype(np.float32))
    masks = jnp.asarray(data["mem_masks_fp16"].astype(np.float32))
    bank = jax.jit(memory.aggregate_memory)(features, masks)
    close(bank.instance_means, data["mem_feats_ins_avg"], 2e-6)
    mean = data["mem_feats_ins_avg"].astype(np.float64).mean(axis=1)
    close(bank.prototypes, mean / np.linalg.norm(mean, axis=1, keepdims=True), 2e-6)
    close(jax.jit(analysis.pooled_mean)(features, masks), data["mem_feats_avg"], 2e-6)
    close(jax.jit(analysis.instance_covariance)(bank), data["mem_feats_covariances"], 2e-6)
    similarity, defined = jax.jit(analysis.leave_one_out_similarity)(features, masks)
    assert np.all(defined)
    close(similarity, data["mem_ins_sim_avg"], 1e-6)

    flat, weights = features.reshape(5, -1, features.shape[-1]), masks.reshape(5, -1)
    np.testing.assert_array_equal(np.sum(np.asarray(weights) > 0, axis=1), data["n_foreground"])
    centres, _ = jax.jit(jax.vmap(analysis.foreground_kmeans))(flat, weights, data["kmeans_init"])
    close(centres, data["mem_feats_centers"], 2e-6)
    mean, components = jax.jit(jax.vmap(analysis.foreground_pca))(flat, weights)
    close(mean, data["mem_pca_mean"], 2e-6)
    close(components, data["mem_pca_components"], 5e-6)  # eigenvectors amplify rounding by the eigenvalue gaps


def test_negative_instances(golden: pathlib.Path):
    data = np.load(golden / "dev_negative.npz")
    features = jnp.asarray(data["mem_feats_neg_fp16"].astype(np.float32))
    masks = jnp.asarray(data["mem_masks_neg_fp16"].astype(np.float32))
    close(memory.aggregate_memory(features, masks).instance_means, data["mem_feats_ins_avg_neg_first2"], 2e-6)
    close(analysis.pooled_mean(features, masks), data["mem_feats_avg_neg_first2"], 2e-6)
