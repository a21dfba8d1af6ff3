"""DINOv2 against the PyTorch modules, float32, every block. Relative error = max |a - b| / max |b|."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dinov2_weights import checkpoint_shape, recipe_model, skeleton
from flax import nnx

from ntt_jax.config import DINOV2_CONFIGS

pytest.importorskip("torch")
pytest.importorskip("dinov2")
import torch
from oracle_dinov2 import build_meta, build_with_registers, checkpoint_shapes, fill, outputs

large = pytest.mark.large
TOLERANCE = 1e-5


@jax.jit
def features(model, images):
    return model.forward_features(images)


def compare(name: str, shapes: list[tuple[int, int, int]]) -> None:
    """Run both models on random images of each (batch, height, width); print and check the worst stage."""
    config = DINOV2_CONFIGS[name]
    images = [np.random.default_rng(0).standard_normal((*shape, 3)).astype(np.float32) for shape in shapes]
    theirs = fill(build_with_registers(config) if config.num_register_tokens else build_meta(config))
    expected = [outputs(theirs, x) for x in images]
    del theirs
    gc.collect()  # the giant takes 4.5 GB: one at a time
    ours = recipe_model(config)
    for shape, x, want in zip(shapes, images, expected, strict=True):
        found = features(ours, jnp.asarray(x))
        assert found.keys() == want.keys()
        errors = {}
        for stage, value in want.items():
            assert found[stage].shape == value.shape
            errors[stage] = float(np.abs(np.asarray(found[stage]) - value).max() / np.abs(value).max())
        worst = max(errors, key=errors.__getitem__)
        print(f"{name} {shape}: worst {errors[worst]:.1e} at {worst}, norm {errors['norm']:.1e}")
        assert errors[worst] <= TOLERANCE, f"{worst} {errors[worst]:.2e}"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        # At the stored 37 x 37 table, below it, wider and taller.
        ("dinov2_vits14", [(1, 518, 518), (2, 280, 196), (1, 70, 560)]),
        ("dinov2_vits14_reg4", [(1, 518, 518), (2, 280, 196), (1, 70, 560)]),
        pytest.param("dinov2_vitb14", [(1, 224, 224), (1, 280, 196), (1, 518, 518)], marks=large),
        pytest.param("dinov2_vitb14_reg4", [(1, 224, 224), (1, 280, 196), (1, 518, 518)], marks=large),
        pytest.param("dinov2_vitl14", [(1, 224, 224), (1, 280, 196), (1, 518, 518)], marks=large),
        pytest.param("dinov2_vitl14_reg4", [(1, 224, 224), (1, 280, 196)], marks=large),
        pytest.param("dinov2_vitg14", [(1, 224, 224), (1, 280, 196)], marks=large),
        pytest.param("dinov2_vitg14_reg4", [(1, 224, 224)], marks=large),
    ],
)
def test_every_block_equals_pytorch(name, shapes):
    compare(name, shapes)


@pytest.mark.parametrize("name", DINOV2_CONFIGS)
def test_parameters_are_those_of_pytorch(name, monkeypatch):
    """Names and shapes, without memory."""
    config = DINOV2_CONFIGS[name]
    # Both constructors read the drop-path rates out of a tensor, which must therefore hold values.
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        theirs = build_with_registers(config) if config.num_register_tokens else build_meta(config)
    params = nnx.to_flat_state(nnx.state(skeleton(config)))
    assert dict(checkpoint_shape(path, param.shape) for path, param in params) == checkpoint_shapes(theirs)
