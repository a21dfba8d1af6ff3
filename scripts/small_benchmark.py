"""COCO AP of the small models on made scenes of novel classes: mean and spread over several choices of references.

python scripts/small_benchmark.py                       the shipped weights, as in docs/small_models.md
python scripts/small_benchmark.py --untrained dinov2    a control: the same with random weights in one model
python scripts/small_benchmark.py --sam2 out/sam2       weights of scripts/train_small.py, before they are packed
python scripts/small_benchmark.py --negatives 5         without and with negative references, among look-alike classes
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.ablation.memories import distinct_references, sample_many, stack_prototypes
from ntt_jax.ablation.predictor import ManyPredictor
from ntt_jax.ablation.scoring import evaluate_shared
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import from_dict
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.demo.demo import REFERENCE_SCENES, SMALL_DETECT, Benchmark, convert_checkpoints, make_benchmark
from ntt_jax.demo.scenes import NOVEL_SPLITS, SceneConfig, make_scene, novel_classes
from ntt_jax.demo.scenes.export import write_coco
from ntt_jax.demo.training.loop import load_weights
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.files import write_json
from ntt_jax.images.reading import read_image
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.references.build import Negatives, build_memory
from ntt_jax.references.negatives import as_coco, false_positives, negative_set
from ntt_jax.references.sampling import ReferenceSet

_NUMBERS = [(kind, name) for kind in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]


def load_models(folder: Path, trained: dict[str, Path | None], untrained: list[str]) -> tuple[Sam2, Any]:
    """Both models: the package's, those of the folders in `trained`, or with random weights."""
    sam2_path, dinov2_path = convert_checkpoints(folder)
    models: dict[str, Any] = {"sam2": load_sam2(sam2_path), "dinov2": load_dinov2(dinov2_path)}
    for name, source in trained.items():
        config: Any = models[name].config
        if source is not None:
            config = from_dict(json.loads((source / "config.json").read_text()))
        new: Any = (Sam2 if name == "sam2" else DinoVisionTransformer)(config, rngs=nnx.Rngs(0))
        if name in untrained:
            models[name] = new
        elif source is not None:
            models[name] = load_weights(source / "weights.npz", new)
    return models["sam2"], models["dinov2"]


