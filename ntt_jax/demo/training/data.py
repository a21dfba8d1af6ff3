"""Made scenes as plain arrays on disk, written once by several processes and then memory-mapped. No JAX here."""

import functools
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from ntt_jax.demo.scenes import NOVEL_SPLITS, ObjectClass, Scene, SceneConfig, base_classes, make_scene, novel_classes
from ntt_jax.demo.scenes.classes import BASE_CLASS_COUNT, base_palette

SCENE_SIDE = 320
ENCODER_SIDE = 336
GRID = 24
"""Patches along a side of `ENCODER_SIDE` pixels."""
CROP_SIDE = 192
"""Of the stored crops, which are enlarged to `ENCODER_SIDE` when they are used: most are smaller than this."""
CROPS = 3
"""Crops of one scene, of different objects."""
MAX_OBJECTS = 10
TRAINING_CLASS_COUNT = 9600
GROUP = 6
"""Training scenes that follow each other with the same classes."""
GROUP_CLASSES = 8

# Training scenes are fuller than those of the benchmark, touch more often, and everything in them has a label.
BASE_SCENES = SceneConfig(objects=9, distractors=0, radius=(0.10, 0.30), touching=0.5, twins=0.5, empty=0.01)

# name -> shape of one scene's entry, dtype
_ARRAYS = {
    "images": ((SCENE_SIDE, SCENE_SIDE, 3), np.uint8),
    "instances": ((SCENE_SIDE, SCENE_SIDE), np.uint8),
    "labels": ((MAX_OBJECTS,), np.int16),
    "crops": ((CROPS, CROP_SIDE, CROP_SIDE, 3), np.uint8),
    "crop_grids": ((CROPS, GRID, GRID), np.float32),
    "crop_labels": ((CROPS,), np.int16),
}
_CHUNK = 32


def training_arrays(cache: Path, count: int, seed: int, workers: int = 0) -> dict[str, np.ndarray]:
    """Arrays of `count` scenes of base classes, made now or found in `cache`; `GROUP` in a row have the same classes.

    images: `[N, 320, 320, 3]` uint8, resized as SAM's input is. instances: `[N, 320, 320]` uint8, 0 background, k + 1
    the k-th object. labels: `[N, 10]` int16, class of the k-th object, -1 for none or an unknown class. crops:
    `[N, 3, 192, 192, 3]` uint8, objects of the scene cut out as METHOD stage 1 does (with Pillow's bicubic).
    crop_grids: `[N, 3, 24, 24]` float32, their soft masks on the patch grid. crop_labels: `[N, 3]` int16, -1 for none.
    """
    return _arrays(cache / f"base_{count}_{seed}", count, seed, _base_scene, workers)


def novel_arrays(cache: Path, count: int, seed: int, workers: int = 0) -> dict[str, np.ndarray]:
    """The same of scenes of the novel splits, turn by turn; the label is `6 * split + class`, distractors have -1."""
    return _arrays(cache / f"novel_{count}_{seed}", count, seed, _novel_scene, workers)


