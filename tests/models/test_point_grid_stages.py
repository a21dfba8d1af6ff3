"""Where the decoder for a grid of points first differs from the plain one, stage by stage."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from grid_intermediates import STAGES, grid_intermediates
from point_features import random_features
from sam2_weights import SMALL, recipe_model

from ntt_jax.models.sam2.point_grid.decode_grid import grid_points, prepare
from ntt_jax.models.sam2.point_grid.decoder import GridDecoder
from ntt_jax.models.sam2.point_grid.image_side import ImageSide

# What each number of the decoder enters first: of the image's side, of the products of weights, and of the parameters.
OF_THE_IMAGE = {
    "layer0_norm2": ("key0", "value0"),
    "layer0_image_to_token": ("query0",),
    "layer0_keys": ("norm0", "out0"),
    "layer1_norm2": ("key1", "value1", "key1_pe"),
    "layer1_image_to_token": ("query1", "query1_pe"),
    "layer1_keys": ("norm1", "norm1_d", "out0_1", "out1_1"),
    "iou_token": ("key2", "value2", "key2_pe"),
    "upscaled_half": ("upscaled", "feat_s1"),
    "upscaled_embedding": ("feat_s0",),
}
OF_THE_WEIGHTS = {
    "layer0_keys": ("gram0",),
    "layer1_norm2": ("key1_rows", "value1_rows", "value1_b1"),
    "layer1_image_to_token": ("query1_rows",),
    "layer1_keys": ("gram", "d_rows", "d"),
    "iou_token": ("key2_rows", "key2_d", "value2_rows", "value2_d", "value2_b2"),
    "upscaled_half": ("upscaled_rows", "upscaled_d", "upscaled_b2"),
}
IN_A_LAYER = {
    "norm1": ("self_attn/q_proj/kernel", "self_attn/v_proj/bias", "norm1/scale"),
    "norm2": ("cross_attn_token_to_image/q_proj/kernel", "cross_attn_token_to_image/out_proj/kernel", "norm2/bias"),
    "queries": ("mlp/layers/0/kernel", "mlp/layers/1/bias", "norm3/scale"),
    "image_to_token": ("cross_attn_image_to_token/k_proj/kernel", "cross_attn_image_to_token/v_proj/kernel"),
    "keys": ("norm4/scale", "norm4/bias"),
}
OF_THE_HEADS = {
    "iou_token": (
        "transformer/final_attn_token_to_image/q_proj/kernel",
        "transformer/final_attn_token_to_image/out_proj/bias",
        "transformer/norm_final_attn/scale",
    ),
    "predicted_ious": ("iou_prediction_head/layers/0/kernel",),
    "hypernetworks": (
        "output_hypernetworks_mlps/{best}/layers/2/kernel",
        "output_hypernetworks_mlps/{best}/layers/0/bias",
    ),
    "upscaled_half": ("output_upscaling/1/scale", "output_upscaling/1/bias"),
    "upscaled_embedding": ("output_upscaling/3/kernel", "output_upscaling/3/bias"),
}
NO_FAULT = {name: 1.0 for table in (OF_THE_IMAGE, OF_THE_WEIGHTS) for names in table.values() for name in names}
FAULT = 3.0  # some numbers are small beside those that they are added to
BOUND = 1e-5  # of the largest number of a stage; two orders of summation differ by up to 3e-6
POINTS = grid_points(SMALL.image_size, 2)


@jax.jit
def plain_stages(model, features):
    """Every stage by the plain decoder, of the best of masks 1..3 where it has all four; and which one that is."""
    found = model.forward_sam_heads(features, POINTS[:, None], jnp.ones((len(POINTS), 1), jnp.int32))
    best = 1 + jnp.argmax(found["predicted_ious"][:, 1:], axis=1)
    for name in ("mask_tokens", "hypernetworks", "logits"):
        found[name] = found[name][jnp.arange(len(best)), best]
    return found, best


@partial(jax.jit, static_argnames="block")
def grid_stages(model, other, features, best, factors, block=None):
    """Every stage by the grid's decoder, with the parameters of `other` once `model` has prepared image and tokens.

    factors: for attributes of `GridDecoder` and fields of `ImageSide`, by name.
    """
    image, side, tokens = prepare(GridDecoder(model.sam_mask_decoder), model, features, POINTS, block)
    grid = GridDecoder(other.sam_mask_decoder)
    for name, factor in factors.items():
        if name in side._fields:
            side = side._replace(**{name: getattr(side, name) * factor})
        else:
            setattr(grid, name, getattr(grid, name) * factor)
    return grid_intermediates(grid, image, side, tokens, best)


def errors(found, expected) -> dict[str, float]:
    assert set(found) == set(STAGES)
    out = {}
    for name in STAGES:
        ours, theirs = np.asarray(found[name]), np.asarray(expected[name])
        assert ours.shape == theirs.shape, name
        out[name] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return out


def first_difference(found, expected) -> str | None:
    """The first stage at which the two differ by more than rounding."""
    return next((name for name, error in errors(found, expected).items() if not error <= BOUND), None)


@pytest.fixture(scope="module")
def model():
    return recipe_model(SMALL)


@pytest.fixture(scope="module")
def features():
    return random_features(0)


@pytest.fixture(scope="module")
def expected(model, features):
    return plain_stages(model, features)


@pytest.mark.parametrize("block", [None, 4 * SMALL.embedding_size])
def test_every_stage_equals_the_plain_decoder(model, features, expected, block):
    """The image at once, and in blocks."""
    stages, best = expected
    found = grid_stages(model, model, features, best, NO_FAULT, block=block)
    assert first_difference(found, stages) is None, errors(found, stages)


def cases(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(name, stage) for stage, names in table.items() for name in names]


def test_the_whole_side_of_the_image_is_listed():
    assert {name for name, _ in cases(OF_THE_IMAGE)} == set(ImageSide._fields)


@pytest.mark.parametrize(("name", "stage"), cases(OF_THE_IMAGE) + cases(OF_THE_WEIGHTS))
def test_a_wrong_product_is_found_where_it_enters(model, features, expected, name, stage):
    stages, best = expected
    found = grid_stages(model, model, features, best, NO_FAULT | {name: FAULT})
    assert first_difference(found, stages) == stage


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        (f"transformer/layers/{layer}/{path}", f"layer{layer}_{stage}")
        for layer in (0, 1)
        for path, stage in cases(IN_A_LAYER)
    ]
    + cases(OF_THE_HEADS),
)
def test_a_wrong_parameter_is_found_where_it_enters(model, features, expected, path, stage):
    stages, best = expected
    state = nnx.to_flat_state(nnx.state(model))
    index = ["/".join(map(str, place)) for place, _ in state].index(f"sam_mask_decoder/{path.format(best=best[0])}")
    pairs = list(state)
    place, variable = pairs[index]
    pairs[index] = place, variable.replace(variable[...] * FAULT)
    other = nnx.merge(nnx.graphdef(model), nnx.from_flat_state(pairs))
    found = grid_stages(model, other, features, best, NO_FAULT)
    assert first_difference(found, stages) == stage
