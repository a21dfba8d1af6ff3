"""DINOv2 against the recorded outputs of Meta's PyTorch code, without torch.

Relative error = max |a - b| / max |b|. float32 against float64 of the same computation: 5e-6 (golden README).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dinov2_weights import recipe_model

from ntt_jax.config import DINOV2_CONFIGS

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def small():
    return recipe_model(DINOV2_CONFIGS["dinov2_vits14"])


@jax.jit
def features(model, images):
    return model.forward_features(images)


def test_small_224(golden, small):
    data = np.load(golden / "dino_vits_224.npz", allow_pickle=False)
    normalised = (data["img_uint8"].astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(data["x"].transpose(1, 2, 0), normalised, atol=1e-6)
    outputs = features(small, jnp.asarray(data["x"].transpose(1, 2, 0)[None]))
    for name in ("tokens0", "block0", "block5", "block11"):
        assert relative_error(outputs[name][0], data[name]) <= 1e-5, name
    assert relative_error(outputs["norm"][0, 1:], data["feats"]) <= 1e-5


def test_small_518(golden, small):
    data = np.load(golden / "dino_vits_518.npz", allow_pickle=False)
    images = (data["img_uint8"].astype(np.float32) / 255 - MEAN) / STD
    outputs = features(small, jnp.asarray(images[None]))
    for name in ("tokens0", "block0", "block11"):
        assert relative_error(outputs[name][0, ::37], data[f"{name}_stride37"]) <= 1e-5, name
    patches = np.asarray(outputs["norm"][0, 1:])
    assert relative_error(patches[::7], data["feats_stride7"]) <= 1e-5
    assert relative_error(patches, data["feats_fp16"]) <= 5e-4  # half precision: 11 bits
    assert relative_error(patches.mean(0), data["mean_c"]) <= 1e-5
    assert relative_error(patches.std(0, ddof=1), data["std_c"]) <= 1e-5
