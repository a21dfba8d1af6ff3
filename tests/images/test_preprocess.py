import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    crop_box,
    encoder_input,
    mask_to_grid,
    reference_crop,
    resize_for_sam,
)
from ntt_jax.images.resize import resize_host


def test_crop_box_truncates_then_clips():
    # Corners (10, 20, 60, 120): side 120, centre (35, 70).
    assert crop_box(500, 500, (10.9, 20.9, 49.9, 99.9)) == (0, 10, 95, 130)
    assert crop_box(100, 80, (10.9, 20.9, 49.9, 99.9)) == (0, 10, 80, 100)
    assert crop_box(500, 500, (101, 201, 31, 31)) == (97, 197, 135, 235)  # odd sides: a half centre, 18.6 each way


@pytest.mark.parametrize(
    "box",
    [(5, 5, 0, 4), (5, 5, 0.5, 9), (50, 5, 4, 4), (-90, 5, 20, 4), (float("nan"), 1, 2, 2), (1, 2, 3), (5, 5, -3, 9)],
)
def test_degenerate_boxes(box):
    with pytest.raises(InputError, match="reference box"):
        reference_crop(np.zeros((20, 20, 3), np.uint8), np.ones((20, 20), bool), box, 28)


@pytest.mark.parametrize("side", [1, 2])
def test_reference_crop_of_a_tiny_image(side):
    image, mask = np.full((side, side, 3), 255, np.uint8), np.ones((side, side), bool)
    crop, soft = reference_crop(image, mask, (0, 0, side, side), 14)
    assert crop.shape == (14, 14, 3) and crop.dtype == np.float32
    white = (1 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(crop, np.broadcast_to(white, crop.shape), rtol=1e-6)
    np.testing.assert_array_equal(soft, np.ones((14, 14), np.float32))


def test_wrong_types():
    with pytest.raises(InputError, match="uint8"):
        resize_for_sam(np.zeros((4, 4, 3)), 8)
    with pytest.raises(InputError, match="uint8"):
        resize_for_sam(np.zeros((4, 4), np.uint8), 8)
    with pytest.raises(InputError, match="like the image"):
        reference_crop(np.zeros((9, 9, 3), np.uint8), np.ones((9, 8), bool), (0, 0, 5, 5), 14)


def test_encoder_input_is_bicubic_then_normalised():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = encoder_input(jnp.asarray(images), 28)
    for image, got in zip(images, found, strict=True):
        want = (resize_host(image / 255.0, (28, 28), "bicubic") - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # float32 of values up to 3


def test_mask_to_grid_takes_the_floor():
    mask = np.arange(100.0).reshape(10, 10)
    np.testing.assert_array_equal(mask_to_grid(mask, 3), mask[[0, 3, 6]][:, [0, 3, 6]])
