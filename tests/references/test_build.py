import dataclasses
import json
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_files import CLASSES, DINOV2, write_scenes
from dinov2_weights import recipe_model
from PIL import Image

from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import aggregate_memory
from ntt_jax.references.build import build_memory, places, read_reference
from ntt_jax.references.sampling import Reference, sample_references
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.images import groups_to_do
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.memory import record_means, recorded_memory

# Sums over other batch shapes associate differently.
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    dataset = load_coco(write_scenes(folder, 12, 1))
    return dataset, folder / "images"


@pytest.fixture(scope="module")
def encoder():
    return recipe_model(DINOV2, seed=3)


def references(dataset, shots=3):
    return sample_references(dataset, select_classes(dataset, "all"), shots, 33, allow_fewer=True)


def test_memory_is_that_of_all_features_at_once(scenes, encoder):
    """Against `aggregate_memory` on the patch features of every reference, one image at a time."""
    dataset, folder = scenes
    chosen = references(dataset, shots=5)
    shots = max(len(c.references) for c in chosen.classes)
    assert len({len(c.references) for c in chosen.classes}) > 1  # unequal shots are part of this test
    features = np.zeros((len(chosen.classes), shots, 25, DINOV2.embed_dim), np.float32)
    masks = np.zeros((len(chosen.classes), shots, 25), np.float32)
    model = jax.jit(lambda model, x: model(x))
    for k, entry in enumerate(chosen.classes):
        for s, reference in enumerate(entry.references):
            crop, mask = read_reference(dataset, folder, reference, input_size=70, grid=5)
            features[k, s] = np.asarray(model(encoder, crop[None]))[0].reshape(25, -1)
            masks[k, s] = mask.reshape(-1)
    expected = aggregate_memory(jax.numpy.asarray(features), jax.numpy.asarray(masks))

    steps = []
    memory = build_memory(ReferenceEncoder(encoder, batch_size=4), dataset, folder, chosen, step=steps.append)
    assert sum(steps) == sum(len(c.references) for c in chosen.classes) and max(steps) == 4
    np.testing.assert_array_equal(memory.valid, expected.valid)
    np.testing.assert_allclose(memory.instance_means, expected.instance_means, rtol=0, atol=1e-5)
    np.testing.assert_allclose(memory.prototypes, expected.prototypes, **CLOSE)


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (3, 2), (1, 8)])
def test_batches_and_devices_do_not_matter(scenes, encoder, batch_size, devices):
    dataset, folder = scenes
    chosen = references(dataset)
    expected = build_memory(ReferenceEncoder(encoder, batch_size=5), dataset, folder, chosen)
    compiled = ReferenceEncoder(encoder, batch_size=batch_size, devices=jax.devices()[:devices])
    memory = build_memory(compiled, dataset, folder, chosen)
    np.testing.assert_array_equal(memory.valid, expected.valid)
    np.testing.assert_allclose(memory.instance_means, expected.instance_means, rtol=0, atol=1e-5)
    np.testing.assert_allclose(memory.prototypes, expected.prototypes, **CLOSE)


def test_a_memory_that_was_stopped_goes_on(scenes, encoder, tmp_path):
    """Recorded by a run that stops early, and by one that goes on: bit for bit `build_memory`."""
    dataset, folder = scenes
    chosen = references(dataset)
    compiled = ReferenceEncoder(encoder, batch_size=2)
    expected = build_memory(compiled, dataset, folder, chosen)
    numbers, memory = range(len(places(chosen))), None
    for limit in (2, None):
        with FolderLock(tmp_path) as lock, RunFolder(lock, {"what": "a test"}, key="reference") as run:
            todo = {number for number in numbers if number not in run.records}
            some = list(chain.from_iterable(groups_to_do(numbers, todo.__contains__, 2)))[:limit]
            steps = []
            record_means(run, compiled, dataset, folder, chosen, numbers=some, todo=todo, step=steps.append)
            assert sum(steps) == len(todo.intersection(some))
            if limit is None:
                memory = recorded_memory(run, chosen)
    jax.tree.map(np.testing.assert_array_equal, memory, expected)


def test_classes_are_in_order_of_their_ids(scenes, encoder):
    dataset, folder = scenes
    chosen = references(dataset, shots=1)
    assert [c.category_id for c in chosen.classes] == list(CLASSES)
    memory = build_memory(ReferenceEncoder(encoder), dataset, folder, chosen)
    for k, entry in enumerate(chosen.classes):
        alone = dataclasses.replace(chosen, classes=(entry,))
        one = build_memory(ReferenceEncoder(encoder), dataset, folder, alone)
        np.testing.assert_array_equal(one.prototypes[0], memory.prototypes[k])


def test_a_grey_reference_image_is_read(scenes, encoder, tmp_path):
    dataset, folder = scenes
    chosen = references(dataset, shots=1)
    for image in dataset.images.values():
        Image.open(folder / image.file_name).convert("L").save(tmp_path / image.file_name)
    memory = build_memory(ReferenceEncoder(encoder), dataset, tmp_path, chosen)
    assert np.isfinite(memory.prototypes).all()


def test_bad_references_are_named(scenes, tmp_path):
    dataset = scenes[0]
    chosen = references(dataset, shots=1).classes[0].references[0]
    name = dataset.images[chosen.image_id].file_name
    with pytest.raises(InputError, match=f"{name}: cannot read the image: No such file"):
        read_reference(dataset, tmp_path, chosen, input_size=70, grid=5)
    Image.new("RGB", (7, 5)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"is 7 x 5 pixels, its annotations are for "):
        read_reference(dataset, tmp_path, chosen, input_size=70, grid=5)


def test_a_mask_that_vanishes_on_the_patch_grid_is_named(scenes, tmp_path):
    """One pixel of a large crop falls between the grid's samples: it would have no mean."""
    dataset, folder = scenes
    content = json.loads(Path(dataset.path).read_text())
    entry = next(a for a in content["annotations"] if a["bbox"][2] >= 40)
    height, width = entry["segmentation"]["size"]
    x, y = (int(v) for v in entry["bbox"][:2])
    pixel = (x + 7) * height + y + 7  # column by column
    entry["segmentation"] = {"size": [height, width], "counts": [pixel, 1, height * width - pixel - 1]}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    dataset = load_coco(path)
    with pytest.raises(
        InputError, match=f"reference annotation {entry['id']} of .*: its mask is empty on the patch grid"
    ):
        read_reference(dataset, folder, Reference(entry["image_id"], entry["id"]), input_size=70, grid=5)


def test_bad_batch_sizes_are_refused(encoder):
    with pytest.raises(InputError, match="at least 1"):
        ReferenceEncoder(encoder, batch_size=0)
    with pytest.raises(InputError, match="at least one"):
        ReferenceEncoder(encoder, devices=[])
