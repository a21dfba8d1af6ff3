"""One device, `shard_map` and `pmap` give the same memory, labels and detections, however rows and devices divide."""

import functools
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_processes
from cli_files import DINOV2
from dinov2_weights import recipe_model

from ntt_jax.compiled.parallel import aggregate_classes, device_mesh, fill_memory, match_images, pmapped, sharded
from ntt_jax.detection.match import assign_labels, mask_weights, object_features, similarities
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import aggregate_memory

WRAPPERS = (sharded, pmapped)
GRID, DIM = DINOV2.grid, DINOV2.embed_dim
# A device's share is another batch shape, in which the encoder's sums may associate differently.
FEATURES = {"rtol": 0, "atol": 1e-5}


def on(count):
    return jax.devices()[:count]


@pytest.fixture(scope="module")
def references():
    """11 references of 3 classes with 5, 2 and 4 shots in a scattered order, one of them with an empty mask."""
    rng = np.random.default_rng(0)
    places = np.array([(k, s) for k, shots in enumerate((5, 2, 4)) for s in range(shots)], np.int32)
    places = places[rng.permutation(len(places))]
    crops = rng.standard_normal((11, 70, 70, 3)).astype(np.float32)
    masks = (rng.random((11, GRID, GRID)) * (rng.random((11, GRID, GRID)) > 0.3)).astype(np.float32)
    masks[np.flatnonzero((places == (0, 4)).all(1))] = 0
    return crops, masks, places


@pytest.fixture(scope="module")
def encoder():
    return recipe_model(DINOV2, seed=3)


@pytest.fixture(scope="module")
def expected(references, encoder):
    """`aggregate_memory` on one device, of all features at once."""
    crops, masks, places = references
    features = np.zeros((3, 5, GRID * GRID, DIM), np.float32)
    padded = np.zeros((3, 5, GRID * GRID), np.float32)
    features[places[:, 0], places[:, 1]] = np.asarray(jax.jit(lambda m, x: m(x))(encoder, crops)).reshape(11, -1, DIM)
    padded[places[:, 0], places[:, 1]] = masks.reshape(11, -1)
    return aggregate_memory(jnp.asarray(features), jnp.asarray(padded))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_memory_is_filled_alike(references, encoder, expected, wrap, devices):
    fill = wrap(functools.partial(fill_memory, classes=3, shots=5), on(devices), reduced=True)
    memory = fill(encoder, references)
    np.testing.assert_array_equal(memory.valid, expected.valid)
    assert int(memory.valid.sum()) == 10  # not the one whose mask is empty
    np.testing.assert_allclose(memory.instance_means, expected.instance_means, **FEATURES)
    np.testing.assert_allclose(memory.prototypes, expected.prototypes, **FEATURES)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_one_reference_on_many_devices(references, encoder, expected, wrap):
    """What is padded reaches no place of the memory, not even the one it is a copy of."""
    rows = tuple(array[1:2] for array in references)  # (the first has an empty mask)
    memory = wrap(functools.partial(fill_memory, classes=3, shots=5), on(4), reduced=True)(encoder, rows)
    k, s = references[2][1]
    assert np.flatnonzero(memory.valid).tolist() == [k * 5 + s]
    np.testing.assert_allclose(memory.instance_means[k, s], expected.instance_means[k, s], **FEATURES)
    assert np.count_nonzero(np.asarray(memory.instance_means).any(axis=2)) == 1


def class_features(classes):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((classes, 3, 25, DIM)).astype(np.float32)
    masks = rng.random((classes, 3, 25)).astype(np.float32)
    masks[0, 2] = 0  # a class with fewer references
    return features, masks


@pytest.mark.parametrize(("classes", "devices"), [(3, 1), (3, 2), (3, 8), (20, 4), (8, 8)])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_classes_are_aggregated_alike(wrap, classes, devices):
    features, masks = class_features(classes)
    expected = jax.jit(aggregate_memory)(features, masks)
    memory = wrap(aggregate_classes, on(devices))((), (features, masks))
    jax.tree.map(np.testing.assert_array_equal, memory, expected)  # bit for bit: one reference at a time


@pytest.mark.parametrize(("images", "devices"), [(7, 4), (1, 8), (8, 1), (5, 2), (8, 8)])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_candidates_are_named_alike(wrap, images, devices):
    rng = np.random.default_rng(2)
    masks = rng.random((images, 6, 20, 20)) > rng.random((images, 6, 1, 1))
    masks[:, 3] = False  # a candidate without a pixel
    weights = np.stack([mask_weights(jnp.asarray(m), (GRID, GRID)) for m in masks])
    features = rng.standard_normal((images, GRID, GRID, DIM)).astype(np.float32)
    prototypes = aggregate_memory(*map(jnp.asarray, class_features(3))).prototypes
    negatives = jnp.roll(prototypes, 1, axis=0)[:, None] if images == 5 else None
    shared = prototypes if negatives is None else (prototypes, negatives)
    labels, scores = wrap(match_images, on(devices))(shared, (weights, features))
    assert labels.shape == scores.shape == (images, 6, 1)
    for image in range(images):
        objects, valid = object_features(jnp.asarray(weights[image]), jnp.asarray(features[image]))
        wanted, best = assign_labels(similarities(objects, prototypes, negatives), 1)
        np.testing.assert_array_equal(labels[image], np.where(valid[:, None], wanted, -1))
        np.testing.assert_allclose(scores[image], np.where(valid[:, None], best, 0), rtol=0, atol=1e-6)
    assert not np.asarray(scores[:, 3]).any() and (np.asarray(labels[:, 3]) == -1).all()


def test_arguments_that_cannot_be_divided():
    for wrap in WRAPPERS:
        call = wrap(aggregate_classes, on(2))
        with pytest.raises(InputError, match="same number of rows"):
            call((), (np.zeros((3, 1, 4, 5)), np.zeros((2, 1, 4))))
        with pytest.raises(InputError, match="at least 1"):
            call((), (np.zeros((0, 1, 4, 5)), np.zeros((0, 1, 4))))
        with pytest.raises(InputError, match="same number of rows"):
            call((), ())
        with pytest.raises(InputError, match="devices: expected at least one"):
            wrap(aggregate_classes, [])
    with pytest.raises(InputError, match="each once"):
        device_mesh([jax.devices()[0]] * 2)


def test_sharded_functions_stand_inside_jit_and_grad():
    """As those of a library must: compiler options of their own would forbid it."""

    def scale(shared, rows, there):
        return rows * shared * there[:, None]

    scaled = sharded(scale, on(2))
    rows = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(jax.jit(lambda shared, rows: scaled(shared, rows))(2.0, rows), 2 * rows)
    assert jax.grad(lambda shared: jnp.sum(scaled(shared, rows)))(2.0) == 15


def test_devices_of_two_processes():
    """Two processes of two CPU devices each, joined by `jax.distributed`, whichever way the devices are listed."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "JAX_PLATFORMS": "cpu"}
    lines = [[sys.executable, two_processes.__file__, address, "2", str(index)] for index in range(2)]
    started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) for line in lines]
    try:
        for process in started:
            found = json.loads(process.communicate(timeout=300)[0].splitlines()[-1])
            assert (found.pop("devices"), found.pop("local")) == (4, 2)
            assert len(found) == 4 and max(found.values()) < 1e-6, found
    finally:
        for process in started:
            process.kill()
