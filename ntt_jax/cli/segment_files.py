"""The work of `ntt-jax segment`: image files in, one COCO file, a PNG per mask and an overlay per image out."""

import colorsys
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.files import show_path, write_bytes, write_json
from ntt_jax.images import read_image
from ntt_jax.prefetch import map_ahead
from ntt_jax.results import ImageDetections, coco_results
from ntt_jax.rle import decode_rle, rle_areas

if TYPE_CHECKING:
    from ntt_jax.memory_file import MemoryBank
    from ntt_jax.pipeline import Predictor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""What counts as an image in a folder; a file that is named itself may have any suffix."""


def find_images(paths: list[Path]) -> dict[str, Path]:
    """The images to work on by the names they get in the output: as given, or relative to the folder they lie in.

    Names differ in more than their suffix (a number is added where needed), so each can name a picture or a folder.
    Raises `InputError` for a folder without images.
    """
    found: dict[str, Path] = {}
    taken: set[PurePosixPath] = set()
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files = {p.relative_to(path).as_posix(): p for p in inside} if path.is_dir() else {path.name: path}
        if not files:
            raise InputError(f"{show_path(path)}: the folder holds no image (looked for {', '.join(SUFFIXES)})")
        for name, file in files.items():
            plain = unique = PurePosixPath(name)
            number = 2
            while unique.with_suffix("") in taken:
                unique, number = plain.with_stem(f"{plain.stem}_{number}"), number + 1
            taken.add(unique.with_suffix(""))
            found[str(unique)] = file
    return found


def segment_files(
    predictor: "Predictor",
    names: dict[str, Path],
    bank: "MemoryBank",
    out: Path,
    *,
    classes: set[int],
    threshold: float,
    progress: Progress,
) -> dict[str, Any]:
    """Segment the files, write masks and overlays as they come, then detections.json, whose content is returned."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in zip(bank.category_ids, bank.class_names, strict=True)],
        "skipped": [],
    }
    fed: deque[tuple[int, str, np.ndarray]] = deque()

    def images() -> Iterator[np.ndarray]:
        for image_id, (name, read) in enumerate(zip(names, map_ahead(_read, names.values(), ahead=8), strict=True), 1):
            if isinstance(read, str):
                progress.note(f"skipped: {read}")
                content["skipped"].append({"file_name": name, "reason": read})
                progress.step()
            else:
                fed.append((image_id, name, read))
                yield read

    for found in predictor(images()):
        image_id, name, image = fed.popleft()
        keep = [i for i, s in enumerate(found.scores) if s >= threshold and int(found.labels[i]) in classes]
        content["images"].append({"id": image_id, "file_name": name, "height": found.height, "width": found.width})
        kept = ImageDetections(
            image_id,
            found.height,
            found.width,
            found.boxes[keep],
            found.scores[keep],
            found.labels[keep],
            tuple(found.rles[i] for i in keep),
        )
        for entry in coco_results(kept, bank.category_ids):
            area = int(rle_areas([entry["segmentation"]])[0])
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, **entry, "area": area, "iscrowd": 0})
        write_pictures(out, name, image, kept, bank.class_names)
        progress.step()
    if not content["images"]:
        raise InputError(f"none of the {len(names)} images could be read; the first: {content['skipped'][0]['reason']}")
    write_json(out / "detections.json", content)
    return content


def _read(path: Path) -> np.ndarray | str:
    """The image, or in one line why it cannot be read."""
    try:
        return read_image(path)
    except InputError as error:
        return str(error)


def write_pictures(
    out: Path, name: str, image: np.ndarray, detections: ImageDetections, class_names: tuple[str, ...]
) -> None:
    """One PNG per mask in masks/NAME/ and the overlay in overlays/NAME.png; those of an earlier start are replaced."""
    stem = PurePosixPath(name).with_suffix("")
    masks, overlay = out / "masks" / stem, out / "overlays" / f"{stem}.png"
    masks.mkdir(parents=True, exist_ok=True)
    overlay.parent.mkdir(parents=True, exist_ok=True)
    for old in masks.glob("*.png"):
        old.unlink()
    drawn = [decode_rle(rle) for rle in detections.rles]
    for index, (label, mask) in enumerate(zip(detections.labels, drawn, strict=True)):
        safe = re.sub(r"[^\w.-]+", "_", class_names[label])
        write_bytes(masks / f"{index + 1:03}_{safe}.png", _png(mask.view(np.uint8) * 255))
    write_bytes(overlay, _png(draw_overlay(image, detections, drawn, class_names)))


def draw_overlay(
    image: np.ndarray, detections: ImageDetections, masks: list[np.ndarray], class_names: tuple[str, ...]
) -> np.ndarray:
    """The image `[H, W, 3]` uint8 with masks tinted by class, the best on top, their boxes and labels."""
    tinted = image.copy()
    for label, mask in reversed(list(zip(detections.labels, masks, strict=True))):
        tinted[mask] = tinted[mask] // 2 + np.array(_colour(label), np.uint8) // 2
    picture = Image.fromarray(tinted)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(10, max(picture.size) // 50))
    for label, box, score in zip(detections.labels, detections.boxes.tolist(), detections.scores, strict=True):
        draw.rectangle(box, outline=_colour(label))
        text = f"{class_names[label]} {score:.2f}"
        draw.text((box[0] + 2, box[1] + 1), text, font=font, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(picture)


def _colour(label: int) -> tuple[int, int, int]:
    """Colours of neighbouring classes lie far apart: steps of the golden ratio around the circle of hues."""
    red, green, blue = colorsys.hsv_to_rgb(0.618034 * int(label) % 1, 0.85, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
