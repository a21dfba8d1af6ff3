"""Boxes and masks as prompts: the quick decoders against `Sam2.decode`, which parity tests compare with Meta's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sam2_weights import recipe_model

from ntt_jax.config import HieraConfig, Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.models.sam2 import single_mask
from ntt_jax.models.sam2.box_prompts import corner_points, decode_boxes, decode_masks, without_memory
from ntt_jax.models.sam2.sam2_base import ImageFeatures
from ntt_jax.models.sam2.single_mask import choose_mask

SMALL = Sam2Config("tiny", HieraConfig(16, 1, (1, 1, 2, 1), (3,), (8, 4, 8, 4), (4, 4)), image_size=128, d_model=32)
SIDE = SMALL.image_size


def features() -> ImageFeatures:
    rng = np.random.default_rng(3)
    side, dim = SMALL.embedding_size, SMALL.d_model

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return ImageFeatures(
        draw(side, side, dim), (draw(4 * side, 4 * side, dim // 8), draw(2 * side, 2 * side, dim // 4))
    )


def some_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, of which every third is not there."""
    corners = np.random.default_rng(1).uniform(0, SIDE, (count, 2, 2)).astype(np.float32)
    return np.sort(corners, axis=1).reshape(count, 4), np.arange(count) % 3 != 1


@jax.jit
def plain(model, features, boxes, masks):
    """All four masks of each prompt by the decoder that forms everything."""
    return model.decode(features, *corner_points(boxes), masks=masks)


def close(found, wanted, valid):
    logits, ious = (np.asarray(x) for x in found)
    np.testing.assert_allclose(ious[valid], np.asarray(wanted[1])[valid], atol=1e-6)
    largest = np.abs(np.asarray(wanted[0])).max()
    assert np.abs(logits - np.asarray(wanted[0]))[valid].max() <= 1e-5 * largest
    assert not logits[~valid].any() and not ious[~valid].any()


@pytest.mark.parametrize(
    ("chunk", "mask_chunk", "ambiguous"), [(3, 2, False), pytest.param(4, 1, True, marks=pytest.mark.large)]
)
def test_boxes_equal_the_plain_decoder(monkeypatch, chunk, mask_chunk, ambiguous):
    """7 boxes in chunks that do not divide them; some keep the single mask, some do not."""
    model, image = recipe_model(SMALL), features()
    boxes, valid = some_boxes(7)
    every = plain(model, image, boxes, None)
    single = np.asarray(every[0][:, 0])
    shares = (single > 0.05).sum(axis=(1, 2)) / (single > -0.05).sum(axis=(1, 2))
    monkeypatch.setattr(single_mask, "STABILITY_THRESHOLD", float(np.sort(shares)[2:4].mean()))
    stable = np.asarray(single_mask.is_stable(every[0][:, 0]))
    assert 0 < stable[valid].sum() < valid.sum()
    wanted = choose_mask(*every, ambiguous=ambiguous)
    found = jax.jit(
        lambda m, f, b, v: decode_boxes(m, f, b, v, ambiguous=ambiguous, chunk=chunk, mask_chunk=mask_chunk)
    )(model, image, boxes, valid)
    close(found, wanted, valid)


def test_masks_equal_the_plain_decoder():
    model, image = recipe_model(SMALL), features()
    boxes, valid = some_boxes(5)
    masks = jnp.asarray(np.random.default_rng(2).normal(0, 4, (5, SIDE // 4, SIDE // 4)), jnp.float32)
    wanted = choose_mask(*plain(model, image, boxes, masks), ambiguous=False)
    decode = jax.jit(lambda m, f, x, v, b: decode_masks(m, f, x, v, b, chunk=2))
    close(decode(model, image, masks, valid, boxes), wanted, valid)
    logits, ious = decode(model, image, masks, np.zeros(5, bool), boxes)
    assert not np.any(logits) and not np.any(ious)


def test_boxes_of_another_shape():
    with pytest.raises(InputError, match=r"boxes \[P, 4\]"):
        decode_boxes(recipe_model(SMALL), features(), jnp.zeros((3, 2)), jnp.ones(3, bool))


def test_what_metas_predictor_adds_to_the_embedding():
    model, image = recipe_model(SMALL), features()
    added = without_memory(model.no_mem_embed[...], image)
    wanted = np.asarray(image.embedding) + np.asarray(model.no_mem_embed[...]).reshape(1, 1, -1)
    np.testing.assert_array_equal(added.embedding, wanted)
    assert added.high_res is image.high_res
