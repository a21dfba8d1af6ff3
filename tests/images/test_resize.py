import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images import resize
from ntt_jax.images.resize import antialias_resize, pil_resize_bicubic, resize_host, resize_matrix, resize_taps


@functools.partial(jax.jit, static_argnames=("rows", "in_size"))
def traced_matrix(size, rows, in_size):
    return antialias_resize(jnp.eye(in_size), jnp.arange(rows), size, axis=0)


@pytest.mark.parametrize("size", [1, 2, 37, 100, 255, 256, 257, 480, 640, 4001, 8000])
def test_taps_for_a_size_that_is_data(size):
    """One program for all sizes; every weight within one rounding of float64, at 8000 as at 1."""
    found = np.asarray(traced_matrix(jnp.int32(size), 8003, 256))
    np.testing.assert_allclose(found[:size], resize_matrix(size, 256, "bilinear", True), rtol=0, atol=1.2e-7)
    assert not found[size:].any()
    known = antialias_resize(jnp.eye(256), jnp.arange(min(size, 50)), size, axis=0)
    np.testing.assert_array_equal(known, found[: min(size, 50)])


PIL_SHAPES = [
    ((1, 1), (7, 5)),
    ((7, 5), (1, 1)),
    ((480, 640), (1024, 1024)),
    ((1500, 900), (512, 256)),
    ((1, 900), (64, 64)),
    ((513, 300), (300, 513)),
    ((300, 513), (513, 300)),
    ((3000, 17), (100, 200)),
    ((3, 4000), (64, 64)),
    ((64, 64), (64, 64)),
    ((64, 30), (64, 60)),
]


@pytest.mark.parametrize(("shape", "size"), PIL_SHAPES)
def test_pil_bit_for_bit(shape, size):
    image = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[: shape[0] // 2] = np.where(image[: shape[0] // 2] > 127, 255, 0)  # overshoots are clipped, twice
    want = Image.fromarray(image)
    for step in ((size[1], shape[0]), size[::-1]):
        want = want.resize(step, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pil_resize_bicubic(jnp.asarray(image), size), np.asarray(want))


def test_bad_arguments():
    with pytest.raises(InputError, match="at least 1"):
        resize_taps(0, 5, "bilinear")
    with pytest.raises(InputError, match="nearest"):
        resize_taps(3, 5, "cubic")
    with pytest.raises(InputError, match="uint8"):
        pil_resize_bicubic(jnp.zeros((4, 4, 3)), (2, 2))


@pytest.mark.parametrize("chunk", [1, 1000, 2**20])
def test_how_many_rows_are_resized_at_once_is_of_no_consequence(monkeypatch, chunk):
    """Bit for bit."""
    image = np.random.default_rng(0).standard_normal((60, 50, 3)).astype(np.float32)
    cases = [((90, 200), "bilinear", False), ((31, 20), "bilinear", True), ((70, 33), "bicubic", False)]
    expected = [resize_host(image, *case) for case in cases]
    monkeypatch.setattr(resize, "_HOST_CHUNK", chunk)
    for case, want in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(resize_host(image, *case), want)