def array_shapes(count: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of each array of `training_arrays` with `count` scenes."""
    return {name: ((count, *shape), dtype) for name, (shape, dtype) in _ARRAYS.items()}


@functools.cache
def training_classes() -> list[ObjectClass]:
    """The 9600 base classes (of 800 palettes) that training scenes are drawn from."""
    return base_classes(TRAINING_CLASS_COUNT)


@functools.cache
def _by_palette() -> list[np.ndarray]:
    palettes = np.array([base_palette(index) for index in range(TRAINING_CLASS_COUNT)])
    return [np.flatnonzero(palettes == palette) for palette in range(palettes.max() + 1)]


@functools.cache
def _novel(split: int) -> list[ObjectClass]:
    return novel_classes(split)


def _base_scene(seed: int, index: int) -> tuple[Scene, np.ndarray]:
    """Two palettes of three classes each, as in a novel split, and two classes of any other, the same for a group."""
    rng = np.random.default_rng([seed, index // GROUP, 4])
    groups = _by_palette()
    pairs = [rng.choice(groups[palette], 3, replace=False) for palette in rng.choice(len(groups), 2, replace=False)]
    ids = np.concatenate([*pairs, rng.integers(TRAINING_CLASS_COUNT, size=GROUP_CLASSES - 6)])
    classes = training_classes()
    return make_scene([seed, index, 1], [classes[i] for i in ids], config=BASE_SCENES), ids


def _novel_scene(seed: int, index: int) -> tuple[Scene, np.ndarray]:
    split = index % NOVEL_SPLITS
    scene = make_scene([seed, index, 2], _novel(split), training_classes()[:BASE_CLASS_COUNT])
    return scene, split * len(_novel(split)) + np.arange(len(_novel(split)))


def _arrays(
    folder: Path, count: int, seed: int, scene: Callable[[int, int], tuple[Scene, np.ndarray]], workers: int
) -> dict[str, np.ndarray]:
    done = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # the training of the other model may be making the very same scenes
        if not done.exists():
            for name, (shape, dtype) in array_shapes(count).items():
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape).flush()
            starts = range(0, count, _CHUNK)
            fill = functools.partial(_fill, folder, count, seed, scene)
            # Spawned, not forked: a fork of a process with JAX's threads may hang.
            with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
                for number, _ in enumerate(pool.imap_unordered(fill, starts)):
                    if number % 50 == 0:
                        print(f"scenes: {number * _CHUNK} of {count}", flush=True)
            done.write_text(json.dumps({"count": count, "seed": seed}))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}


def _fill(
    folder: Path, count: int, seed: int, scene: Callable[[int, int], tuple[Scene, np.ndarray]], start: int
) -> None:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    for index in range(start, min(start + _CHUNK, count)):
        made, ids = scene(seed, index)
        for name, value in scene_arrays(made, ids, np.random.default_rng([seed, index, 3])).items():
            arrays[name][index] = value


def scene_arrays(scene: Scene, ids: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One entry of each array of `training_arrays`. ids: number of each class of the scene, by its label."""
    height, width = scene.image.shape[:2]
    image = Image.fromarray(scene.image)
    count = min(len(scene.labels), MAX_OBJECTS)
    owner = np.zeros((height, width), np.uint8)
    for k in range(count):
        owner[scene.masks[k]] = k + 1
    rows = ((np.arange(SCENE_SIDE) + 0.5) * height / SCENE_SIDE).astype(int)
    columns = ((np.arange(SCENE_SIDE) + 0.5) * width / SCENE_SIDE).astype(int)
    labels = np.full(MAX_OBJECTS, -1, np.int16)
    labels[:count] = np.where(scene.labels[:count] < 0, -1, ids[scene.labels[:count]])
    entry = {
        "images": np.asarray(image.resize((SCENE_SIDE, SCENE_SIDE), Image.Resampling.BICUBIC)),
        "instances": owner[np.ix_(rows, columns)],
        "labels": labels,
        "crops": np.zeros((CROPS, CROP_SIDE, CROP_SIDE, 3), np.uint8),
        "crop_grids": np.zeros((CROPS, GRID, GRID), np.float32),
        "crop_labels": np.full(CROPS, -1, np.int16),
    }
    candidates = [k for k in range(count) if labels[k] >= 0 and usable_reference(scene.masks[k])]
    for place, k in enumerate(rng.permutation(candidates)[:CROPS].astype(int)):
        entry["crops"][place], entry["crop_grids"][place] = _reference_crop(image, scene.masks[k])
        entry["crop_labels"][place] = labels[k]
    return entry


def usable_reference(mask: np.ndarray) -> bool:
    """METHOD stage 0: the box is at least 32 px wide and high and 10 px away from the border."""
    x1, y1, x2, y2 = _box(mask)
    height, width = mask.shape
    return min(x2 - x1, y2 - y1) >= 32 and min(x1, y1, width - x2, height - y2) >= 10


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _reference_crop(image: Image.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x1, y1, x2, y2 = _box(mask)
    half = max(x2 - x1, y2 - y1) * 1.2 / 2
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    left, top = max(int(cx - half), 0), max(int(cy - half), 0)
    corners = (left, top, min(int(cx + half), image.width), min(int(cy + half), image.height))
    crop = image.crop(corners).resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC)
    soft = Image.fromarray(mask.astype(np.uint8) * 255).crop(corners)
    soft = soft.resize((ENCODER_SIDE, ENCODER_SIDE), Image.Resampling.BILINEAR)
    step = ENCODER_SIDE // GRID
    return np.asarray(crop), np.asarray(soft, np.float32)[::step, ::step] / 255
