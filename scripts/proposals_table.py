"""What boxes as prompts, finer masks and extra points are worth on made scenes: the tables of docs/proposals.md.

python scripts/proposals_table.py --out /tmp/proposals

Four splits of novel classes, 12 scenes and 2 draws of references each, at 1 and 5 shots, by the shipped small models.
Every row is saved in --out as it is finished; started again, the script goes on.

Boxes are made from the annotations: as they are, with their corners moved, with false ones, and as a class-agnostic
proposal network gives them: several for every object, of classes that are sought and others, some on nothing, each with
an objectness that tells its IoU with an object, roughly.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.demo.demo import REFERENCE_VARIATION, SMALL_DETECT, convert_checkpoints
from ntt_jax.demo.scenes import NOVEL_SPLITS, SceneConfig, base_classes, make_scene, novel_classes
from ntt_jax.demo.scenes.export import write_coco
from ntt_jax.detection.boxes import choose_boxes, inside
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.files import write_json
from ntt_jax.images.preprocess import resize_for_sam
from ntt_jax.images.rle import encode_masks
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.models.sam2.point_grid.decode_grid import grid_points
from ntt_jax.pipeline import all_points, draw_masks, encode_images, finish_image, only_there, propose_masks
from ntt_jax.references.build import build_memory
from ntt_jax.references.sampling import sample_references

SHOTS = (1, 5)
CANVAS = 384
SMALL_OBJECTS = SceneConfig(radius=(0.04, 0.08), objects=10)
"""Scenes for extra points: objects of 8 to 16 % of the short side, a few patches each."""
NUMBERS = (("bbox", "AP"), ("segm", "AP"), ("segm", "AP75"))


@dataclass
class Target:
    """A scene as the decoder gets it. boxes: of the objects that are sought, others: of the rest, `[n, 4]`."""

    features: Any
    patches: Any
    size: tuple[int, int]
    boxes: np.ndarray
    others: np.ndarray


@dataclass
class Split:
    """The scenes of one split and prototypes `[M, K, C]` of all draws and numbers of shots; keys: the M shots."""

    targets: list[Target]
    prototypes: np.ndarray
    keys: list[int]
    truth: Any


Boxes = Callable[[np.random.Generator, Target], np.ndarray]


def true_boxes(rng: np.random.Generator, target: Target) -> np.ndarray:
    return np.concatenate([target.boxes, np.ones((len(target.boxes), 1))], axis=1)


def moved(boxes: np.ndarray, rng: np.random.Generator, part: float) -> np.ndarray:
    """Every corner moved by up to this part of the box's sides."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + rng.uniform(-part, part, boxes.shape) * sides


def jittered(part: float, false: int = 0) -> Boxes:
    def make(rng: np.random.Generator, target: Target) -> np.ndarray:
        rows = np.concatenate([moved(target.boxes, rng, part), np.ones((len(target.boxes), 1))], axis=1)
        return np.concatenate([rows, nowhere(rng, target, false)])

    return make


def nowhere(rng: np.random.Generator, target: Target, count: int) -> np.ndarray:
    """Boxes of an object's size anywhere; as sure of themselves as the true ones."""
    height, width = target.size
    sides = rng.uniform(0.2, 0.6, (count, 2)) * min(height, width)
    corners = rng.uniform(0, 1, (count, 2)) * ([width, height] - sides)
    return np.concatenate([corners, corners + sides, np.ones((count, 1))], axis=1)


def network(rng: np.random.Generator, target: Target) -> np.ndarray:
    """Five boxes of every object, moved by up to 5 to 30 %, and 20 on nothing in particular."""
    objects = np.concatenate([target.boxes, target.others])
    every = [moved(objects, rng, part) for part in (0.05, 0.1, 0.15, 0.2, 0.3)]
    rows = np.concatenate([*every, nowhere(rng, target, 20)[:, :4]])
    overlap = iou(rows, objects).max(axis=1, initial=0.0)
    return np.concatenate([rows, np.clip(overlap + rng.normal(0, 0.1, len(rows)), 0.02, 1)[:, None]], axis=1)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(0, high - low), axis=2)
    area, other = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (boxes, others))
    return common / (area[:, None] + other[None] - common)


