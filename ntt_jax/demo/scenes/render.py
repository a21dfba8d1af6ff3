"""Pixels of one made object and of a cluttered background. Arrays are float32 in [0, 1]."""

import colorsys
import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ntt_jax.demo.scenes.classes import PROFILE_SIZE, ObjectClass


@dataclass(frozen=True)
class Variation:
    """How far the objects of one class differ from each other: standard deviations, but `lobes` and `light` (largest).

    hue, saturation, value: of the colours. stretch, shear: of the outline. lobes: amplitude of low harmonics added to
    the outline. frequency: of the texture, logarithm. contrast: of the texture, logarithm. light: shading across it.
    """

    hue: float = 0.035
    saturation: float = 0.10
    value: float = 0.12
    stretch: float = 0.16
    shear: float = 0.12
    lobes: float = 0.05
    frequency: float = 0.18
    contrast: float = 0.25
    light: float = 0.35

    def scaled(self, factor: float) -> "Variation":
        """`factor` times as much of everything."""
        return Variation(**{name: factor * value for name, value in dataclasses.asdict(self).items()})


@dataclass(frozen=True, eq=False)
class Instance:
    """One object before it is painted: its patch of the image, signed distance to the outline and its own frame.

    left, top: of the patch, pixels (may be negative). depth: `[h, w]` float32, pixels inside the outline (negative:
    outside), along the radius. u, v: `[h, w]` float32, position in the object's frame, 1 at the outline's largest
    radius. rho: outline-relative radius (1 at the outline).
    """

    left: int
    top: int
    depth: np.ndarray
    u: np.ndarray
    v: np.ndarray
    rho: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """`[h, w]` bool, the whole object, occluded parts included."""
        return self.depth > 0


_SHADOW = 6


def place(
    kind: ObjectClass, centre: tuple[float, float], radius: float, variation: Variation, rng: np.random.Generator
) -> Instance:
    """Outline of a new object of a class. centre: `(x, y)` pixels; radius: pixels, of the class's unit circle."""
    angle = rng.uniform(0, 2 * np.pi)
    stretch = kind.stretch * math.exp(rng.normal() * variation.stretch)
    shear = rng.normal() * variation.shear
    scale = radius / math.sqrt(max(stretch, 1 / stretch))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = rotation @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([stretch**0.5, stretch**-0.5]) * scale
    harmonic = np.arange(PROFILE_SIZE) * (2 * np.pi / PROFILE_SIZE)
    profile = kind.profile.copy()
    for k in (1, 2, 3):
        profile *= 1 + variation.lobes * rng.uniform(-1, 1) * np.cos(k * harmonic + rng.uniform(0, 2 * np.pi))
    table = np.append(profile, profile[0]).astype(np.float32)

    outline = forward @ (profile * np.stack([np.cos(harmonic), np.sin(harmonic)]))
    low = np.floor(outline.min(axis=1) + centre).astype(int) - 2
    high = np.ceil(outline.max(axis=1) + centre).astype(int) + 2 + _SHADOW
    x = np.arange(low[0], high[0], dtype=np.float32) + np.float32(0.5 - centre[0])
    y = np.arange(low[1], high[1], dtype=np.float32) + np.float32(0.5 - centre[1])
    back = np.linalg.inv(forward).astype(np.float32)
    u = back[0, 0] * x[None, :] + back[0, 1] * y[:, None]
    v = back[1, 0] * x[None, :] + back[1, 1] * y[:, None]
    r = np.sqrt(u * u + v * v)
    turn = np.arctan2(v, u) * np.float32(PROFILE_SIZE / (2 * np.pi))
    turn = np.where(turn < 0, turn + PROFILE_SIZE, turn)
    index = np.minimum(turn.astype(np.int32), PROFILE_SIZE - 1)
    fraction = turn - index
    edge = table[index] * (1 - fraction) + table[index + 1] * fraction
    depth = (edge - r) * np.float32(scale)
    if kind.hole:
        depth = np.minimum(depth, (r - kind.hole) * np.float32(scale))
    return Instance(int(low[0]), int(low[1]), depth, u, v, r / edge)


def paint(canvas: np.ndarray, instance: Instance, kind: ObjectClass, variation: Variation, rng: np.random.Generator):
    """Draw an object with its shadow over `canvas` `[H, W, 3]`, in place, antialiased at its outline."""
    height, width = canvas.shape[:2]
    h, w = instance.depth.shape
    top, left = max(-instance.top, 0), max(-instance.left, 0)
    window = (slice(top, min(height - instance.top, h)), slice(left, min(width - instance.left, w)))
    depth, u, v, rho = (a[window] for a in (instance.depth, instance.u, instance.v, instance.rho))
    if not depth.size:
        return
    y, x = instance.top + top, instance.left + left
    target = canvas[y : y + depth.shape[0], x : x + depth.shape[1]]

    colours = np.stack([_vary(colour, variation, rng) for colour in kind.colours])
    frequency = kind.frequency * math.exp(rng.normal() * variation.frequency)
    amount = min(kind.contrast * math.exp(rng.normal() * variation.contrast), 1.0)
    pattern = _texture(kind, u, v, frequency, rng)[..., None] * np.float32(amount)
    colour = colours[0] + pattern * (colours[1] - colours[0])
    if kind.core:
        inside = np.clip((kind.core - rho) * 12 + 0.5, 0, 1)[..., None]
        colour = colour + inside * (colours[2] - colour)
    light = rng.uniform(0, variation.light)
    direction = rng.uniform(0, 2 * np.pi)
    shade = 1 + light * (math.cos(direction) * u + math.sin(direction) * v)
    rim = 1 - rng.uniform(0.15, 0.45) * np.clip(1 - depth / rng.uniform(2.0, 4.0), 0, 1)
    colour = colour * (shade * rim)[..., None].astype(np.float32)

    shift = int(rng.integers(1, _SHADOW - 1))
    shadow = np.zeros_like(depth)
    shadow[shift:, shift:] = np.clip(depth[:-shift, :-shift] / 6 + 0.5, 0, 1)
    target *= 1 - np.float32(rng.uniform(0.0, 0.35)) * shadow[..., None]
    alpha = np.clip(depth + 0.5, 0, 1)[..., None]
    target += alpha * (np.clip(colour, 0, 1) - target)


