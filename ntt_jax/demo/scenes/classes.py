"""Classes of made objects: an outline, a texture and colours, each drawn once per class from a fixed seed.

A class is an outline family x a texture kind (held-out pairs for the novel classes) with its own numbers: lobes,
depth, frequency, colours, an optional core. Colours come from a few palettes shared by many classes, so that colour
alone does not tell a class. What varies from one object of a class to the next is in `ntt_jax.demo.scenes.render`.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROFILE_SIZE = 256
OUTLINES = (
    "disc", "polygon", "star", "flower", "gear", "drop", "bean", "cross", "blob", "peanut", "shield", "arrow",
)  # fmt: skip
TEXTURES = (
    "plain", "stripes", "rings", "checks", "dots", "spokes",
    "zigzag", "blotches", "halves", "speckle", "grid", "spiral",
)  # fmt: skip

BASE_CLASS_COUNT = 480
NOVEL_SPLITS = 4
NOVEL_CLASSES_PER_SPLIT = 6

_SEED = 20260
_BASE_PALETTES = 40
# A sixth of the pairs of outline and texture is kept for the novel classes.
_PAIRS = [(outline, texture) for outline in range(len(OUTLINES)) for texture in range(len(TEXTURES))]
_NOVEL_PAIRS = [pair for pair in _PAIRS if (pair[0] - pair[1]) % 6 == 0]
_BASE_PAIRS = [pair for pair in _PAIRS if (pair[0] - pair[1]) % 6 != 0]


@dataclass(frozen=True, eq=False)
class ObjectClass:
    """What all objects of one class have in common.

    outline, texture: names of the families. profile: `[256]` float32, distance of the outline from the centre over
    the angle, largest 1. stretch: width / height of the outline. frequency: texture cycles per unit radius. spokes:
    lobes of angular textures. colours: `[3, 3]` float32 RGB in [0, 1]: body, texture, core. core, hole: radii as parts
    of the outline's largest, 0 for none.
    """

    name: str
    outline: str
    profile: np.ndarray
    stretch: float
    texture: str
    frequency: float
    spokes: int
    contrast: float
    colours: np.ndarray
    core: float
    hole: float


def base_classes(count: int = BASE_CLASS_COUNT) -> list[ObjectClass]:
    """The first `count` classes for training. Their pairs of outline and texture are never those of a novel class."""
    order = np.random.default_rng([_SEED, 1]).permutation(len(_BASE_PAIRS))
    return [
        _make_class(
            np.random.default_rng([_SEED, 3, i]),
            _BASE_PAIRS[order[i % len(order)]],
            _palette(np.random.default_rng([_SEED, 2, base_palette(i)])),
            f"base {i:03d}",
        )
        for i in range(count)
    ]


def base_palette(index: int) -> int:
    """Number of the palette that base class `index` shares with eleven others of the same 480."""
    # Coprime steps: every pair of outline and texture meets other palettes each time round.
    place = (index * 7 + index // len(_BASE_PAIRS)) % _BASE_PALETTES
    return index // BASE_CLASS_COUNT * _BASE_PALETTES + place


def novel_classes(split: int) -> list[ObjectClass]:
    """The six classes of one of four novel splits: two palettes of three classes, all pairs unseen in training."""
    if not 0 <= split < NOVEL_SPLITS:
        raise ValueError(f"novel split must be 0 to {NOVEL_SPLITS - 1}, found {split}")
    order = np.random.default_rng([_SEED, 4]).permutation(len(_NOVEL_PAIRS))
    classes = []
    for i in range(NOVEL_CLASSES_PER_SPLIT):
        index = split * NOVEL_CLASSES_PER_SPLIT + i
        palette = _palette(np.random.default_rng([_SEED, 5, split, i % 2]))
        pair = _NOVEL_PAIRS[order[index % len(order)]]
        classes.append(_make_class(np.random.default_rng([_SEED, 6, index]), pair, palette, f"novel {index:02d}"))
    return classes


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Three `(hue, saturation, value)` rows that many classes share."""
    hue = rng.random() + np.array([0.0, rng.choice([0.08, 0.17, 0.33, 0.5]), rng.choice([0.25, 0.5, 0.67])])
    return np.stack([hue % 1.0, rng.uniform(0.35, 0.85, 3), rng.uniform(0.45, 0.95, 3)], axis=1)


