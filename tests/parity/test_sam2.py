"""SAM 2's image path layer by layer against Meta's PyTorch modules, float32, the recipe's weights.

Relative error = max |a - b| / max |b|.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sam2_weights import SMALL, checkpoint_shapes, recipe_model

from ntt_jax.config import SAM2_CONFIGS
from ntt_jax.models.sam2.sam2_base import ImageFeatures

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
ImagePath = pytest.importorskip("oracle_sam2").ImagePath

TINY = SAM2_CONFIGS["sam2_hiera_tiny"]
BOUNDS = {"fpn": 2e-5, "high_res": 2e-5, "logits": 1e-4}


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def bound(name: str) -> float:
    return next((value for prefix, value in BOUNDS.items() if name.startswith(prefix)), 1e-5)


def assert_close(found: dict, expected: dict) -> dict[str, float]:
    """Every tensor of the oracle is met by ours within its bound. Returns the errors."""
    errors = {name: relative_error(found[name], value) for name, value in expected.items() if value.size}
    too_far = {name: error for name, error in errors.items() if not error <= bound(name)}
    assert not too_far, too_far
    return errors


def image(config, batch: int = 1) -> np.ndarray:
    """A smooth picture with noise, about as an ImageNet-normalised photo."""
    rng = np.random.default_rng(1)
    size = config.image_size
    y, x = np.meshgrid(*2 * [np.linspace(0, 9, size)], indexing="ij")
    waves = np.stack([np.sin(x + y + c) + np.cos(2 * x - c * y) for c in range(3)], -1)[None]
    return (waves + 0.4 * rng.standard_normal((batch, size, size, 3))).astype(np.float32)


def same_sign(found, expected) -> bool:
    """At most 1e-5 of the pixels differ in sign; in masks of fewer than 1e5 pixels that is one."""
    flipped = np.sum((np.asarray(found) > 0) != (expected > 0))
    return flipped <= max(1, 1e-5 * expected.size)


@jax.jit
def forward_image(model, images):
    outputs = model.forward_image(images)
    return outputs, ImageFeatures(outputs["fpn2"], (outputs["high_res0"], outputs["high_res1"]))


@jax.jit
def forward_sam_heads(model, features, points=None, labels=None, boxes=None, masks=None):
    return model.forward_sam_heads(features, points, labels, boxes, masks)


class Pair:
    """Our model and the oracle on the same picture."""

    def __init__(self, config, batch: int = 1):
        self.config, self.oracle, self.model = config, ImagePath(config), recipe_model(config)
        images = image(config, batch)
        self.outputs, self.features = forward_image(self.model, jnp.asarray(images))
        self.expected = self.oracle.encode(images)

    def check_encoder(self) -> dict[str, float]:
        errors = assert_close(self.outputs, self.expected)
        assert len(errors) == sum(self.config.hiera.stages) + 1 + 4 + 4 + 2
        return errors

    def check_decoder(self, kind: str) -> None:
        given = prompts(kind, self.config)
        one = self.features[:1]
        expected = self.oracle.decode(one.embedding, one.high_res, **given)
        found = forward_sam_heads(self.model, one, **given)
        if "masks" not in given:  # ours stays [1, 1, 1, D]
            found["dense"] = jnp.broadcast_to(found["dense"], expected["dense"].shape)
        assert_close(found, expected)
        assert same_sign(found["logits"], expected["logits"])


@pytest.fixture(scope="module")
def small():
    return Pair(SMALL, batch=2)


@pytest.fixture(scope="module")
def tiny():
    return Pair(TINY)


def test_encoder_small(small):
    small.check_encoder()


def test_encoder_of_other_padding():
    """At 352 pixels every window size pads: 88 and 44 fit 8 and 4 only, 22 -> 28, pooled 11 -> 14."""
    Pair(dataclasses.replace(SMALL, image_size=352)).check_encoder()


def test_encoder_tiny_1024(tiny):
    tiny.check_encoder()


@pytest.mark.large
@pytest.mark.parametrize("size", ["small", "base_plus", "large"])
def test_encoder_1024(size):
    errors = Pair(SAM2_CONFIGS[f"sam2_hiera_{size}"]).check_encoder()
    blocks = max(error for name, error in errors.items() if name.startswith("block"))
    levels = max(error for name, error in errors.items() if name.startswith(("fpn", "high_res")))
    print(f"\nHiera {size}: blocks {blocks:.1e}, levels {levels:.1e}")


def prompts(kind: str, config) -> dict[str, np.ndarray]:
    rng, size, count = np.random.default_rng(2), config.image_size, 5

    def points(n):
        return rng.uniform(0, size, (count, n, 2)).astype(np.float32)

    corner = rng.uniform(0, size / 2, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, size / 2, (count, 2))], axis=1).astype(np.float32)
    side = config.mask_size
    masks = (4 * rng.standard_normal((count, side, side))).astype(np.float32)
    one = np.ones((count, 1), np.int32)
    mixed = np.array([[1, 0, 1], [1, -1, -1], [0, 0, 0], [1, 1, -1], [2, 3, 1]], np.int32)
    return {
        "point": {"points": points(1), "labels": one},
        "points": {"points": points(3), "labels": mixed},
        "box": {"boxes": boxes},
        "box and points": {"points": points(3), "labels": mixed, "boxes": boxes},
        "mask": {"masks": masks},
        "all": {"points": points(3), "labels": mixed, "boxes": boxes, "masks": masks},
    }[kind]


@pytest.mark.parametrize("kind", ["point", "points", "box", "box and points", "mask", "all"])
def test_decoder_small(small, kind):
    small.check_decoder(kind)


def test_decoder_tiny_1024(tiny):
    tiny.check_decoder("points")


def test_whole_image_path_1024(tiny):
    """Image to masks, nothing shared with the oracle on the way."""
    given, theirs = prompts("points", TINY), tiny.expected
    expected = tiny.oracle.decode(theirs["fpn2"], (theirs["high_res0"], theirs["high_res1"]), **given)
    found = forward_sam_heads(tiny.model, tiny.features[:1], **given)
    assert relative_error(found["logits"], expected["logits"]) <= 1e-4
    assert relative_error(found["predicted_ious"], expected["predicted_ious"]) <= 1e-5
    assert same_sign(found["logits"], expected["logits"])


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large", None])
def test_parameters_are_those_of_the_module(size, monkeypatch):
    """Names and shapes of all published sizes (2.0 and 2.1 are alike), from shapes alone."""
    # Hiera reads numbers out of this tensor while it is built, which tensors without storage cannot do.
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args: linspace(*args, device="cpu"))
    config = SAM2_CONFIGS[f"sam2_hiera_{size}"] if size else SMALL
    with torch.device("meta"):
        module = ImagePath(config, seed=None)
    assert checkpoint_shapes(config) == {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    if size:
        assert SAM2_CONFIGS[f"sam2.1_hiera_{size}"] == dataclasses.replace(config, name=f"sam2.1_hiera_{size}")
