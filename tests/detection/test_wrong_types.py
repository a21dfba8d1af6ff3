"""What people hand over by mistake is named in one line."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import ntt_jax
from ntt_jax.errors import InputError

FEATURES, LOGITS = np.zeros((2, 2, 4), np.float32), np.zeros((1, 8, 8), np.float32)
IOUS, PROTOTYPES = np.ones(1, np.float32), np.eye(2, 4, dtype=np.float32)
MEMORY = ntt_jax.Memory(PROTOTYPES, PROTOTYPES[:, None], np.ones((2, 1), bool))
WRONG = {
    "Image": Image.new("RGB", (8, 8)),
    "Path": pathlib.PurePath("photo.jpg"),
    "str": "photo.jpg",
    "list": [1.0],
    "NoneType": None,
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_detect(place, kind):
    arguments: list = [FEATURES, LOGITS, IOUS, PROTOTYPES]
    arguments[place] = WRONG[kind]
    name = ("features", "mask_logits", "predicted_ious", "prototypes")[place]
    with pytest.raises(InputError, match=f"detect: {name}: expected an array of numpy or JAX, found .*{kind}"):
        ntt_jax.detect(*arguments, height=8, width=8)


def test_a_whole_memory():
    with pytest.raises(InputError, match=r"detect: prototypes: .* a whole Memory; give its \.prototypes"):
        ntt_jax.detect(FEATURES, LOGITS, IOUS, MEMORY, height=8, width=8)
    with pytest.raises(InputError, match=r"detect: negatives: .* a whole Memory"):
        ntt_jax.detect(FEATURES, LOGITS, IOUS, PROTOTYPES, height=8, width=8, negatives=MEMORY)


@pytest.mark.parametrize("kind", WRONG)
def test_aggregate_memory(kind):
    features, masks = np.zeros((1, 1, 4, 4), np.float32), np.ones((1, 1, 4), np.float32)
    with pytest.raises(InputError, match=f"memory: features: expected an array .*{kind}"):
        ntt_jax.aggregate_memory(WRONG[kind], masks)
    with pytest.raises(InputError, match=f"memory: masks: expected an array .*{kind}"):
        ntt_jax.aggregate_memory(features, WRONG[kind])


@pytest.mark.parametrize("load", [ntt_jax.load_sam2, ntt_jax.load_dinov2])
@pytest.mark.parametrize("value", [None, 3, ["sam2_hiera_large"], ntt_jax.DetectConfig()])
def test_loaders(load, value):
    with pytest.raises(InputError, match=f"{load.__name__}: expected the name .* found {type(value).__name__}"):
        load(value)
