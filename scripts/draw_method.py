"""Draw the pictures of docs/method.md from made scenes with the shipped small models.

python scripts/draw_method.py --out docs
"""

import argparse
import functools
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image, ImageDraw

from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.demo.demo import SMALL_DETECT, Benchmark, convert_checkpoints, make_benchmark
from ntt_jax.detection.full_size import resize_masks
from ntt_jax.detection.match import object_features, similarities
from ntt_jax.detection.merge import best_rows, label_rows, overlap_rows
from ntt_jax.files import write_bytes
from ntt_jax.images import drawing as visualize
from ntt_jax.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, encoder_input, resize_for_sam, sam_input
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.aggregate import unit_vectors
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.point_grid.decode_grid import grid_points
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.pipeline import propose_masks
from ntt_jax.references.build import build_memory, read_reference
from ntt_jax.references.sampling import ReferenceSet, sample_references

SCENES, REFERENCE_SCENES, SHOTS = 16, 60, 3
MAX_BYTES = 150_000
_SHOWN_SCORE = 0.5
_SIDE = 176  # side of the small tiles, pixels


@dataclass(frozen=True, eq=False)
class Stages:
    """One target image `[H, W, 3]` uint8 on its way to detections.

    patches `[h, w, C]`; logits `[P, m, m]`, ious `[P]` and passing `[P]` of the candidates; similarity `[P, K]`; rows
    after NMS, `detection.Rows`; merged: the detections, `detection.Merged`. All on the host but the logits.
    """

    image: np.ndarray
    patches: np.ndarray
    logits: Array
    ious: np.ndarray
    passing: np.ndarray
    similarity: np.ndarray
    rows: Any
    merged: Any

    def masks(self, candidates: Sequence[int] | np.ndarray) -> np.ndarray:
        """Full-size masks of these candidates, bool `[n, H, W]`."""
        height, width = self.image.shape[:2]
        chosen = jnp.asarray(candidates, jnp.int32)
        if not len(chosen):
            return np.zeros((0, height, width), bool)
        return np.asarray(resize_masks(self.logits, chosen, jnp.int32(len(chosen)), height, width, (height, width)))


@jax.jit
def _stages(sam2: Sam2, dinov2: Encoder, prototypes: Array, images: Array, size: Array) -> tuple[Any, ...]:
    """The target pass with all that it computes on the way, from the public steps of the package."""
    features = sam2.encode_image(sam_input(images))[0]
    patches = dinov2(encoder_input(images, dinov2.config.input_size))[0]
    candidates, logits, ious = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), SMALL_DETECT)
    objects, has_direction = object_features(candidates.weights, patches)
    passing = candidates.valid & has_direction
    rows = label_rows(objects, candidates.boxes, passing, ious, prototypes, SMALL_DETECT)
    slots = min(SMALL_DETECT.max_candidates, logits.shape[0])
    overlaps = overlap_rows(rows, logits, prototypes.shape[0], slots, height=size[0], width=size[1])
    merged = best_rows(rows, objects, overlaps, SMALL_DETECT)
    return patches, logits, ious, passing, similarities(objects, prototypes), rows, merged


def run_stages(models: tuple[Sam2, Encoder], prototypes: Array, image: np.ndarray) -> Stages:
    """All stages of one image `[H, W, 3]` uint8; images of every size share one compiled program."""
    square = resize_for_sam(image, models[0].config.image_size)
    size = np.array(image.shape[:2], np.int32)
    with jax.default_matmul_precision("highest"):
        patches, logits, *rest = _stages(*models, prototypes, square[None], size)
    ious, passing, similarity, rows, merged = jax.tree.map(np.asarray, rest)
    return Stages(image, np.asarray(patches), logits, ious, passing, similarity, rows, merged)