REPLACE: dict[str, Any] = {"proposals": "replace"}
JOIN: dict[str, Any] = {"proposals": "join", "proposal_order": "predicted_iou"}
FSOD: dict[str, Any] = {"proposals": "replace", "nms_iou_threshold": 1.0, "merge": "diffusion"}
OWN: dict[str, Any] = {"report_boxes": "proposal"}
ROWS: dict[str, tuple[dict[str, Any], Boxes | None]] = {
    "grid of points (published)": ({}, None),
    "true boxes": (REPLACE, true_boxes),
    "true boxes, best of three masks": (REPLACE | {"proposal_mask": "best"}, true_boxes),
    "true boxes, the box reported": (REPLACE | OWN, true_boxes),
    "corners moved by up to 10 %": (REPLACE, jittered(0.1)),
    "corners moved by up to 20 %": (REPLACE, jittered(0.2)),
    "the same, refined by mask": (REPLACE | {"refine": "mask"}, jittered(0.2)),
    "moved by 10 %, 10 false boxes": (REPLACE, jittered(0.1, 10)),
    "grid joined with true boxes": (JOIN, true_boxes),
    "grid joined with 10 %, 10 false": (JOIN, jittered(0.1, 10)),
    "network, published rules": (REPLACE, network),
    "network, by predicted IoU": (REPLACE | {"proposal_order": "predicted_iou"}, network),
    "network, no NMS, soft merge": (REPLACE | {"nms_iou_threshold": 1.0}, network),
    "network, no NMS, diffusion": (FSOD, network),
    "network, no NMS, diffusion, the box reported (FSOD-VFM)": (FSOD | OWN, network),
    "grid joined with network": (JOIN, network),
}
FINER_ROWS: dict[str, tuple[dict[str, Any], Boxes | None]] = {
    "grid, refined by box": ({"refine": "box"}, None),
    "grid, refined by mask": ({"refine": "mask"}, None),
    "grid, refined by mask and box": ({"refine": "mask_and_box"}, None),
    "grid and 40 extra points": ({"extra_points": 40}, None),
}
SMALL_ROWS: dict[str, tuple[dict[str, Any], Boxes | None]] = {
    "small objects: grid": ({}, None),
    "small objects: 10 extra points": ({"extra_points": 10}, None),
    "small objects: 40 extra points": ({"extra_points": 40}, None),
    "small objects: grid of 24 x 24": ({"points_per_side": 24}, None),
}


def make_split(folder: Path, split: int, count: int, draws: int, models: tuple[Any, Any], config: SceneConfig) -> Split:
    """Scenes of a split, encoded, and prototypes of references of the ordinary scenes."""
    classes, others = novel_classes(split), base_classes()
    scenes = [make_scene([split, 1, i], classes, others, config) for i in range(count)]
    references = [
        make_scene([split, 0, i], classes, others, SceneConfig(variation=REFERENCE_VARIATION)) for i in range(60)
    ]
    sources = load_coco(write_coco(folder / "references", iter(references), classes))
    dataset = load_coco(write_coco(folder / "targets", iter(scenes), classes))
    sam2, dinov2 = models
    encoder = ReferenceEncoder(dinov2, batch_size=4)
    prototypes, keys = [], []
    for shots in SHOTS:
        for seed in range(draws):
            chosen = sample_references(sources, select_classes(sources, "all"), shots, seed)
            memory = build_memory(encoder, sources, folder / "references", chosen)
            prototypes.append(np.asarray(memory.prototypes))
            keys.append(shots)
    encode = jax.jit(encode_images)
    targets = []
    for scene in scenes:
        image = resize_for_sam(scene.image, sam2.config.image_size)[None]
        features, patches = encode(sam2, dinov2, image)
        boxes = np.array([extent(mask) for mask in scene.masks], float).reshape(-1, 4)
        mine = scene.labels >= 0
        height, width = scene.image.shape[:2]
        targets.append(Target(features[0], patches[0], (height, width), boxes[mine], boxes[~mine]))
    truth = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    return Split(targets, np.stack(prototypes), keys, truth)


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@functools.partial(jax.jit, static_argnames=("definition", "config"))
def detect(state, features, patches, prototypes, size, boxes, *, definition, config: DetectConfig):
    """Detections by M memories, their logits drawn: `Merged` `[M, D]` and masks `[M, D, canvas, canvas]`."""
    sam2 = nnx.merge(definition, state)
    grid = patches.shape[0], patches.shape[1]
    common = None
    if config.proposals != "replace" and not config.extra_points:
        common = propose_masks(sam2, features, grid, config)

    def one(classes):
        proposals = common
        if config.extra_points:
            points = jnp.asarray(grid_points(sam2.config.image_size, config.points_per_side))
            points, there = all_points(points, patches, classes, config, sam2.config.image_size)
            proposals = only_there(propose_masks(sam2, features, grid, config, points), there)
        merged, logits = finish_image(
            sam2, features, patches, proposals, classes, size[0], size[1], config, None, boxes
        )
        return merged, draw_masks(logits, jnp.sum(merged.valid), size, (CANVAS, CANVAS), packed=False)

    return jax.lax.map(one, prototypes)


