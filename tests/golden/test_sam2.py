"""SAM 2 against the recorded outputs of Meta's PyTorch code, without torch.

Relative error = max |a - b| / max |b|. float32 against float64 of the same computation: 5e-6 on features, 8e-6 on
embeddings, 2e-5 on mask logits, 2e-7 on IoUs (golden README).
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sam2_weights import checkpoint_shapes, recipe_model

from ntt_jax.config import SAM2_CONFIGS

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

TINY = SAM2_CONFIGS["sam2_hiera_tiny"]
VIDEO_ONLY = ("memory_", "maskmem_", "no_mem_pos_enc", "no_obj_", "mask_downsample.", "obj_ptr_")


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def samples(x, shape, count):
    """The recorded sample positions of a channels-first tensor, taken from our channels-last one."""
    x = np.moveaxis(np.asarray(x), -1, 1)
    assert x.shape == tuple(shape)
    return x.ravel()[np.random.default_rng(7).integers(0, x.size, count)]


@jax.jit
def forward_image(model, images):
    return {k: v for k, v in model.forward_image(images).items() if not k.startswith("block")}


@jax.jit
def forward_sam_heads(model, features, points, labels):
    return model.forward_sam_heads(features, points, labels)


@pytest.fixture(scope="module")
def normalised(golden):
    image = np.load(golden / "sam2_hieraT_encoder_stages.npz", allow_pickle=False)["img_uint8"]
    return jnp.asarray((image.astype(np.float32) / 255 - MEAN) / STD)[None]


@pytest.fixture(scope="module")
def tiny_outputs(normalised):
    model = recipe_model(TINY)
    return forward_image(model, normalised), jax.jit(lambda m, x: m.encode_image(x))(model, normalised)


def test_tiny_encoder(golden, tiny_outputs):
    outputs, features = tiny_outputs
    data = np.load(golden / "sam2_hieraT_encoder_stages.npz", allow_pickle=False)
    for level in range(4):
        for ours, theirs, bound in ((f"stage{level}", f"trunk{level}", 1e-5), (f"fpn{level}", f"fpn{level}", 2e-5)):
            found = samples(outputs[ours], data[f"{theirs}_shape"], 4096)
            assert relative_error(found, data[f"{theirs}_vals"]) <= bound, theirs
    found = np.asarray(outputs["patch_embed"])
    assert found.shape == tuple(data["patch_pos_shape"])
    found = found.ravel()[np.random.default_rng(7).integers(0, found.size, 4096)]
    assert relative_error(found, data["patch_pos_vals"]) <= 1e-5
    for name, x in (("emb", features.embedding), ("s0", features.high_res[0]), ("s1", features.high_res[1])):
        data = np.load(golden / f"sam2_hieraT_encoder_{name}.npz", allow_pickle=False)
        whole = data[f"{name}_fp16"]
        assert relative_error(samples(x, (1, *whole.shape), 16384), data[f"{name}_vals"]) <= 2e-5, name
        # Stored in float16: half of its spacing, 2^-11, of the largest value.
        assert relative_error(np.moveaxis(np.asarray(x[0]), -1, 0), whole) <= 5e-4, name


def test_tiny_decoder(golden, tiny_outputs):
    data = np.load(golden / "sam2_hieraT_decoder16.npz", allow_pickle=False)
    points = jnp.asarray(data["points_xy"])[:, None]
    labels = jnp.ones(points.shape[:2], jnp.int32)
    model = recipe_model(TINY)
    outputs = forward_sam_heads(model, tiny_outputs[1][0], points, labels)
    assert relative_error(outputs["sparse"], data["sparse"]) <= 1e-5
    dense_pe = np.moveaxis(np.asarray(model.sam_prompt_encoder.get_dense_pe()[0]), -1, 0)[:, ::8, ::8]
    assert relative_error(dense_pe, data["dense_pe_stride8"]) <= 1e-5
    assert relative_error(outputs["mask_tokens"], data["mask_tokens"]) <= 2e-5
    assert relative_error(outputs["predicted_ious"], data["ious"]) <= 1e-5
    logits = np.asarray(outputs["logits"])
    assert relative_error(logits[:, :, ::4, ::4], data["masks_stride4"]) <= 1e-4
    best = np.asarray(outputs["predicted_ious"])[:, 1:].argmax(1) + 1
    np.testing.assert_array_equal(best, data["best"])
    assert relative_error(logits[5, best[5]], data["masks_full_p5_best"]) <= 1e-4
    sign = np.unpackbits(data["sign_packed"], axis=1).reshape(16, 4, 256, 256).astype(bool)
    assert np.mean((logits > 0) != sign) <= 1e-5


@pytest.mark.large
def test_large_encoder(golden, normalised):
    outputs = forward_image(recipe_model(SAM2_CONFIGS["sam2_hiera_large"]), normalised)
    data = np.load(golden / "sam2_hieraL_encoder_samples.npz", allow_pickle=False)
    for ours, theirs in (("fpn2", "emb"), ("high_res0", "s0"), ("high_res1", "s1")):
        found = samples(outputs[ours], data[f"{theirs}_shape"], 16384)
        error = relative_error(found, data[f"{theirs}_vals"])
        print(f"large {theirs}: {error:.1e}")
        assert error <= 2e-5, theirs
    found = np.moveaxis(np.asarray(outputs["fpn2"][0]), -1, 0)[:, ::2, ::2]
    assert relative_error(found, data["emb_fp16_stride2"]) <= 5e-4


@pytest.mark.parametrize(("size", "name"), [("t", "tiny"), ("l", "large")])
def test_parameters_are_those_of_the_checkpoint(golden, size, name):
    recorded = json.loads((golden / f"shapes_sam2_hiera_{size}.json").read_text())
    image_path = {k: tuple(v) for k, v in recorded.items() if not k.startswith(VIDEO_ONLY)}
    assert checkpoint_shapes(SAM2_CONFIGS[f"sam2_hiera_{name}"]) == image_path
