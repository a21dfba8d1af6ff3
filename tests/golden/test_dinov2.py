"""DINOv2 against the recorded outputs of Meta's PyTorch code, without torch.

Relative error = max |a - b| / max |b|. float32 against float64 of the same computation: 5e-6 (golden README).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dinov2_weights import recipe_model

from ntt_jax.config import DINOV2_CONFIGS
from ntt_jax.images.preprocess import encoder_input, normalise, resize_for_sam
from ntt_jax.images.reading import read_image


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
    normalised = normalise(jnp.asarray(data["img_uint8"], jnp.float32) / 255)
    np.testing.assert_allclose(data["x"].transpose(1, 2, 0), normalised, atol=1e-6)
    outputs = features(small, jnp.asarray(data["x"].transpose(1, 2, 0)[None]))
    for name in ("tokens0", "block0", "block5", "block11"):
        assert relative_error(outputs[name][0], data[name]) <= 1e-5, name
    assert relative_error(outputs["norm"][0, 1:], data["feats"]) <= 1e-5


def test_small_518(golden, small):
    data = np.load(golden / "dino_vits_518.npz", allow_pickle=False)
    images = normalise(jnp.asarray(data["img_uint8"], jnp.float32) / 255)
    outputs = features(small, images[None])
    for name in ("tokens0", "block0", "block11"):
        assert relative_error(outputs[name][0, ::37], data[f"{name}_stride37"]) <= 1e-5, name
    patches = np.asarray(outputs["norm"][0, 1:])
    assert relative_error(patches[::7], data["feats_stride7"]) <= 1e-5
    assert relative_error(patches, data["feats_fp16"]) <= 5e-4  # half precision: 11 bits
    assert relative_error(patches.mean(0), data["mean_c"]) <= 1e-5
    assert relative_error(patches.std(0, ddof=1), data["std_c"]) <= 1e-5


@pytest.mark.large
def test_large_518(golden):
    """ViT-L from the photo on: PIL to 1024, torch bicubic to 518, features."""
    data = np.load(golden / "dino_vitl_518.npz", allow_pickle=False)
    photo = read_image(golden / "e2e_data" / "coffee.png")
    images = encoder_input(jnp.asarray(resize_for_sam(photo, 1024)[None]), 518)
    # Torch works out sample positions up to 1023 in float32, in steps of 6e-5 of a pixel.
    assert relative_error(images[0, ::14, ::14], data["x_stride14"].transpose(1, 2, 0)) <= 5e-5
    patches = np.asarray(features(recipe_model(DINOV2_CONFIGS["dinov2_vitl14"]), images)["norm"][0, 1:])
    errors = {
        "features": relative_error(patches[::37], data["feats_stride37"]),
        "mean": relative_error(patches.mean(0), data["mean_c"]),
        "deviation": relative_error(patches.std(0, ddof=1), data["std_c"]),
    }
    print(errors)
    assert max(errors.values()) <= 1e-5
