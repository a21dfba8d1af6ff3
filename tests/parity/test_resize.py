"""Resizing against torch and against PIL themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.images.resize import antialias_resize, resize_host, resize_images, resize_matrix

torch = pytest.importorskip("torch")

SIZES = [(7, 9, 13, 4), (1, 1, 5, 5), (256, 256, 480, 640), (256, 256, 100, 37), (33, 50, 1, 1), (64, 3, 8000, 3)]


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
@pytest.mark.parametrize(
    ("method", "antialias"), [("bilinear", False), ("bicubic", False), ("bilinear", True), ("bicubic", True)]
)
def test_tables_equal_torch_in_float64(h, w, height, width, method, antialias):
    x = np.random.default_rng(h + width).standard_normal((h, w))
    want = torch.nn.functional.interpolate(
        torch.tensor(x)[None, None], size=(height, width), mode=method, align_corners=False, antialias=antialias
    )[0, 0].numpy()
    np.testing.assert_allclose(resize_host(x, (height, width), method, antialias), want, rtol=0, atol=1e-12)
    rows, columns = resize_matrix(height, h, method, antialias), resize_matrix(width, w, method, antialias)
    np.testing.assert_allclose(rows @ x @ columns.T, want, rtol=0, atol=1e-12)


def test_nearest_equals_torch():
    x = np.arange(518.0)
    for out in (37, 16, 518, 700, 1):
        want = torch.nn.functional.interpolate(torch.tensor(x)[None, None], size=out, mode="nearest")[0, 0].numpy()
        np.testing.assert_array_equal(resize_matrix(out, 518, "nearest") @ x, want)


def test_device_resizes_equal_torch():
    x = np.random.default_rng(0).random((2, 60, 41, 3), np.float32)
    channels_first = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64)
    want = torch.nn.functional.interpolate(channels_first, size=(37, 90), mode="bicubic", align_corners=False)
    found = resize_images(jnp.asarray(x), (37, 90), "bicubic")
    np.testing.assert_allclose(found, want.numpy().transpose(0, 2, 3, 1), rtol=0, atol=2e-6)
    want = torch.nn.functional.interpolate(
        channels_first, size=(25, 41), mode="bilinear", align_corners=False, antialias=True
    )
    found = antialias_resize(jnp.asarray(x), jnp.arange(25), 25, axis=1)
    np.testing.assert_allclose(found, want.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-6)
