"""`ntt_jax.config`: names of arithmetic."""

import jax
import jax.numpy as jnp
import pytest

from ntt_jax.config import DTYPES, arithmetic


@pytest.mark.parametrize("name", DTYPES)
def test_every_name_is_a_type_of_kernels_and_a_precision_of_products_that_jax_knows(name):
    kernels, precision = arithmetic(name)
    product = jax.jit(lambda x: x @ x).trace
    with jax.default_matmul_precision(precision):
        (equation,) = product(jnp.ones((2, 2), kernels)).jaxpr.eqns[-1:]
    wanted = {"float32": "HIGHEST", "bfloat16": "HIGHEST", "tensorfloat32": "HIGH"}[name]
    assert str(jnp.dtype(kernels)) == ("bfloat16" if name == "bfloat16" else "float32")
    assert wanted in str(equation.params["precision"])
