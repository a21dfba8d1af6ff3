"""Photos on disk and made-up detections in them, with all that polygons have trouble with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.formats import Classes, Photo
from ntt_jax.images.rle import encode_masks

CLASSES = Classes(("sea gull", "boat", "rope, thin"), (4, 9, 11))
HEIGHT, WIDTH = 96, 140


def disc(x: float, y: float, radius: float, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Pixels whose centres are closer than `radius` to a point."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.hypot(columns - x, rows - y) < radius


def objects() -> list[tuple[int, np.ndarray]]:
    """Class and mask of a disc with a hole, two parts, three nested rings, a speck, a slanting line, everything."""
    rope = np.zeros((HEIGHT, WIDTH), np.bool_)
    rope[np.arange(20, 80), np.arange(20, 80)] = True
    speck = np.zeros((HEIGHT, WIDTH), np.bool_)
    speck[7, 133] = True
    nested = disc(70, 48, 44) & ~disc(70, 48, 34) | disc(70, 48, 26) & ~disc(68, 48, 14) | disc(68, 48, 6)
    return [
        (1, disc(40, 40, 30) & ~disc(45, 38, 9)),
        (0, disc(30, 20, 14) | disc(100, 60, 21)),
        (1, nested),
        (0, speck),
        (2, rope),
        (0, np.ones((HEIGHT, WIDTH), np.bool_)),
    ]


def detections(found: Sequence[tuple[int, np.ndarray]], height: int = HEIGHT, width: int = WIDTH) -> HostDetections:
    """Detections of labels and masks, best first."""
    masks = np.stack([mask for _, mask in found]) if found else np.zeros((0, height, width), np.bool_)
    boxes = [[columns.min(), rows.min(), columns.max(), rows.max()] for rows, columns in map(np.nonzero, masks)]
    scores = np.linspace(0.95, 0.5, len(found), dtype=np.float32)
    labels = np.array([label for label, _ in found], np.int32)
    return HostDetections(height, width, np.array(boxes, np.float32), scores, labels, tuple(encode_masks(masks)))


def make_photos(folder: Path, error: float = 1.0) -> list[Photo]:
    """Three photos: one with all objects, one with two of them in a folder below, one without any."""
    made = []
    for name, found in (("harbour.jpg", objects()), ("more/a b.png", objects()[:2]), ("empty.png", [])):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 150)).save(file)
        made.append(Photo(name, file, detections(found), error))
    return made


def border(mask: np.ndarray) -> int:
    """Length of a mask's border, in pixels."""
    padded = np.pad(mask, 1)
    return int(sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1)))
