"""Whole made scenes: objects with exact visible masks on a cluttered background."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from ntt_jax.demo.scenes.classes import ObjectClass
from ntt_jax.demo.scenes.render import Instance, Variation, background, paint, place


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are composed.

    smallest_side, largest_side: each side of the image, pixels. objects, distractors: largest number of annotated
    objects and of unannotated objects of other classes. empty: part of the images without annotated objects.
    radius: of an object, as a part of the image's short side. visible: smallest visible part of an object.
    touching: part of the objects set against an earlier one; twins: part of those that are of the neighbour's class.
    """

    smallest_side: int = 240
    largest_side: int = 384
    objects: int = 6
    distractors: int = 2
    empty: float = 0.08
    radius: tuple[float, float] = (0.12, 0.28)
    visible: float = 0.75
    touching: float = 0.35
    twins: float = 0.4
    variation: Variation = field(default_factory=Variation)


@dataclass(frozen=True, eq=False)
class Scene:
    """image: `[H, W, 3]` uint8. masks: `[N, H, W]` bool, visible pixels, disjoint. labels: `[N]` int32 class index.

    Distractors are in `masks` too, after the others, with label -1.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def make_scene(
    seed: int | Sequence[int],
    classes: Sequence[ObjectClass],
    distractors: Sequence[ObjectClass] = (),
    config: SceneConfig | None = None,
) -> Scene:
    """One scene with objects of `classes`; the same seed (an integer or several) gives the same scene. About 20 ms."""
    config = config or SceneConfig()
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(config.smallest_side, config.largest_side + 1, 2))
    canvas = background(height, width, rng)
    wanted = 0 if rng.random() < config.empty else int(rng.integers(1, config.objects + 1))
    unwanted = int(rng.integers(0, config.distractors + 1)) if len(distractors) else 0
    # Distractors take part in the stacking like all others, so any object may lie above or below any other.
    is_distractor = rng.permutation(np.arange(wanted + unwanted) >= wanted)

    owner = np.full((height, width), -1, np.int32)
    placed: list[tuple[Instance, ObjectClass, int]] = []
    sizes: list[int] = []
    spots: list[tuple[float, float, float]] = []
    for distracting in is_distractor:
        pool = distractors if distracting else classes
        label = int(rng.integers(len(pool)))
        beside = int(rng.integers(len(spots))) if spots and rng.random() < config.touching else None
        if beside is not None and not distracting and placed[beside][2] >= 0 and rng.random() < config.twins:
            label = placed[beside][2]
        found = _find_place(pool[label], owner, sizes, spots, beside, config, rng)
        if found is None:
            continue
        instance, spot, area = found
        _stamp(owner, instance, len(placed))
        placed.append((instance, pool[label], -1 if distracting else label))
        sizes.append(area)
        spots.append(spot)
    for instance, kind, _ in placed:
        paint(canvas, instance, kind, config.variation, rng)

    order = sorted(range(len(placed)), key=lambda i: placed[i][2] < 0)
    masks = np.stack([owner == i for i in order]) if order else np.zeros((0, height, width), bool)
    labels = np.array([placed[i][2] for i in order], np.int32)
    return Scene(_photograph(canvas, rng), masks, labels)


def _find_place(
    kind: ObjectClass,
    owner: np.ndarray,
    sizes: list[int],
    spots: list[tuple[float, float, float]],
    beside: int | None,
    config: SceneConfig,
    rng: np.random.Generator,
) -> tuple[Instance, tuple[float, float, float], int] | None:
    """A pose where the new object and all earlier ones stay visible enough, or None after twelve tries."""
    height, width = owner.shape
    for _ in range(12):
        radius = float(np.exp(rng.uniform(*np.log(config.radius)))) * min(height, width)
        if beside is None:
            x, y = rng.uniform(0.6 * radius, width - 0.6 * radius), rng.uniform(0.6 * radius, height - 0.6 * radius)
        else:
            px, py, other = spots[beside]
            angle, distance = rng.uniform(0, 2 * np.pi), (radius + other) * rng.uniform(0.65, 0.95)
            x, y = px + distance * np.cos(angle), py + distance * np.sin(angle)
            if not (0.5 * radius < x < width - 0.5 * radius and 0.5 * radius < y < height - 0.5 * radius):
                continue
        instance = place(kind, (x, y), radius, config.variation, rng)
        area = int(instance.mask.sum())
        mask, window = _clip(instance, owner.shape)
        if mask.sum() < config.visible * area or area < 200:
            continue
        covered = np.bincount(owner[window][mask] + 1, minlength=len(sizes) + 1)[1:]
        remaining = np.bincount(owner.ravel() + 1, minlength=len(sizes) + 1)[1:] - covered
        if (remaining >= config.visible * np.asarray(sizes)).all():
            return instance, (x, y, radius), area
    return None


def _clip(instance: Instance, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The part of an object's mask inside the image, and where it lies there."""
    h, w = instance.depth.shape
    top, left = max(-instance.top, 0), max(-instance.left, 0)
    bottom, right = min(shape[0] - instance.top, h), min(shape[1] - instance.left, w)
    window = (slice(instance.top + top, instance.top + bottom), slice(instance.left + left, instance.left + right))
    return instance.mask[top:bottom, left:right], window


def _stamp(owner: np.ndarray, instance: Instance, index: int) -> None:
    mask, window = _clip(instance, owner.shape)
    owner[window][mask] = index


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, colour cast, tone curve, a little blur and grain: float `[H, W, 3]` -> uint8."""
    height, width = canvas.shape[:2]
    slope = rng.uniform(-0.18, 0.18, 2)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    light = 1 + np.float32(slope[0]) * x[None, :] + np.float32(slope[1]) * y[:, None]
    cast = np.exp(rng.normal(size=3) * 0.06).astype(np.float32)
    canvas = np.clip(canvas * light[..., None] * cast, 0, 1) ** np.float32(np.exp(rng.normal() * 0.15))
    picture = Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.0, 0.8))))
    grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1.0, 5.0))
    return np.clip(np.asarray(picture, np.float32) + grain + 0.5, 0, 255).astype(np.uint8)
