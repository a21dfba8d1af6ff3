"""Pictures of references, detections and features. Host only: numpy arrays in, uint8 RGB arrays out, by Pillow."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ntt_jax.files import PathLike, write_bytes
from ntt_jax.images.captions import place_captions, touches
from ntt_jax.text import one_line

_GAP = 6
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)
_TEXT_SHARE, _LINE_SHARE = 52, 640
_LONGEST = 200
"""Characters of a caption before it is fitted; names come from files."""
"""Text and lines are this share of the longest side, and never smaller than 11 pixels and 1."""


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
    """The image with coloured masks, their outlines, and a caption beside each.

    Captions and outlines grow with the image, and captions do not cover each other (`place_captions`).

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
    thick = max(1, round(max(image.shape[:2]) / _LINE_SHARE))
    boxes = [_bounds(mask) for mask in masks]
    canvas = image.copy()
    for mask, label, (left, top, right, bottom) in zip(masks[::-1], labels[::-1], boxes[::-1], strict=True):
        part, inside = canvas[top:bottom, left:right], mask[top:bottom, left:right]
        under = part[inside].astype(np.float32)
        part[inside] = (under + opacity * (colours[label] - under)).round()
        part[_outline(inside, thick)] = colours[label]
    if captions:
        named = [i for i, caption in enumerate(captions) if caption and boxes[i][2]]
        rows = [(captions[i], boxes[i], tuple(int(v) for v in colours[labels[i]])) for i in named]
        canvas = _captioned(canvas, rows)
    return canvas


def outlined(image: np.ndarray, masks: np.ndarray, colour: tuple[int, int, int] = (225, 225, 225)) -> np.ndarray:
    """The image with the outlines of masks `[n, H, W]` in one colour, crossed out from corner to corner."""
    canvas = image.copy()
    thick = 2 * max(1, round(max(image.shape[:2]) / _LINE_SHARE))
    crosses = Image.new("L", (image.shape[1], image.shape[0]))
    draw = ImageDraw.Draw(crosses)
    for mask in np.asarray(masks, bool):
        left, top, right, bottom = _bounds(mask)
        if right:
            canvas[top:bottom, left:right][_outline(mask[top:bottom, left:right], thick)] = colour
            draw.line((left, top, right, bottom), fill=255, width=thick)
            draw.line((left, bottom, right, top), fill=255, width=thick)
    inside = np.asarray(masks, bool).any(axis=0) if len(masks) else np.zeros(image.shape[:2], bool)
    canvas[(np.asarray(crosses) > 0) & inside] = colour
    return canvas


def prompt_marks(
    image: np.ndarray, boxes: Sequence[Sequence[float]], points: Sequence[tuple[float, float, bool]]
) -> np.ndarray:
    """The image `[H, W, 3]` with boxes (x, y, width, height) and points (x, y, whether on the object) drawn on it."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    thick = max(1, round(max(picture.size) / _LINE_SHARE))
    for x, y, width, height in boxes:
        draw.rectangle((x, y, x + width, y + height), outline=_PAPER, width=thick)
        draw.rectangle((x - thick, y - thick, x + width + thick, y + height + thick), outline=_INK, width=thick)
    for x, y, inside in points:
        r, fill = 4 * thick, (60, 220, 90) if inside else (235, 50, 50)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=_PAPER, width=thick)
    return np.asarray(picture)


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """The image under a text, which grows with the image and goes on in a second line where it is wider than both the
    image and a dozen letters."""
    size = max(13, round(max(image.shape[:2]) / _TEXT_SHARE))
    font, line = _font(size), round(1.55 * size)
    lines, room = [""], max(image.shape[1] - 4, 12 * size)
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    width = max(image.shape[1], int(np.ceil(max(font.getlength(text) for text in lines))) + 4)
    picture = Image.new("RGB", (width, image.shape[0] + line * len(lines)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for i, text in enumerate(lines):
        draw.text((2, 2 + line * i), text, fill=_INK, font=font)
    picture.paste(Image.fromarray(image), (0, line * len(lines)))
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


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask, the last two just outside; zeros for an empty one."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _outline(mask: np.ndarray, thick: int) -> np.ndarray:
    """Pixels of the mask that lie at most `thick` steps from its edge."""
    inside = np.pad(mask, 1)
    for _ in range(thick):
        core = inside[1:-1, 1:-1]
        core = core & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        inside = np.pad(core, 1)
    return mask & ~inside[1:-1, 1:-1]


def _captioned(image: np.ndarray, rows: Sequence[tuple[str, tuple[int, int, int, int], tuple[int, ...]]]) -> np.ndarray:
    """The image with captions: rows of text, the box of what it names and its colour, the most important first."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    size = max(11, round(max(picture.size) / _TEXT_SHARE))
    font, edge = _font(size), max(2, size // 5)
    texts = [_fitting(one_line(text, _LONGEST), font, picture.width - 2 * edge) for text, _, _ in rows]
    height = round(1.3 * size)
    sizes = [(int(np.ceil(font.getlength(text))) + 2 * edge, height) for text in texts]
    places = place_captions([box for _, box, _ in rows], sizes, picture.size)
    placed = list(zip(texts, rows, sizes, places, strict=True))[::-1]
    for _, (_, box, colour), extent, (x, y) in placed:
        if not touches((x, y), extent, box):  # a line leads to what it names
            ends = (x + extent[0] // 2, y + height // 2), ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
            draw.line(ends, fill=colour, width=max(1, size // 11))
    for text, (_, _, colour), extent, (x, y) in placed:
        draw.rectangle((x, y, x + extent[0] - 1, y + height - 1), fill=colour)
        # Dark text on light colours and the other way round.
        light = colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 > 140
        draw.text((x + edge, y + height // 2), text, fill=(0, 0, 0) if light else _PAPER, font=font, anchor="lm")
    return np.asarray(picture)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its middle left out if it is wider than the picture: names often differ at their end."""
    fitting, kept = text, len(text)
    while kept > 2 and font.getlength(fitting) > width:
        kept -= 1
        start = (kept + 1) // 2
        fitting = text[:start].rstrip() + "..." + text[len(text) - (kept - start) :].lstrip()
    return fitting


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