def among_look_alikes(folder: Path, seed: int, scenes: int) -> Benchmark:
    """As `make_benchmark`, but only half of the split's classes are looked for; the others, of the same colours, lie
    among them. References vary no more than targets, since mistakes are sought in their scenes too."""
    classes = novel_classes(seed % NOVEL_SPLITS)
    wanted, alike = classes[: len(classes) // 2], classes[len(classes) // 2 :]

    def write(name: str, stream: int, count: int) -> CocoDataset:
        config = SceneConfig(objects=3, distractors=3)
        made = (make_scene([seed, stream, index], wanted, alike, config) for index in range(count))
        return load_coco(write_coco(folder / name, made, wanted))

    return Benchmark(folder, write("references", 0, 2 * REFERENCE_SCENES), write("targets", 1, scenes))


def find(predictor: ManyPredictor, dataset: CocoDataset, folder: Path) -> list[SharedDetections]:
    """What the memories find in all images of a data set."""
    ids = sorted(dataset.images)
    shared: Any = predictor(read_image(dataset.image_path(folder, i)) for i in ids)
    return [dataclasses.replace(one, image_id=i) for i, one in zip(ids, shared, strict=True)]


def choose_negatives(
    benchmark: Benchmark, encoder: ReferenceEncoder, sets: list[ReferenceSet], first: list[SharedDetections], count: int
) -> np.ndarray:
    """Negatives `[M, K, count, C]` of every memory: its worst mistakes in the scenes that its references are from.

    They go through files, as those of `ntt-jax negatives` and `ntt-jax memory --negatives` do.
    """
    folder, classes = benchmark.folder / "references", select_classes(benchmark.references, "all")
    truth = prepare_ground_truth(benchmark.references, classes)
    chosen = np.zeros((len(sets), len(classes), count, encoder.config.embed_dim), np.float32)
    for m, references in enumerate(sets):
        mistakes = false_positives(truth, [one.of(m) for one in first], count)
        write_json(folder / "negatives.json", as_coco(mistakes, benchmark.references, [c.id for c in classes]))
        dataset = load_coco(folder / "negatives.json")
        negatives = Negatives(dataset, folder, negative_set(dataset, references))
        made = np.asarray(
            build_memory(encoder, benchmark.references, folder, references, negatives=negatives).negatives
        )
        chosen[m, :, : made.shape[1]] = made
    return chosen


def measure(
    folder: Path,
    sam2: Sam2,
    dinov2: DinoVisionTransformer,
    seed: int,
    scenes: int,
    shots: list[int],
    draws: int,
    negatives: int = 0,
) -> dict[str, np.ndarray]:
    """Numbers of `_NUMBERS`, `[draws, 6]`, by kind of memory, on the scenes of one seed."""
    benchmark = (among_look_alikes if negatives else make_benchmark)(folder, seed, scenes)
    classes = select_classes(benchmark.references, "all")
    sets = sample_many(benchmark.references, classes, shots, range(draws))
    distinct = distinct_references(list(sets.values()))
    encoder = ReferenceEncoder(dinov2, batch_size=8)
    memory = build_memory(encoder, benchmark.references, benchmark.folder / "references", distinct)
    prototypes = stack_prototypes(list(sets.values()), distinct, memory)
    options: dict[str, Any] = {"batch_size": 4, "canvas": 640}
    predictor = ManyPredictor(sam2, dinov2, prototypes, SMALL_DETECT, **options)
    kinds = [str(count) for count, _ in sets]
    if negatives:
        first = find(predictor, benchmark.references, benchmark.folder / "references")
        bank = choose_negatives(benchmark, encoder, list(sets.values()), first, negatives)
        predictor = ManyPredictor(
            sam2,
            dinov2,
            np.concatenate([prototypes, prototypes]),
            SMALL_DETECT,
            negatives=np.concatenate([np.zeros_like(bank), bank]),
            **options,
        )
        kinds += [f"{kind}, {negatives} negatives" for kind in kinds]
    found = find(predictor, benchmark.targets, benchmark.folder / "targets")
    truth = prepare_ground_truth(benchmark.targets, classes)
    rows: dict[str, list[list[float]]] = {}
    for kind, metrics in zip(kinds, evaluate_shared(truth, lambda: iter(found), len(kinds)), strict=True):
        rows.setdefault(kind, []).append([metrics[what][name] for what, name in _NUMBERS])
    values = {kind: np.array(numbers) for kind, numbers in rows.items()}
    if negatives:
        values |= {f"{n}, gain": values[f"{n}, {negatives} negatives"] - values[str(n)] for n in shots}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="modulo 4 it is the novel split")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--draws", type=int, default=4, help="choices of references")
    parser.add_argument("--sam2", type=Path, help="--out folder of scripts/train_small.py (default: the package's)")
    parser.add_argument("--dinov2", type=Path, help="the same of DINOv2")
    parser.add_argument("--negatives", type=int, default=0, metavar="N", help="of each class; changes the scenes")
    parser.add_argument("--untrained", choices=("sam2", "dinov2"), nargs="+", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = load_models(folder, {"sam2": args.sam2, "dinov2": args.dinov2}, args.untrained)
        print("| seed | references | " + " | ".join(f"{kind} {name}" for kind, name in _NUMBERS) + " |")
        print("|---" * (2 + len(_NUMBERS)) + "|")
        means: dict[str, list[np.ndarray]] = {}
        for seed in args.seeds:
            rows = measure(folder / str(seed), *models, seed, args.scenes, args.shots, args.draws, args.negatives)
            for kind, values in rows.items():
                cells = [f"{m:.3f} +- {s:.3f}" for m, s in zip(values.mean(0), values.std(0), strict=True)]
                print(f"| {seed} | {kind} | " + " | ".join(cells) + " |", flush=True)
                means.setdefault(kind, []).append(values.mean(0))
        for kind, values in means.items():
            print(f"| mean | {kind} | " + " | ".join(f"{v:.3f}" for v in np.mean(values, axis=0)) + " |")


if __name__ == "__main__":
    main()
