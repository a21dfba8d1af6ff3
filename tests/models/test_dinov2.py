import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dinov2_weights import checkpoint_shape, recipe_model, skeleton
from flax import nnx

from ntt_jax.config import DINOV2_CONFIGS, DinoV2Config
from ntt_jax.errors import InputError
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.layers import Mlp

TINY = DinoV2Config(name="tiny", embed_dim=32, depth=1, num_heads=4, image_size=70, input_size=70)
TINY_REG = dataclasses.replace(TINY, num_register_tokens=4, interpolate_offset=0.0, interpolate_antialias=True)
TINY_SWIGLU = dataclasses.replace(TINY, ffn_layer="swiglu")


def random_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((*shape, 3)), jnp.float32)


def fresh_model(config: DinoV2Config) -> DinoVisionTransformer:
    return jax.jit(lambda: DinoVisionTransformer(config, rngs=nnx.Rngs(0)))()


@jax.jit
def features(model, images):
    return model.forward_features(images)


@jax.jit
def patches(model, images):
    return model(images)


@pytest.mark.parametrize("name", DINOV2_CONFIGS)
def test_every_published_size_has_the_right_shapes(name):
    """Shapes only, no arithmetic."""
    config = DINOV2_CONFIGS[name]
    model = skeleton(config)
    outputs = jax.eval_shape(features, model, jax.ShapeDtypeStruct((2, 280, 196, 3), jnp.float32))
    assert set(outputs) == {"tokens0", *(f"block{i}" for i in range(config.depth)), "norm"}
    tokens = 1 + config.num_register_tokens + 20 * 14
    assert {o.shape for o in outputs.values()} == {(2, tokens, config.embed_dim)}
    one = skeleton(dataclasses.replace(config, depth=1))  # what follows the blocks does not know how many they are
    found = jax.eval_shape(patches, one, jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.bfloat16))
    assert (found.shape, found.dtype) == ((1, 37, 37, config.embed_dim), jnp.float32)


@pytest.mark.parametrize(("name", "file"), [("dinov2_vits14", "small"), ("dinov2_vitl14", "large")])
def test_parameters_are_those_of_the_checkpoint(golden, name, file):
    recorded = json.loads((golden / f"shapes_dinov2_vit_{file}.json").read_text())
    params = nnx.to_flat_state(nnx.state(skeleton(DINOV2_CONFIGS[name])))
    assert dict(checkpoint_shape(p, v.shape) for p, v in params) == {k: tuple(v) for k, v in recorded.items()}


@pytest.mark.parametrize("config", [TINY, TINY_REG, TINY_SWIGLU], ids=["plain", "registers", "swiglu"])
def test_patch_tokens_are_the_normalised_ones_row_by_row(config):
    model, images = recipe_model(config), random_images(2, 42, 56)
    tokens = features(model, images)["norm"]
    found = patches(model, images)
    assert found.shape == (2, 3, 4, 32)
    first = 1 + config.num_register_tokens
    # Two compilations of one computation: the last bit may differ.
    np.testing.assert_allclose(found[1, 2, 1], tokens[1, first + 2 * 4 + 1], atol=2e-6)


@pytest.mark.parametrize("config", [TINY, TINY_REG], ids=["plain", "registers"])
def test_position_table_is_used_as_it_is_at_its_own_size_only(config):
    """A 0.1 offset would move the table even at its own size; Meta skips the resize there."""
    model = recipe_model(config)
    model.patch_embed.proj.kernel[...] = jnp.zeros_like(model.patch_embed.proj.kernel[...])
    model.patch_embed.proj.bias[...] = jnp.zeros_like(model.patch_embed.proj.bias[...])
    first = 1 + config.num_register_tokens
    table = model.pos_embed[:, 1:]

    def positions(height, width):
        return features(model, random_images(1, height, width))["tokens0"][:, first:]

    np.testing.assert_array_equal(positions(70, 70), table)
    # As many patches in another arrangement: not the same table.
    assert positions(14, 350).shape == table.shape
    assert not np.allclose(positions(14, 350), table, atol=0.01)
    # A constant table stays constant at any size: weights of every patch sum to 1.
    model.pos_embed[...] = jnp.ones_like(model.pos_embed[...])
    np.testing.assert_allclose(positions(140, 28), 1.0, atol=1e-6)


def test_registers_carry_no_position():
    model, images = recipe_model(TINY_REG), random_images(1, 70, 70)
    tokens = features(model, images)["tokens0"]
    np.testing.assert_array_equal(tokens[:, 1:5], model.register_tokens[...])
    np.testing.assert_array_equal(tokens[:, :1], model.cls_token[...] + model.pos_embed[:, :1])


