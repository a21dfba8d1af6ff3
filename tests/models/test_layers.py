import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.models import attention as attention_module
from ntt_jax.models.attention import attention
from ntt_jax.models.layers import LayerNorm, gelu


def exact_gelu(x: float) -> float:
    return 0.5 * x * math.erfc(-x / math.sqrt(2))


def test_gelu_is_exact_to_float32():
    """The tanh form would be off by 4.7e-4."""
    x = np.linspace(-9, 9, 100_001).astype(np.float32)
    expected = np.array([exact_gelu(float(v)) for v in x])
    error = np.abs(np.asarray(jax.jit(gelu)(x)) - expected) / np.maximum(1, np.abs(x))
    assert error.max() <= 3e-7


def test_gelu_far_out_and_derivative():
    np.testing.assert_array_equal(gelu(jnp.array([-1e30, -50.0, 0.0, 50.0, 1e30])), np.float32([0, 0, 0, 50, 1e30]))
    x = np.linspace(-6, 6, 201)
    expected = [0.5 * math.erfc(-v / math.sqrt(2)) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in x]
    found = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=6e-7)


def test_gelu_of_bfloat16_rounds_once():
    x = jnp.linspace(-5, 5, 1001, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_layer_norm_against_float64(mean):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 5, 96)) + mean).astype(np.float32)
    scale, bias = rng.standard_normal((2, 96)).astype(np.float32)
    norm = LayerNorm(96, rngs=None)  # type: ignore[arg-type]
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    y = x.astype(np.float64)
    y = y - y.mean(-1, keepdims=True)
    expected = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * scale + bias
    # One unit in the last place of the input is mean * 6e-8.
    np.testing.assert_allclose(jax.jit(lambda n, x: n(x))(norm, x), expected, atol=4e-6 + mean * 3e-7)


# Below and above the number of logits from which the CPU takes one head at a time, and one with its queries in parts.
@pytest.mark.parametrize(("n", "m"), [(40, 70), (500, 600), (1100, 2000)])
def test_attention_against_float64(n, m):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, length, 3, 16)).astype(np.float32) for length in (n, m, m))
    logits = np.einsum("bnhd,bmhd->bhnm", q.astype(np.float64), k) / 4
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), expected, atol=2e-6)


@pytest.mark.parametrize("logits", [520 * 520, 520 * 130])
def test_attention_in_parts_has_the_same_gradient(logits, monkeypatch):
    from ntt_jax.models.attention import _attention_cpu, _attention_einsum

    monkeypatch.setattr(attention_module, "CPU_LOGITS", logits)
    rng = np.random.default_rng(0)
    q, k, v, weight = (jnp.asarray(rng.standard_normal((1, 520, 2, 8)), jnp.float32) for _ in range(4))
    by_head, at_once = (
        jax.jit(jax.grad(lambda q, k, v, f=f: jnp.sum(f(q, k, v) * weight), argnums=(0, 1, 2)))(q, k, v)
        for f in (_attention_cpu, _attention_einsum)
    )
    for a, b in zip(by_head, at_once, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()))


@pytest.fixture
def ampere(monkeypatch):
    """As if a GPU with cuDNN's fused attention were the default device, for what only chooses."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention_module, "_has_fused_attention", lambda: True)


def test_fused_attention_only_where_it_rounds_no_more_than_the_products(ampere):
    def chosen(dtype, dim=64, tokens=64):
        q = jnp.zeros((1, tokens, 2, dim), dtype)
        return attention_module.fused_attention_dtype(q, q)

    assert chosen(jnp.bfloat16) == jnp.bfloat16
    assert chosen(jnp.bfloat16, dim=72) == jnp.bfloat16
    assert chosen(jnp.float32) is None
    with jax.default_matmul_precision("tensorfloat32"):
        assert chosen(jnp.float32) == jnp.float16
    # What the kernel cannot do, and what is too small to be worth it.
    assert chosen(jnp.bfloat16, dim=36) is None
    assert chosen(jnp.bfloat16, dim=136) is None
    assert chosen(jnp.bfloat16, tokens=8) is None


def test_no_fused_attention_on_a_cpu():
    q = jnp.zeros((1, 64, 2, 64), jnp.bfloat16)
    assert jax.default_backend() != "cpu" or attention_module.fused_attention_dtype(q, q) is None


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel needs a GPU")
@pytest.mark.parametrize("dtype, bound", [(jnp.bfloat16, 1e-2), (jnp.float16, 1e-3)])
def test_fused_attention_against_float32(dtype, bound):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 1370, 4, 64))
    exact = attention_module._attention_einsum(q, k, v)
    found = attention_module.fused_attention(q, k, v, dtype)
    assert jnp.linalg.norm(found - exact) <= bound * jnp.linalg.norm(exact)
