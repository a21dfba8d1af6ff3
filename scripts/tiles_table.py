"""What tiles are worth where objects are small: the table of docs/tiles.md, on made scenes with the small models.

python scripts/tiles_table.py --out /tmp/tiles                 6 scenes of 3000 x 3000 pixels, 100 ordinary ones
python scripts/tiles_table.py --out /tmp/tiles --memory 10000  only the peak memory at one image of 10,000 x 10,000

Objects of the large scenes measure 1 to 3 % of the side. Five references a class, taken from ordinary scenes. What each
view of an image finds is kept in --out, so that a stopped run goes on. A duplicate is a second detection of an object
(same class, IoU of at least 0.5) that scores above --score, of an object that lies in the overlap of tiles. Gains are
paired: 95 % of 1000 resamples of the images.
"""

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measured import add_json_option, circumstances, show

import ntt_jax
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.demo.demo import SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.demo.scenes import SceneConfig, base_classes, make_scene, novel_classes
from ntt_jax.demo.scenes.export import write_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.files import write_json
from ntt_jax.images.reading import read_image
from ntt_jax.images.rle import rle_areas
from ntt_jax.images.rle_crops import rle_intersections
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.references.build import build_memory
from ntt_jax.references.sampling import sample_references
from ntt_jax.tiles.layout import TileConfig, tiles_of
from ntt_jax.tiles.predictor import TiledPredictor
from ntt_jax.tuning.experiment import resamples
from ntt_jax.tuning.scoring import LaneScorer, mean_over_classes, overlaps_of

SIDE, SHOTS, SEED = 3000, 5, 0
TWICE = SceneConfig(smallest_side=480, largest_side=768)
"""Ordinary scenes in twice the pixels: objects measure half of a tile and more, and tiles cut them."""
LARGE = SceneConfig(smallest_side=SIDE, largest_side=SIDE, objects=60, distractors=15, empty=0.0, radius=(0.005, 0.015))


compiled: Counter[str] = Counter()
"""How often each program was compiled, by its name."""