def test_jit_vmap_and_batch_agree():
    model, images = recipe_model(TINY_REG), random_images(3, 70, 42)
    expected = model(images)
    one_by_one = jnp.concatenate([patches(model, images[i : i + 1]) for i in range(3)])
    mapped = jax.jit(jax.vmap(lambda model, x: model(x[None])[0], in_axes=(None, 0)))(model, images)
    for found in (one_by_one, mapped):
        np.testing.assert_allclose(found, expected, atol=2e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("config", [TINY, TINY_REG, TINY_SWIGLU], ids=["plain", "registers", "swiglu"])
def test_every_parameter_but_the_mask_token_is_trained(config):
    """From a fresh model: the default initial weights pass gradient to everything."""
    model, images = fresh_model(config), random_images(2, 56, 70)

    def loss(model):
        tokens = features(model, images)["norm"]
        return jnp.mean((tokens - jnp.roll(tokens, 1, -1)) ** 2 * jnp.arange(1.0, 33.0).reshape(1, 1, 32))

    for path, gradient in nnx.to_flat_state(nnx.state(jax.jit(jax.grad(loss))(model))):
        largest = float(jnp.abs(gradient[...]).max())
        assert np.isfinite(largest)
        assert (largest == 0) == (path == ("mask_token",)), path


def test_gradient_equals_finite_differences():
    model, images = recipe_model(TINY), random_images(1, 28, 28)
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(images.shape), jnp.float32)
    _, derivative = jax.jvp(lambda x: patches(model, x), (images,), (direction,))
    step = 1e-2
    difference = (patches(model, images + step * direction) - patches(model, images - step * direction)) / (2 * step)
    # Truncation step^2 and rounding 1e-7 / step: about 1e-4 each of values of order 1.
    np.testing.assert_allclose(derivative, difference, atol=2e-3)


def test_bfloat16_stays_close_and_keeps_norms_float32():
    model32 = recipe_model(TINY_REG)
    model16 = nnx.eval_shape(lambda: DinoVisionTransformer(TINY_REG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    cast = jax.tree.map(lambda new, old: old.astype(new.dtype), nnx.state(model16), nnx.state(model32))
    nnx.update(model16, cast)
    dtypes = {p: v.dtype for p, v in nnx.to_flat_state(nnx.state(model16))}
    for path, dtype in dtypes.items():
        matrix = path[-2] in ("proj", "qkv", "fc1", "fc2") if len(path) > 1 else False
        assert dtype == (jnp.bfloat16 if matrix else jnp.float32), path
    images = random_images(1, 70, 70)
    found, expected = patches(model16, images), patches(model32, images)
    assert found.dtype == jnp.float32
    # 8 bits of mantissa: 0.4 % per product.
    error = float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
    assert 1e-4 < error < 2e-2


def test_initial_weights():
    """Meta's, but LayerScale: linear kernels and table at deviation 0.02, tokens near zero, factors 1."""
    model = fresh_model(dataclasses.replace(TINY_REG, embed_dim=128, depth=2))
    block = model.blocks[1]
    assert isinstance(block.mlp, Mlp)
    for kernel in (block.attn.qkv.kernel, block.attn.proj.kernel, block.mlp.fc1.kernel, model.pos_embed):
        assert abs(float(jnp.std(kernel[...])) - 0.02) < 0.002
    assert not np.allclose(block.attn.proj.kernel[...], model.blocks[0].attn.proj.kernel[...])
    assert float(jnp.abs(model.cls_token[...]).max()) < 1e-5
    assert float(jnp.abs(model.register_tokens[...]).max()) < 1e-5
    np.testing.assert_array_equal(block.ls1.gamma[...], np.ones(128))
    np.testing.assert_array_equal(model.mask_token[...], np.zeros((1, 128)))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (jnp.zeros((1, 70, 71, 3)), "multiples of 14, found 70 x 71"),
        (jnp.zeros((1, 13, 14, 3)), "multiples of 14"),
        (jnp.zeros((1, 0, 14, 3)), r"\[B, H, W, 3\], found \[1, 0, 14, 3\]"),
        (jnp.zeros((70, 70, 3)), r"found \[70, 70, 3\]"),
        (jnp.zeros((1, 3, 70, 70)), r"found \[1, 3, 70, 70\]"),
        (jnp.zeros((1, 70, 70, 3), jnp.uint8), "floating-point values, found uint8"),
    ],
)
def test_bad_images_are_named(images, words):
    model = skeleton(TINY)
    with pytest.raises(InputError, match=words):
        jax.eval_shape(patches, model, images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 5}, "embed_dim 32 does not divide by num_heads 5"),
        ({"image_size": 71}, "image_size 71 does not divide by patch_size 14"),
        ({"ffn_layer": "gelu"}, 'ffn_layer must be "mlp" or "swiglu", found \'gelu\''),
        ({"depth": 0}, "must be positive"),
        ({"mlp_ratio": 0.0}, "must be positive"),
    ],
)
def test_bad_configurations_are_named(change, words):
    with pytest.raises(InputError, match=words):
        skeleton(dataclasses.replace(TINY, **change))
