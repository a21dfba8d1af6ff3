"""Pictures of references, detections and features. Host only: numpy arrays in, uint8 RGB arrays out, by Pillow."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ntt_jax.files import PathLike, write_bytes

_GAP = 6
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)


def distinct_colours(count: int) -> np.ndarray:
    """`count` colours that are easy to tell apart, `[count, 3]` uint8; the first ones stay the same for any count."""
    golden = 0.618034
    rows = [
        colorsys.hsv_to_rgb((0.02 + golden * i) % 1.0, (0.9, 0.65, 0.8)[i % 3], (1.0, 0.95, 0.8)[i // 3 % 3])
        for i in range(count)
    ]
    return (np.asarray(rows, np.float64).reshape(-1, 3) * 255).round().astype(np.uint8)


def overlay(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    captions: Sequence[str] = (),
    *,
    opacity: float = 0.45,
) -> np.ndarray:
    """The image with coloured masks, their outlines, and a caption at the top left corner of each.

    Args:
      image: `[H, W, 3]` uint8. masks: `[n, H, W]` bool, the first one is drawn on top.
      labels: `[n]`, choose the colours (`distinct_colours`). captions: n texts, or none.

    Returns:
      `[H, W, 3]` uint8.

    Raises:
      ValueError: lengths or sizes that do not fit.
    """
    masks, labels = np.asarray(masks, bool), np.asarray(labels, int)
    if masks.shape != (len(labels), *image.shape[:2]) or (captions and len(captions) != len(labels)):
        raise ValueError(
            f"overlay: image {image.shape}, masks {masks.shape}, {len(labels)} labels, {len(captions)} captions"
        )
    colours = distinct_colours(int(labels.max(initial=-1)) + 1)
    canvas = image.astype(np.float32)
    for mask, label in zip(masks[::-1], labels[::-1], strict=True):
        canvas[mask] += opacity * (colours[label] - canvas[mask])
        canvas[_outline(mask)] = colours[label]
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for mask, label, caption in reversed(list(zip(masks, labels, captions or [""] * len(labels), strict=True))):
        if caption and mask.any():
            corner = int(np.flatnonzero(mask.any(axis=0))[0]), int(np.flatnonzero(mask.any(axis=1))[0])
            _caption(draw, corner, caption, tuple(int(v) for v in colours[label]), picture.size)
    return np.asarray(picture)


def prompt_marks(
    image: np.ndarray, boxes: Sequence[Sequence[float]], points: Sequence[tuple[float, float, bool]]
) -> np.ndarray:
    """The image `[H, W, 3]` with boxes (x, y, width, height) and points (x, y, whether on the object) drawn on it."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for x, y, width, height in boxes:
        draw.rectangle((x, y, x + width, y + height), outline=_PAPER)
        draw.rectangle((x - 1, y - 1, x + width + 1, y + height + 1), outline=_INK)
    for x, y, inside in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(60, 220, 90) if inside else (235, 50, 50), outline=_PAPER)
    return np.asarray(picture)


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """The image under a line of text."""
    font = _font(13)
    width = max(image.shape[1], int(np.ceil(font.getlength(title))) + 4)
    picture = Image.new("RGB", (width, image.shape[0] + 20), _PAPER)
    ImageDraw.Draw(picture).text((2, 2), title, fill=_INK, font=font)
    picture.paste(Image.fromarray(image), (0, 20))
    return np.asarray(picture)


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of any sizes side by side, `columns` to a row, on white."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    widths = [max(row[k].shape[1] for row in rows if k < len(row)) for k in range(min(columns, len(images)))]
    size = (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * (len(rows) + 1))
    picture = Image.new("RGB", size, _PAPER)
    for i, row in enumerate(rows):
        for k, image in enumerate(row):
            place = sum(widths[:k]) + _GAP * (k + 1), sum(heights[:i]) + _GAP * (i + 1)
            picture.paste(Image.fromarray(image), place)
    return np.asarray(picture)


def pca_colours(features: np.ndarray) -> np.ndarray:
    """The three strongest directions of many patch features as red, green and blue.

    features: `[n, h, w, C]` of n images, which share the directions. Returns `[n, h, w, 3]` uint8. Each direction's
    sign makes its largest entry positive, and its 2nd to 98th percentile fills the range.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    directions = directions[:3]
    directions *= np.sign(np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1))
    values = flat @ directions.T
    low, high = np.percentile(values, [2, 98], axis=0)
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (scaled * 255).round().astype(np.uint8).reshape(*features.shape[:3], 3)


def enlarge(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel as a block: `[h, w, 3]` uint8 -> `[height, width, 3]`."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST))


def save_picture(path: PathLike, image: np.ndarray) -> None:
    """Write a PNG, whole or not at all. Raises `InputError` if it cannot be written."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour outside it."""
    inside = np.pad(mask, 1)
    return mask & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])


def _caption(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: tuple[int, ...], size: tuple[int, int]
) -> None:
    font = _font(11)
    width, height = int(np.ceil(font.getlength(text))) + 4, 14
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1] - height, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    # Dark text on light colours and the other way round.
    light = colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 > 140
    draw.text((x + 2, y + 1), text, fill=(0, 0, 0) if light else (255, 255, 255), font=font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