def background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """`[H, W, 3]`: muted dead leaves (overlapping patches of all sizes, r^-3) under 1/f noise, as in photographs."""
    short = min(height, width)
    tint = rng.random()
    hues = tint + rng.normal(size=5) * rng.uniform(0.03, 0.2)
    picture = Image.new("RGB", (width, height), _rgb255(hues[0], rng.uniform(0, 0.3), rng.uniform(0.3, 0.7)))
    draw = ImageDraw.Draw(picture)
    count = int(rng.integers(30, 160))
    # Radii with density r^-3 between 2 % and 40 % of the short side, largest first so that small ones stay visible.
    smallest, largest = 0.02 * short, 0.4 * short
    radii = (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5
    spread = rng.uniform(0.06, 0.2)
    level = rng.uniform(0.35, 0.65)
    for radius in np.sort(radii)[::-1]:
        centre = rng.random(2) * (width, height)
        colour = _rgb255(rng.choice(hues), rng.uniform(0.0, 0.35), level + rng.normal() * spread)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 12))))
        stretch = np.exp(rng.normal(size=2) * 0.4)
        points = centre + radius * stretch * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([(float(px), float(py)) for px, py in points], fill=colour)
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3.0))))
    canvas = np.asarray(picture, np.float32) / 255
    noise = _pink_noise(height, width, float(rng.uniform(0.8, 1.3)), rng)
    canvas = canvas + np.float32(rng.uniform(0.03, 0.1)) * noise[..., :1] + np.float32(0.02) * noise[..., 1:]
    return np.clip(canvas, 0, 1).astype(np.float32)


def _pink_noise(height: int, width: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """`[H, W, 4]` of unit variance with amplitude spectrum 1 / f^exponent."""
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    amplitude = np.maximum(np.hypot(fx, fy), 1 / max(height, width)) ** -exponent
    amplitude[0, 0] = 0
    spectrum = rng.standard_normal((4, *amplitude.shape, 2), np.float32).view(np.complex64)[..., 0]
    noise = np.fft.irfft2(spectrum * amplitude.astype(np.float32), s=(height, width), axes=(1, 2))
    noise = noise / noise.std(axis=(1, 2), keepdims=True)
    return noise.transpose(1, 2, 0).astype(np.float32)


def _vary(colour: np.ndarray, variation: Variation, rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in colour))
    jitter = rng.normal(size=3) * (variation.hue, variation.saturation, variation.value)
    saturation, value = min(max(saturation + jitter[1], 0.0), 1.0), min(max(value + jitter[2], 0.0), 1.0)
    return np.asarray(colorsys.hsv_to_rgb((hue + jitter[0]) % 1.0, saturation, value), np.float32)


def _rgb255(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, min(max(value, 0.05), 0.95))
    return int(r * 255), int(g * 255), int(b * 255)


def _soft(wave: np.ndarray) -> np.ndarray:
    """A wave in [-1, 1] to a pattern in [0, 1] with steep but soft sides."""
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _texture(kind: ObjectClass, u: np.ndarray, v: np.ndarray, frequency: float, rng: np.random.Generator) -> np.ndarray:
    """Part of the texture colour, `[h, w]` in [0, 1], at object positions `u`, `v`."""
    f = np.float32(2 * np.pi * frequency)
    p, q = (np.float32(a) for a in rng.uniform(0, 2 * np.pi, 2))
    name = kind.texture
    if name == "plain":
        return np.zeros_like(u)
    if name == "stripes":
        return _soft(np.sin(f * u + p))
    if name == "checks":
        return _soft(1.5 * np.sin(f * 0.8 * u + p) * np.sin(f * 0.8 * v + q))
    if name == "dots":
        return _soft(np.cos(f * u + p) + np.cos(f * v + q) - 0.7)
    if name == "grid":
        return _soft(1.5 * (np.maximum(np.cos(f * u + p), np.cos(f * v + q)) - 0.75))
    if name == "zigzag":
        fold = np.abs((v * np.float32(frequency) + p) % 1 - 0.5)
        return _soft(np.sin(f * u + 6 * fold + q))
    if name == "halves":
        return _soft(2 * (u - np.float32(rng.uniform(-0.2, 0.2))))
    if name == "blotches":
        bends = np.sin(0.7 * f * u + p) + np.sin(0.6 * f * v + q) + np.sin(0.5 * f * (u - v) + p - q)
        return _soft(0.8 * bends)
    if name == "speckle":
        table = rng.random((32, 32), np.float32)
        size = 3 * frequency
        return (table[(v * size).astype(int) % 32, (u * size).astype(int) % 32] > 0.6).astype(np.float32)
    r = np.sqrt(u * u + v * v)
    if name == "rings":
        return _soft(np.sin(f * 1.3 * r + p))
    turns = np.arctan2(v, u) * kind.spokes
    return _soft(np.sin(turns + p)) if name == "spokes" else _soft(np.sin(f * r + turns % (2 * np.pi) + p))
