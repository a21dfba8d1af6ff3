"""SAM 2's image path without torch: shapes, gradients, batching, bfloat16, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sam2_weights import SMALL, recipe_model, skeleton

from ntt_jax.config import SAM2_CONFIGS, HieraConfig
from ntt_jax.errors import InputError
from ntt_jax.models import platform
from ntt_jax.models.sam2 import ImageFeatures, windows
from ntt_jax.models.sam2.hieradet import Hiera
from ntt_jax.models.sam2.position_encoding import Buffer
from ntt_jax.models.sam2.windows import _attend_rows, _attend_rows_fused, max_pool, window_attention

SIZE = SMALL.image_size


@pytest.fixture(scope="module")
def model():
    return recipe_model(SMALL)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, SIZE, SIZE, 3))


@jax.jit
def encode(model, images):
    return model.encode_image(images)


@jax.jit
def decode(model, features, points=None, labels=None, boxes=None, masks=None):
    return model.decode(features, points, labels, boxes, masks)


@pytest.fixture(scope="module")
def features(model, images):
    return encode(model, images)


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_published_shapes(size):
    """Every published size (2.0 and 2.1 are alike), from shapes alone."""
    config = SAM2_CONFIGS[f"sam2_hiera_{size}"]
    assert SAM2_CONFIGS[f"sam2.1_hiera_{size}"].hiera == config.hiera
    model = skeleton(config)
    shapes = jax.eval_shape(lambda m, x: m.encode_image(x), model, jnp.zeros((2, 1024, 1024, 3)))
    assert shapes.embedding.shape == (2, 64, 64, 256)
    assert [x.shape for x in shapes.high_res] == [(2, 256, 256, 32), (2, 128, 128, 64)]
    logits, ious = jax.eval_shape(
        lambda m, f, p, n: m.decode(f[1], p, n), model, shapes, jnp.zeros((3, 2, 2)), jnp.zeros((3, 2), jnp.int32)
    )
    assert logits.shape == (3, 4, 256, 256) and ious.shape == (3, 4)


def test_intermediates_are_named(model):
    names = jax.eval_shape(lambda m, x: m.forward_image(x), model, jnp.zeros((1, SIZE, SIZE, 3)))
    wanted = {"patch_embed", *(f"block{i}" for i in range(8)), "high_res0", "high_res1"}
    assert set(names) == wanted | {f"{kind}{i}" for kind in ("stage", "fpn") for i in range(4)}


@pytest.mark.parametrize("q_pool", [False, True])
def test_window_attention(q_pool, monkeypatch):
    """Each window by itself, on the CPU path, on the accelerators' path and laid out for a fused kernel."""
    b, h, w, window, heads, d = 2, 8, 12, 4, 3, 5
    qkv = jax.random.normal(jax.random.key(0), (b, h, w, 3 * heads * d))
    found = jax.jit(window_attention, static_argnums=(1, 2), static_argnames="q_pool")(
        qkv, window, heads, q_pool=q_pool
    )
    at_once = _attend_rows(qkv.reshape(b * h // window, window, w, -1), num_heads=heads, q_pool=q_pool)
    np.testing.assert_allclose(found, at_once.reshape(found.shape), atol=1e-6)
    monkeypatch.setattr(windows, "fused_attention_dtype", lambda q, k: q.dtype)
    monkeypatch.setattr(windows, "fused_attention", lambda q, k, v, dtype: jax.nn.dot_product_attention(q, k, v))
    fused = _attend_rows_fused(qkv.reshape(b * h // window, window, w, -1), num_heads=heads, q_pool=q_pool)
    np.testing.assert_allclose(fused, at_once, atol=1e-6)
    q, k, v = jnp.split(qkv[1, 4:8, 8:12], 3, axis=-1)  # one window
    side = 2 if q_pool else 4
    if q_pool:
        q = max_pool(q[None])[0]
    q, k, v = (x.reshape(1, -1, heads, d) for x in (q, k, v))
    expected = jax.nn.dot_product_attention(q, k, v).reshape(side, side, -1)
    np.testing.assert_allclose(found[1, side : 2 * side, 2 * side :], expected, atol=1e-6)


def test_rows_are_worked_on_by_groups(monkeypatch):
    monkeypatch.setattr(platform, "CPU_CHUNK", 8 * 3 * 5)
    x, y = (jax.random.normal(jax.random.key(seed), (2, 16, 3, 5)) for seed in (0, 1))
    found = windows.by_rows(lambda x, y: x - jnp.mean(y, axis=1, keepdims=True), x, y, multiple=8)
    mean = jnp.mean(y.reshape(2, 2, 8, 3, 5), axis=2, keepdims=True)
    np.testing.assert_allclose(found, (x.reshape(2, 2, 8, 3, 5) - mean).reshape(x.shape), atol=1e-6)


def test_encoder_by_rows_equals_the_whole(model, images, features, monkeypatch):
    """Every kind of block (whole windows, padded, over the whole map, pooling), as few rows at a time as it allows."""
    assert {0, 4, 14} <= {block.attn.window_size for block in model.image_encoder.trunk.blocks}
    monkeypatch.setattr(platform, "CPU_CHUNK", 1)
    found = jax.jit(lambda m, x: m.encode_image(x))(model, images)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(features), strict=True):
        assert relative_error(a, b) <= 2e-6


def test_patch_embedding_is_the_convolution(model, images):
    layer = model.image_encoder.trunk.patch_embed
    assert relative_error(layer(images), layer.proj(images)) <= 1e-6


def test_batch_equals_single_images(model, images, features):
    one = jax.jit(lambda m, x: m.encode_image(x))(model, images[1:])
    # Another batch size is another order of sums in the matrix products.
    assert relative_error(one.embedding[0], features[1].embedding) <= 1e-5
    points, labels = jnp.array([[[30.0, 40.0]], [[200.0, 10.0]]]), jnp.ones((2, 1), jnp.int32)
    both = decode(model, features[1], points, labels)
    assert [x.shape for x in both] == [(2, 4, 64, 64), (2, 4)]
    for index in range(2):
        alone = decode(model, features[1:2], points[index : index + 1], labels[index : index + 1])
        assert relative_error(alone[0][0], both[0][index]) <= 1e-5
        assert relative_error(alone[1][0], both[1][index]) <= 1e-6


def test_decode_of_a_batch_by_vmap(model, features):
    points = jax.random.uniform(jax.random.key(1), (2, 3, 1, 2), maxval=SIZE)
    labels = jnp.ones((2, 3, 1), jnp.int32)
    logits, _ = jax.jit(jax.vmap(lambda m, *args: m.decode(*args), in_axes=(None, 0, 0, 0)))(
        model, features, points, labels
    )
    for index in range(2):
        expected, _ = decode(model, features[index], points[index], labels[index])
        assert relative_error(logits[index], expected) <= 1e-5


def test_padding_label_ignores_the_position(model, features):
    labels = jnp.array([[1, -1], [0, -1]])
    points = jnp.array([[[30.0, 40.0], [0.0, 0.0]], [[99.0, 40.0], [0.0, 0.0]]])
    first = decode(model, features[0], points, labels)
    other = decode(model, features[0], points.at[:, 1].set(123.0), labels)
    np.testing.assert_array_equal(first[0], other[0])


def test_box_equals_its_corners_and_a_missing_padding_point(model, features):
    """A box is two points with labels 2 and 3; given as points, a padding point joins them and changes the result."""
    boxes = jnp.array([[20.0, 30.0, 100.0, 90.0]])
    corners = (boxes.reshape(1, 2, 2), jnp.array([[2, 3]]))
    encoder = model.sam_prompt_encoder
    as_box, _ = encoder(boxes=boxes)
    as_points, _ = encoder(*corners)
    assert as_box.shape[1] == 2 and as_points.shape[1] == 3
    np.testing.assert_allclose(as_box, as_points[:, :2], rtol=1e-6)
    no_points = decode(model, features[0], jnp.zeros((1, 0, 2)), jnp.zeros((1, 0), jnp.int32), boxes)
    np.testing.assert_allclose(no_points[1], decode(model, features[0], boxes=boxes)[1], rtol=1e-6)


# One block of each kind: what is compiled twice here (forward and backward) need not be deep.
SHALLOW = dataclasses.replace(
    SMALL, hiera=dataclasses.replace(SMALL.hiera, stages=(1, 1, 2, 1), global_att_blocks=(3,))
)


def loss(model, images):
    """A scalar that every parameter of the image path enters: with and without a mask, and every label."""
    features = model.encode_image(images)
    points = jnp.linspace(5.0, SIZE - 5.0, 2 * 5 * 2).reshape(2, 5, 2)
    labels = jnp.array([[1, 0, -1, 2, 3], [0, 1, 3, 2, -1]])
    masks = jnp.sin(jnp.arange(2 * 64 * 64, dtype=jnp.float32) * 0.1).reshape(2, 64, 64)
    encoder = model.sam_prompt_encoder
    (sparse, no_mask), (_, dense) = encoder(points, labels), encoder(masks=masks)
    outputs = model.sam_mask_decoder(
        features.embedding, encoder.get_dense_pe(), sparse, no_mask + dense, features.high_res
    )
    weights = jnp.cos(jnp.arange(outputs["logits"].size, dtype=jnp.float32)).reshape(outputs["logits"].shape)
    ious, score = outputs["predicted_ious"], outputs["object_score_logits"]
    return jnp.mean(outputs["logits"] * weights) + jnp.sum(ious) + jnp.sum(score)


def test_every_parameter_gets_a_gradient(images):
    """The only tensors without are the fixed projection of positions and `no_mem_embed`, which box masks alone add.

    (A single loss may well miss some: `not_a_point_embed` needs a padded prompt, `no_mask_embed` one without a mask,
    `mask_downscaling` one with a mask, the object score head a loss on its output. This loss has them all.)
    """
    gradients = jax.jit(jax.grad(loss))(recipe_model(SHALLOW), images[:1])
    for path, variable in nnx.to_flat_state(nnx.state(gradients)):
        value = np.asarray(variable[...])
        assert np.isfinite(value).all(), path
        if path[-1] in ("positional_encoding_gaussian_matrix", "no_mem_embed"):
            assert not value.any()
        elif path[-2:] == ("k_proj", "bias"):
            # Adding one vector to every key moves all logits of a query alike: softmax does not see it.
            assert np.abs(value).max() <= 1e-4, path
        else:
            assert np.abs(value).max() > 0, path


def test_the_fixed_projection_is_no_parameter(model):
    buffers = nnx.to_flat_state(nnx.state(model, Buffer))
    assert [path[-1] for path, _ in buffers] == ["positional_encoding_gaussian_matrix"]
    assert len(nnx.to_flat_state(nnx.state(model, nnx.Param))) == len(nnx.to_flat_state(nnx.state(model))) - 1


def test_bfloat16(model, images, features):
    """Kernels and products in bfloat16 (8 bits of precision); norms, tables, outputs and heads stay float32."""
    half = recipe_model(SMALL, dtype=jnp.bfloat16)
    found = encode(half, images)
    assert found.embedding.dtype == jnp.bfloat16
    assert relative_error(found.embedding, features.embedding) <= 0.05
    points, labels = jnp.array([[[30.0, 40.0]], [[200.0, 10.0]]]), jnp.ones((2, 1), jnp.int32)
    logits, ious = decode(half, found[0], points, labels)
    assert logits.dtype == ious.dtype == jnp.float32
    expected = decode(model, features[0], points, labels)
    assert np.abs(ious - expected[1]).max() <= 0.05
    assert np.mean((logits > 0) == (expected[0] > 0)) >= 0.97


def test_bad_shapes_are_one_clear_error(model, images, features):
    point, label = jnp.zeros((2, 1, 2)), jnp.ones((2, 1), jnp.int32)
    one = features[0]
    for call in (
        lambda: model.encode_image(images[0]),
        lambda: model.encode_image(images[:, :128]),
        lambda: model.decode(one),
        lambda: model.decode(one, point),
        lambda: model.decode(one, point, label[:1]),
        lambda: model.decode(one, point[..., :1], label),
        lambda: model.decode(one, point, label, jnp.zeros((3, 4))),
        lambda: model.decode(one, masks=jnp.zeros((2, 32, 32))),
        lambda: model.decode(features, point, label),
        lambda: model.decode(ImageFeatures(one.embedding[:4], one.high_res), point, label),
        lambda: Hiera(HieraConfig(), rngs=nnx.Rngs(0)).forward_features(jnp.zeros((1, 100, 100, 3))),
    ):
        with pytest.raises(InputError, match=r"expected|give points") as error:
            jax.eval_shape(call)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 250},
        {"d_model": 100},
        {"decoder_num_heads": 7},
        {"mask_in_chans": 2},
        {"backbone_stride": 8},
        {"fpn_top_down_levels": (2, 4)},
        {"hiera": {"stages": (1, 2, 4)}},
        {"hiera": {"window_spec": (8, 4, 7, 7)}},
        {"hiera": {"window_spec": (0, 4, 14, 7)}},
        {"hiera": {"global_att_blocks": (3,)}},
        {"hiera": {"num_heads": 5}},
        {"hiera": {"q_pool": 4}},
    ],
)
def test_impossible_configurations_are_one_clear_error(change):
    if "hiera" in change:
        change = {"hiera": dataclasses.replace(SMALL.hiera, **change["hiera"])}
    with pytest.raises(InputError) as error:
        skeleton(dataclasses.replace(SMALL, **change))
    assert "\n" not in str(error.value)