def measure(split: Split, sam2: Any, changes: dict[str, Any], make: Boxes | None, seed: int) -> dict[str, Any]:
    """AP of every memory: `{"bbox AP": [M], ...}`."""
    config = dataclasses.replace(SMALL_DETECT, **changes)
    definition, state = nnx.split(sam2)
    found: list[list[Any]] = [[] for _ in split.keys]
    for index, target in enumerate(split.targets):
        boxes = None
        if make is not None:
            rows = inside(make(np.random.default_rng([seed, index]), target).astype(np.float32), *target.size)
            boxes = jnp.asarray(choose_boxes(rows, config))
        size = jnp.asarray(target.size, jnp.int32)
        merged, masks = jax.tree.map(
            np.asarray,
            detect(
                state,
                target.features,
                target.patches,
                split.prototypes,
                size,
                boxes,
                definition=definition,
                config=config,
            ),
        )
        height, width = target.size
        for m, records in enumerate(found):
            count = int(merged.valid[m].sum())
            rles = tuple(encode_masks(masks[m, :count, :height, :width]))
            arrays = (merged.boxes[m, :count], merged.scores[m, :count], merged.labels[m, :count])
            records.append((index + 1, HostDetections(height, width, *arrays, rles)))
    metrics = [evaluate_detections(split.truth, records) for records in found]
    return {f"{kind} {name}": [metric[kind][name] for metric in metrics] for kind, name in NUMBERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--splits", type=int, default=NOVEL_SPLITS)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sam2_path, dinov2_path = convert_checkpoints(args.out / "weights")
    models = load_sam2(sam2_path), load_dinov2(dinov2_path)
    path = args.out / "rows.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    with published_numbers():
        made: dict[SceneConfig, list[Split]] = {}
        for rows, config in ((ROWS, SceneConfig()), (SMALL_ROWS, SMALL_OBJECTS), (FINER_ROWS, SceneConfig())):
            left = [name for name in rows if args.rows in name and name not in done]
            if left and config not in made:
                name = "small" if rows is SMALL_ROWS else "scenes"
                made[config] = [
                    make_split(args.out / f"{name}{i}", i, args.scenes, args.draws, models, config)
                    for i in range(args.splits)
                ]
            for row in left:
                splits = made[config]
                found = [measure(split, models[0], *rows[row], seed) for seed, split in enumerate(splits)]
                done[row] = {"shots": splits[0].keys, **{key: [one[key] for one in found] for key in found[0]}}
                write_json(path, done)
                print(row, flush=True)
    table(done)


def table(done: dict[str, Any]) -> None:
    """Print both tables: AP of the first row, then gains over it, each with its spread over splits and draws."""
    for rows in (ROWS | FINER_ROWS, SMALL_ROWS):
        base = done.get(next(iter(rows)))
        if base is None:
            continue
        print("\n| | " + " | ".join(f"{s} shot{'s' * (s > 1)} {k} {n}" for s in SHOTS for k, n in NUMBERS) + " |")
        print("|---" * (1 + len(SHOTS) * len(NUMBERS)) + "|")
        for name in rows:
            if name not in done:
                continue
            cells = []
            for shots in SHOTS:
                mine = np.array(base["shots"]) == shots
                for kind, number in NUMBERS:
                    values = 100 * np.array(done[name][f"{kind} {number}"])[:, mine]
                    first = 100 * np.array(base[f"{kind} {number}"])[:, mine]
                    gain = values - first
                    text = f"{values.mean():.1f}" if done[name] is base else f"{gain.mean():+.1f} ± {gain.std():.1f}"
                    cells.append(text)
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