def shades(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers `[h, w]` as colours `[h, w, 3]` uint8: dark blue at `low`, through green, to yellow at `high`."""
    share = np.clip((values - low) / (high - low), 0, 1)
    stops = np.array([[25, 20, 70], [40, 100, 140], [60, 170, 110], [250, 230, 60]], np.float64)
    channels = [np.interp(share, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its longer side at `side` pixels."""
    scale = side / max(image.shape[:2])
    width, height = (max(1, round(n * scale)) for n in (image.shape[1], image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def cut_out(image: np.ndarray, mask: np.ndarray, label: int) -> np.ndarray:
    """The image dimmed but for the mask, with its outline."""
    return visualize.overlay(np.where(mask[..., None], image, image // 5 * 2), mask[None], [label], opacity=0)


def dotted(image: np.ndarray, points: np.ndarray, radius: float) -> np.ndarray:
    """The image with dots at points `[n, 2]`, x and y as shares of its width and height."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for x, y in points * np.array(picture.size):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(90, 255, 110), outline=(20, 20, 20))
    return np.asarray(picture)


def bars(values: np.ndarray, names: Sequence[str], width: int) -> np.ndarray:
    """Similarities to all classes as horizontal bars in the classes' colours, the longest one named in bold."""
    line = 16
    picture = Image.new("RGB", (width, line * len(names) + 2), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    colours = visualize.distinct_colours(len(names))
    for k, (value, name) in enumerate(zip(values, names, strict=True)):
        top = k * line + 1
        colour = tuple(int(c) for c in (colours[k] if k == values.argmax() else colours[k] // 2 + 127))
        draw.rectangle((0, top, max(1, round(width * float(value))), top + line - 3), fill=colour)
        draw.text((3, top), f"{value:.2f} {name}", fill=(0, 0, 0))
    return np.asarray(picture)


def draw_references(
    benchmark: Benchmark, references: ReferenceSet, dinov2: Encoder, names: Sequence[str]
) -> np.ndarray:
    """Every reference as the encoder gets it, beside its soft mask on the patch grid; one row per class."""
    config, tiles = dinov2.config, []
    read = functools.partial(
        read_reference,
        benchmark.references,
        benchmark.folder / "references",
        input_size=config.input_size,
        grid=config.grid,
    )
    for name, chosen in zip(names, references.classes, strict=True):
        for s, reference in enumerate(chosen.references):
            crop, mask = read(reference)
            pixels = np.clip((crop * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)) * 255, 0, 255).round()
            side = 112
            tiles.append(visualize.titled(fit(pixels.astype(np.uint8), side), name if s == 0 else ""))
            grey = np.repeat((mask * 255).round().astype(np.uint8)[..., None], 3, axis=-1)
            tiles.append(visualize.titled(visualize.enlarge(grey, side, side), ""))
    return visualize.grid(tiles, 2 * SHOTS)


def draw_features(shown: Sequence[Stages]) -> np.ndarray:
    """Target images above the three main directions of their patch features."""
    colours = visualize.pca_colours(np.stack([one.patches for one in shown]))
    images = [fit(one.image, 220) for one in shown]
    maps = [visualize.enlarge(c, *image.shape[:2]) for c, image in zip(colours, images, strict=True)]
    return visualize.grid([*images, *maps], len(shown))


def draw_candidates(one: Stages, image_size: int) -> np.ndarray:
    """The points, and fifteen candidate masks from the best to the worst predicted IoU that passes."""
    points = grid_points(image_size, SMALL_DETECT.points_per_side) / image_size
    tiles = [visualize.titled(dotted(fit(one.image, _SIDE), points, 1), f"{len(points)} points")]
    order = np.flatnonzero(one.passing)[np.argsort(-one.ious[one.passing], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, min(15, len(order))).round().astype(int)]
    for candidate, mask in zip(chosen, one.masks(chosen), strict=True):
        tile = dotted(fit(cut_out(one.image, mask, 0), _SIDE), points[candidate][None], 2)
        tiles.append(visualize.titled(tile, f"predicted IoU {one.ious[candidate]:.2f}"))
    return visualize.grid(tiles, 4)


def draw_similarities(one: Stages, prototypes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Cosine of every patch with every prototype; below, some candidates and their similarities to all classes."""
    unit = np.asarray(unit_vectors(jnp.asarray(one.patches))[0])
    size = fit(one.image, 140).shape[:2]
    maps = [visualize.enlarge(shades(unit @ prototype, 0, 0.9), *size) for prototype in prototypes]
    above = visualize.grid([visualize.titled(m, n) for m, n in zip(maps, names, strict=True)], len(names))
    best = np.flatnonzero(one.merged.valid)[:5]
    candidates = one.merged.source[best]
    tiles = []
    for candidate, label, mask in zip(candidates, one.merged.labels[best], one.masks(candidates), strict=True):
        tile = fit(cut_out(one.image, mask, label), _SIDE)
        tiles.append(np.concatenate([tile, bars(one.similarity[candidate], names, tile.shape[1])]))
    return visualize.grid([above, visualize.grid(tiles, len(tiles))], 1)


def merged_scores(one: Stages) -> np.ndarray:
    """Score after the soft merge of every row of `one.rows`, 0 where there is none."""
    final = np.zeros(len(one.ious))
    final[one.merged.source[one.merged.valid]] = one.merged.scores[one.merged.valid]
    return np.where(one.rows.alive, final[one.rows.candidate], 0.0)


def draw_merge(one: Stages, names: Sequence[str]) -> np.ndarray:
    """All candidates, those after NMS, those that score well in the end; below, one class's rows in NMS order."""
    passing = np.flatnonzero(one.passing)
    live = np.flatnonzero(one.rows.alive)
    final = merged_scores(one)
    strong = live[final[live] >= _SHOWN_SCORE]
    panels = [
        (f"{len(passing)} candidates", passing, one.similarity[passing].argmax(axis=1)),
        (f"{len(live)} after NMS", one.rows.candidate[live], one.rows.label[live]),
        (f"{len(strong)} of score {_SHOWN_SCORE} or more", one.rows.candidate[strong], one.rows.label[strong]),
    ]
    above = visualize.grid(
        [
            visualize.titled(fit(visualize.overlay(one.image, one.masks(c), labels, opacity=0), 300), title)
            for title, c, labels in panels
        ],
        3,
    )
    # The class with the most to show: rows that looked right and lie inside a better one.
    lost = [(one.rows.score[live] - final[live])[one.rows.label[live] == k].sum() for k in range(len(names))]
    rows = [i for i in live if one.rows.label[i] == int(np.argmax(lost))][:10]
    tiles = []
    for i, mask in zip(rows, one.masks(one.rows.candidate[rows]), strict=True):
        tile = fit(cut_out(one.image, mask, one.rows.label[i]), _SIDE)
        tiles.append(visualize.titled(tile, f"score {one.rows.score[i]:.2f} to {final[i]:.2f}"))
    below = visualize.grid(tiles, 5)
    return visualize.grid([above, visualize.titled(below, f"rows of {names[int(np.argmax(lost))]}")], 1)


def draw_detections(benchmark: Benchmark, shown: Sequence[tuple[int, Stages]], names: Sequence[str]) -> np.ndarray:
    """What is there above what is found, with scores."""
    truths, founds = [], []
    for image_id, one in shown:
        annotations = benchmark.targets.image_annotations[image_id]
        labels = [a.category_id - 1 for a in annotations]
        masks = np.stack([benchmark.targets.mask(a) for a in annotations])
        drawn = visualize.overlay(one.image, masks, labels, [names[k] for k in labels])
        truths.append(visualize.titled(drawn, "truth"))
        best = np.flatnonzero(one.merged.valid & (one.merged.scores >= _SHOWN_SCORE))
        captions = [f"{names[one.merged.labels[i]]} {one.merged.scores[i]:.2f}" for i in best]
        drawn = visualize.overlay(one.image, one.masks(one.merged.source[best]), one.merged.labels[best], captions)
        founds.append(visualize.titled(drawn, f"found, score {_SHOWN_SCORE} or more"))
    return visualize.grid([*truths, *founds], len(shown))


def save_jpeg(path: Path, image: np.ndarray) -> None:
    """Write a JPEG of the best quality that stays under `MAX_BYTES`."""
    quality, data = 96, b""
    while not data or (len(data) > MAX_BYTES and quality > 40):
        quality -= 4
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
    write_bytes(path, data)
    print(f"{path}: {image.shape[1]} x {image.shape[0]}, {len(data) // 1000} kB, quality {quality}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/method.md.")
    parser.add_argument("--out", type=Path, required=True, help="folder for method_*.jpg")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the references")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures = draw_all(Path(folder), args.seed)
    for name, picture in pictures.items():
        save_jpeg(args.out / f"method_{name}.jpg", picture)


def draw_all(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """All pictures by name; `folder` holds the converted models and the scenes meanwhile."""
    benchmark = make_benchmark(folder, seed, SCENES, REFERENCE_SCENES)
    sam2_path, dinov2_path = convert_checkpoints(folder / "weights")
    models: tuple[Any, Any] = load_sam2(sam2_path), load_dinov2(dinov2_path)
    classes = select_classes(benchmark.references, "all")
    names = [c.name.split(maxsplit=2)[-1] for c in classes]  # without "novel" and the number
    references = sample_references(benchmark.references, classes, SHOTS, seed)
    encoder = ReferenceEncoder(models[1])
    prototypes = build_memory(encoder, benchmark.references, folder / "references", references).prototypes

    # Wide scenes with many objects: the first one is shown step by step.
    count = {i: len(benchmark.targets.image_annotations[i]) for i in benchmark.targets.images}
    wide = [i for i, entry in benchmark.targets.images.items() if entry.width >= entry.height]
    chosen = sorted(wide, key=lambda i: (-count[i], i))[:4]
    paths = [benchmark.targets.image_path(folder / "targets", i) for i in chosen]
    shown = [run_stages(models, prototypes, np.asarray(Image.open(path).convert("RGB"))) for path in paths]
    return {
        "references": draw_references(benchmark, references, models[1], names),
        "features": draw_features(shown),
        "candidates": draw_candidates(shown[0], models[0].config.image_size),
        "similarities": draw_similarities(shown[0], np.asarray(prototypes), names),
        "merge": draw_merge(shown[0], names),
        "detections": draw_detections(benchmark, list(zip(chosen, shown, strict=True))[:3], names),
    }


if __name__ == "__main__":
    main()