def _make_class(rng: np.random.Generator, pair: Sequence[int], palette: np.ndarray, prefix: str) -> ObjectClass:
    outline, texture = OUTLINES[pair[0]], TEXTURES[pair[1]]
    # Classes of one palette differ a little in hue and may swap body and texture colour.
    hsv = palette + rng.normal(size=(3, 3)) * np.array([0.015, 0.05, 0.05])
    if rng.random() < 0.4:
        hsv = hsv[[1, 0, 2]]
    colours = [colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0)) for h, s, v in hsv]
    inner = rng.random()
    profile = _profile(outline, rng)
    hole = float(rng.uniform(0.28, 0.4)) if inner > 0.85 else 0.0
    return ObjectClass(
        name=f"{prefix} {texture} {outline}",
        outline=outline,
        profile=profile,
        stretch=float(np.exp(rng.uniform(-0.35, 0.35))),
        texture=texture,
        frequency=float(rng.uniform(1.2, 3.2)),
        spokes=int(rng.integers(3, 9)),
        contrast=float(rng.uniform(0.35, 0.65)),
        colours=np.asarray(colours, np.float32),
        core=float(rng.uniform(0.3, 0.5)) if inner < 0.3 else 0.0,
        # A hole that nearly cuts the outline would make several parts of one object.
        hole=hole if hole < 0.65 * profile.min() else 0.0,
    )


def _profile(outline: str, rng: np.random.Generator) -> np.ndarray:
    """Radial profile `[256]` of an outline family with this class's own numbers."""
    theta = np.arange(PROFILE_SIZE) * (2 * np.pi / PROFILE_SIZE)
    if outline == "disc":
        power = rng.uniform(1.6, 4.5)
        r = (np.abs(np.cos(theta)) ** power + np.abs(np.sin(theta)) ** power) ** (-1 / power)
    elif outline == "polygon":
        corners = np.arange(int(rng.integers(3, 7)))
        r = _polygon_profile(np.exp(2j * np.pi * corners / len(corners)))
    elif outline == "star":
        points, depth = int(rng.integers(4, 8)), rng.uniform(0.45, 0.7)
        angles = np.exp(1j * np.pi * np.arange(2 * points) / points)
        r = _polygon_profile(angles * np.where(np.arange(2 * points) % 2, depth, 1.0))
    elif outline == "flower":
        r = 1 + rng.uniform(0.15, 0.32) * np.cos(int(rng.integers(3, 8)) * theta)
    elif outline == "gear":
        wave = np.tanh(rng.uniform(3, 6) * np.sin(int(rng.integers(5, 10)) * theta))
        r = 1 + rng.uniform(0.1, 0.18) * wave
    elif outline == "drop":
        r = 0.5 + rng.uniform(0.5, 0.9) * np.abs(np.cos(theta / 2)) ** int(rng.integers(6, 14))
    elif outline == "bean":
        r = 1 + rng.uniform(0.2, 0.35) * np.cos(theta) - rng.uniform(0.1, 0.3) * np.cos(2 * theta)
    elif outline == "cross":
        arm = rng.uniform(0.26, 0.45)
        half = [1 + 1j * arm, arm + 1j * arm, arm + 1j]
        r = _polygon_profile(np.array([corner * 1j**turn for turn in range(4) for corner in half]))
    elif outline == "blob":
        amounts, phases = rng.uniform(0.04, 0.16, 4), rng.uniform(0, 2 * np.pi, 4)
        order = np.arange(2, 6)[:, None]
        r = 1 + np.sum(amounts[:, None] * np.cos(order * theta[None, :] + phases[:, None]), axis=0)
    elif outline == "peanut":
        r = 1 + rng.uniform(0.25, 0.4) * np.cos(2 * theta) + rng.uniform(-0.1, 0.1) * np.cos(theta)
    elif outline == "shield":
        corner, tip = rng.uniform(0.6, 0.8), rng.uniform(0.9, 1.1)
        r = _polygon_profile(
            np.array([corner + 0.6j, -corner + 0.6j, -corner * 0.9 - 0.2j, -tip * 1j, corner * 0.9 - 0.2j])
        )
    else:
        shaft, wing = rng.uniform(0.2, 0.32), rng.uniform(0.6, 0.85)
        points = [1, wing * 1j - 0.05, shaft * 1j - 0.05, shaft * 1j - 0.9, -shaft * 1j - 0.9, -shaft * 1j - 0.05]
        r = _polygon_profile(np.array([*points, -wing * 1j - 0.05]))
    return (r / r.max()).astype(np.float32)


def _polygon_profile(corners: np.ndarray) -> np.ndarray:
    """Distance from the origin to a star-shaped polygon along each angle. corners: complex `[N]`, either sense."""
    theta = np.arange(PROFILE_SIZE) * (2 * math.pi / PROFILE_SIZE)
    direction = np.exp(1j * theta)[:, None]
    start, edge = corners[None, :], (np.roll(corners, -1) - corners)[None, :]
    # direction * r = start + edge * s, solved by two-dimensional cross products.
    cross = np.imag(np.conj(direction) * edge)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.imag(np.conj(start) * edge) / cross
        s = np.imag(np.conj(start) * direction) / cross
    hit = np.isfinite(r) & (r > 0) & (s >= -1e-9) & (s <= 1 + 1e-9)
    return np.where(hit, r, np.inf).min(axis=1)
