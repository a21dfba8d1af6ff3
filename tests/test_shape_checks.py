"""The annotations of functions over arrays are checked in these tests: that they would be heard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("beartype")

from jaxtyping import Float
from shape_checks import held

from ntt_jax.detection.nms import mask_boxes
from ntt_jax.errors import InputError


def scaled(x: Float[jax.Array, "n c"], factors: Float[jax.Array, " n"] | None = None) -> Float[jax.Array, "n c"]:
    if x.shape[0] == 3:
        raise InputError("three rows")
    return x.T if factors is None else x * factors[:, None]


def test_what_does_not_fit_is_named():
    check = held(scaled)
    check(jnp.ones((2, 2)))
    check(np.ones((2, 5), np.float32), jnp.ones(2))
    for args, message in (
        ((jnp.ones((2, 5)),), r"scaled: return is float32\[5, 2\], annotated as .*n c"),
        ((jnp.ones((2, 5)), jnp.ones(1)), r"scaled: factors is float32\[1\]"),
        ((jnp.ones((2, 2), jnp.int32),), r"scaled: x is int32\[2, 2\]"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(*args)
    with pytest.raises(InputError, match="three rows"):  # what it refuses by itself comes first
        check(jnp.ones((3, 1)), jnp.ones(7))
    with pytest.raises(AssertionError, match="return"):  # also while it is traced
        jax.eval_shape(check, jnp.ones((2, 5)))


def test_the_package_is_checked():
    assert mask_boxes(jnp.ones((2, 3, 4))).shape == (2, 4)
    with pytest.raises(AssertionError, match=r"nms\.mask_boxes: mask_logits is int32\[2, 3, 4\]"):
        mask_boxes(jnp.ones((2, 3, 4), jnp.int32))
