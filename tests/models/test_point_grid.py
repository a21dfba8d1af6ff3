import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_features import random_features
from sam2_weights import SMALL, recipe_model

from ntt_jax.errors import InputError
from ntt_jax.models.sam2.point_grid.decode_grid import decode_grid, grid_points


@jax.jit
def decode_plainly(model, features, points):
    return model.decode(features, points[:, None], jnp.ones((points.shape[0], 1), jnp.int32))


def plain(model, features, points):
    """The best of masks 1..3 by the decoder that forms everything."""
    logits, ious = decode_plainly(model, features, points)
    best = 1 + np.argmax(np.asarray(ious)[:, 1:], axis=1)
    rows = np.arange(len(best))
    return np.asarray(logits)[rows, best], np.asarray(ious)[rows, best]


@pytest.mark.parametrize(("chunk", "mask_chunk", "block"), [(1, 1, None), (5, 2, 1), (16, 16, None), (8, 2, 16)])
def test_equals_the_plain_decoder(chunk, mask_chunk, block):
    """16 points in chunks that do and do not divide them, about half above the threshold; the image in blocks."""
    model, features, points = recipe_model(SMALL), random_features(0), grid_points(SMALL.image_size, 4)
    logits, ious = plain(model, features, points)
    threshold = float(np.median(ious))
    found = jax.jit(
        lambda m, f, p: decode_grid(
            m, f, p, pred_iou_threshold=threshold, chunk=chunk, mask_chunk=mask_chunk, block=block
        )
    )(model, features, points)
    masks, predicted, valid = map(np.asarray, found)
    np.testing.assert_allclose(predicted, ious, atol=1e-6)
    np.testing.assert_array_equal(valid, ious > threshold)
    assert 0 < valid.sum() < len(valid)
    # Two orders of summation in float32: 1e-6 of the largest logit.
    assert np.abs(masks - logits)[valid].max() <= 3e-6 * np.abs(logits).max()
    assert not masks[~valid].any()


def test_bfloat16_stays_close():
    model, features, points = recipe_model(SMALL), random_features(1), grid_points(SMALL.image_size, 4)
    low = recipe_model(SMALL, dtype=jnp.bfloat16)
    decode = jax.jit(lambda m, f, p: decode_grid(m, f, p, pred_iou_threshold=-1.0))
    logits, ious, _ = map(np.asarray, decode(model, features, points))
    rough, rough_ious, _ = map(np.asarray, decode(low, features, points))
    assert np.abs(rough_ious - ious).max() < 0.02
    both, either = np.sum((rough > 0) & (logits > 0)), np.sum((rough > 0) | (logits > 0))
    assert both / either > 0.95


def test_no_point_passes():
    model, features = recipe_model(SMALL), random_features(2)
    logits, _, valid = decode_grid(model, features, grid_points(SMALL.image_size, 2), pred_iou_threshold=2.0)
    assert not valid.any() and not logits.any()


def test_grid_is_x_major_with_half_pixel():
    points = np.asarray(grid_points(1024, 32))
    assert points.shape == (1024, 2)
    np.testing.assert_allclose(points[0], [0.5, 0.5])
    np.testing.assert_allclose(points[1], [0.5, 33.5])
    np.testing.assert_allclose(points[-1], [1023.5, 1023.5])


def test_refuses_what_it_cannot_do():
    model, features = recipe_model(SMALL), random_features(0)
    with pytest.raises(InputError, match=r"points \[P, 2\]"):
        decode_grid(model, features, jnp.zeros((3, 1, 2)), pred_iou_threshold=0.4)
    deep = recipe_model(dataclasses.replace(SMALL, decoder_depth=3))
    with pytest.raises(InputError, match="decoder_depth"):
        decode_grid(deep, features, jnp.zeros((3, 2)), pred_iou_threshold=0.4)