def _listen(event: str, duration_secs: float, **more: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compiled[str(more.get("fun_name", ""))] += 1


def programs() -> dict[str, int]:
    """Compilations so far of the three programs of the pass over a view (`point_parallel`), and of the drawing of masks
    (one for each size of canvas)."""
    names = ("_encode", "_propose", "_finish", "_draw_rows")
    return {part: sum(n for name, n in compiled.items() if part in name) for part in names}


class Kept:
    """The predictor, with what it has found before read from a file."""

    def __init__(self, predictor: Predictor, path: Path):
        self.batch_size, self.image_size, self.config = 1, predictor.image_size, predictor.config
        self._predictor, self._path = predictor, path

    def __call__(self, images: Iterator[np.ndarray]) -> Iterator[HostDetections]:
        if not self._path.is_file():
            write_json(self._path, [one.to_json() for one in self._predictor(images)])
        else:
            for _ in images:
                pass
        for one in json.loads(self._path.read_text()):
            yield HostDetections.from_json(one, str(self._path))


def duplicates(
    dataset: CocoDataset, found: dict[int, HostDetections], tiles: TileConfig, side: int, score: float
) -> tuple[int, int]:
    """Second detections of objects in the overlap of tiles, and detections that score `score` or more."""
    second = count = 0
    for image_id, one in found.items():
        image = dataset.images[image_id]
        strong = one.select(one.scores >= score)
        count += len(strong)
        areas = rle_areas(strong.rles)
        cut = tiles_of(image.height, image.width, tiles, side)
        for annotation in dataset.image_annotations[image_id]:
            x, y, w, h = annotation.bbox
            touched = sum(t.left < x + w and t.right > x and t.top < y + h and t.bottom > y for t in cut)
            rows = np.flatnonzero(strong.labels == annotation.category_id - 1)
            if touched < 2 or not len(rows):
                continue
            mask = dataset.rle(annotation)
            common = rle_intersections(mask, [strong.rles[i] for i in rows], areas[rows])
            union = areas[rows] + rle_areas([mask])[0] - common
            second += max(0, int((common >= 0.5 * union).sum()) - 1)
    return second, count


def score(dataset: CocoDataset, found: dict[int, HostDetections]) -> dict[str, float]:
    """AP in percent."""
    truth = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    metrics = evaluate_detections(truth, sorted(found.items()))
    return {
        f"{kind} {name}": round(100 * metrics[kind][name], 1) for kind in ("bbox", "segm") for name in ("AP", "AP50")
    }


def gain(
    dataset: CocoDataset, before: dict[int, HostDetections], after: dict[int, HostDetections], kind: str
) -> list[float]:
    """What the second result has more of AP than the first, in points, and the middle 95 % over resampled images."""
    truth = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    scorer = LaneScorer(truth, kind, 2)
    for image_id in truth.image_ids:
        pair = before[image_id], after[image_id]
        boxes, rles = np.concatenate([one.boxes for one in pair]), [rle for one in pair for rle in one.rles]
        lane = np.repeat([0, 1], [len(one) for one in pair])
        labels, scores = (np.concatenate([getattr(one, name) for one in pair]) for name in ("labels", "scores"))
        scorer.add(overlaps_of(truth, kind, image_id, boxes, rles), lane, labels, scores, np.arange(len(rles)))
    rows = scorer.rows()
    images = np.ones(len(truth.image_ids))
    weights = np.concatenate([images[None], resamples(images, 1000, 0)])
    first, second = (100 * mean_over_classes(rows.average_precision(lane, weights)) for lane in (0, 1))
    gains = second - first
    return [round(float(value), 2) for value in (gains[0], *np.nanpercentile(gains[1:], [2.5, 97.5]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=6, help="large scenes")
    parser.add_argument("--ordinary", type=int, default=100, help="scenes of ordinary size")
    parser.add_argument("--twice", type=int, default=24, help="such scenes in twice the pixels")
    parser.add_argument("--tile-size", type=int, default=320)
    parser.add_argument("--score", type=float, default=0.5, help="from which on a detection counts as shown")
    parser.add_argument("--memory", type=int, metavar="SIDE", help="measure the peak memory at one image of this side")
    add_json_option(parser)
    args = parser.parse_args()
    ntt_jax.use_all_cores()
    jax.monitoring.register_event_duration_secs_listener(_listen)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "targets" / "annotations.json").is_file():
        make_benchmark(args.out, SEED, args.ordinary)
    references = load_coco(args.out / "references" / "annotations.json")
    weights = convert_checkpoints(args.out / "weights")
    sam2, dinov2 = load_sam2(weights[0]), load_dinov2(weights[1])
    chosen = sample_references(references, select_classes(references, "all"), SHOTS, SEED)
    memory = build_memory(ReferenceEncoder(dinov2), references, args.out / "references", chosen)
    predictor = Predictor(sam2, dinov2, memory.prototypes, SMALL_DETECT, canvas=640)
    tiles = TileConfig(size=args.tile_size)
    report: dict[str, Any] = {"circumstances": circumstances(), "tile size": args.tile_size}
    if args.memory:
        report |= peak(predictor, args.memory)
        show(report, args.json)
        return
    for name, seed, config, count in (("twice", 9, TWICE, args.twice), ("large", 8, LARGE, args.scenes)):
        if not (args.out / name / "annotations.json").is_file():
            classes = novel_classes(SEED)
            scenes = (make_scene([SEED, seed, i], classes, base_classes(), config) for i in range(count))
            write_coco(args.out / name, scenes, classes)
    for name in ("targets", "twice", "large"):
        report[name] = compare(args, name, predictor, tiles)
        print(json.dumps({name: report[name]}), flush=True)
    report["compilations"] = programs()
    show(report, args.json)


def compare(args: argparse.Namespace, name: str, predictor: Predictor, tiles: TileConfig) -> dict[str, Any]:
    """AP of a data set's images with tiles and without."""
    folder = args.out / name
    dataset = load_coco(folder / "annotations.json")
    whole: dict[int, HostDetections] = {}
    tiled: dict[int, HostDetections] = {}
    started = time.monotonic()
    for image_id in dataset.images:
        image = read_image(dataset.image_path(folder, image_id))
        views = Kept(predictor, folder / f"views_{args.tile_size}_{image_id}.json")
        (tiled[image_id],) = TiledPredictor(views, tiles)(iter([image]))  # pyright: ignore[reportArgumentType]
        whole[image_id] = HostDetections.from_json(json.loads(views._path.read_text())[0], "views")
        if name == "large" or image_id % 20 == 0:
            print(f"{name}: image {image_id}, {time.monotonic() - started:.0f} s", flush=True)
    second, count = duplicates(dataset, tiled, tiles, predictor.image_size, args.score)
    return {
        "images": len(dataset.images),
        "objects": len(dataset.annotations),
        "untiled": score(dataset, whole),
        "tiles": score(dataset, tiled),
        "gain in AP, 95 %": {kind: gain(dataset, whole, tiled, kind) for kind in ("bbox", "segm")},
        "with tiles": sum(
            bool(tiles_of(one.height, one.width, tiles, predictor.image_size)) for one in dataset.images.values()
        ),
        "shown": count,
        "duplicates at seams": second,
        "seconds": round(time.monotonic() - started),
    }


def peak(predictor: Predictor, side: int) -> dict[str, Any]:
    """Peak memory of the process before, and after one image of this side in tiles of SAM 2's usual 1024 pixels."""
    small = make_scene([SEED, 9], novel_classes(SEED), base_classes(), SceneConfig(empty=0.0)).image
    (_,) = predictor([small])
    repeats = -(-side // min(small.shape[:2]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    image = np.tile(small, (repeats, repeats, 1))[:side, :side].copy()
    first = programs()
    with_image = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.monotonic()
    (found,) = TiledPredictor(predictor, TileConfig(size=1024))([image])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "side": side,
        "detections": len(found),
        "seconds": round(time.monotonic() - started),
        "GiB before": round(before, 2),
        "GiB with the image": round(with_image, 2),
        "GiB at the peak": round(after, 2),
        "views": 1 + len(tiles_of(side, side, TileConfig(size=1024), predictor.image_size)),
        "compilations": {"before": first, "in all": programs()},
        "device": jax.devices()[0].platform,
    }


if __name__ == "__main__":
    main()
