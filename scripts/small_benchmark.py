"""COCO AP of the small models on made scenes of novel classes: mean and spread over several choices of references.

python scripts/small_benchmark.py                       the shipped weights, as in docs/small_models.md
python scripts/small_benchmark.py --untrained dinov2    a control: the same with random weights in one model
python scripts/small_benchmark.py --sam2 out/sam2       weights of scripts/train_small.py, before they are packed
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ntt_jax.ablation import ManyPredictor, distinct_references, sample_many, stack_prototypes
from ntt_jax.builder import ReferenceEncoder, build_memory
from ntt_jax.coco import select_classes
from ntt_jax.config import from_dict
from ntt_jax.demo import SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.dinov2 import DinoVisionTransformer
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.sam2.model import Sam2
from ntt_jax.scoring import evaluate_shared
from ntt_jax.training.loop import load_weights

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


def measure(
    folder: Path, sam2: Sam2, dinov2: DinoVisionTransformer, seed: int, scenes: int, shots: list[int], draws: int
) -> dict[int, np.ndarray]:
    """Numbers of `_NUMBERS` by shots, `[draws, 6]`, on the scenes of one seed."""
    benchmark = make_benchmark(folder, seed, scenes)
    classes = select_classes(benchmark.references, "all")
    sets = sample_many(benchmark.references, classes, shots, range(draws))
    distinct = distinct_references(list(sets.values()))
    encoder = ReferenceEncoder(dinov2, batch_size=8)
    memory = build_memory(encoder, benchmark.references, benchmark.folder / "references", distinct)
    prototypes = stack_prototypes(list(sets.values()), distinct, memory)
    predictor = ManyPredictor(sam2, dinov2, prototypes, SMALL_DETECT, batch_size=4, canvas=640)
    ids = sorted(benchmark.targets.images)
    shared: Any = predictor(benchmark.target_images())
    found: Any = [dataclasses.replace(one, image_id=i) for i, one in zip(ids, shared, strict=True)]
    truth = prepare_ground_truth(benchmark.targets, select_classes(benchmark.targets, "all"))
    metrics = dict(zip(sets, evaluate_shared(truth, lambda: found, len(sets)), strict=True))
    return {
        count: np.array([[metrics[count, draw][kind][name] for kind, name in _NUMBERS] for draw in range(draws)])
        for count in shots
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="modulo 4 it is the novel split")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--draws", type=int, default=4, help="choices of references")
    parser.add_argument("--sam2", type=Path, help="--out folder of scripts/train_small.py (default: the package's)")
    parser.add_argument("--dinov2", type=Path, help="the same of DINOv2")
    parser.add_argument("--untrained", choices=("sam2", "dinov2"), nargs="+", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = load_models(folder, {"sam2": args.sam2, "dinov2": args.dinov2}, args.untrained)
        print("| seed | shots | " + " | ".join(f"{kind} {name}" for kind, name in _NUMBERS) + " |")
        print("|---" * (2 + len(_NUMBERS)) + "|")
        means: dict[int, list[np.ndarray]] = {count: [] for count in args.shots}
        for seed in args.seeds:
            rows = measure(folder / str(seed), *models, seed, args.scenes, args.shots, args.draws)
            for count, values in rows.items():
                cells = [f"{m:.3f} +- {s:.3f}" for m, s in zip(values.mean(0), values.std(0), strict=True)]
                print(f"| {seed} | {count} | " + " | ".join(cells) + " |", flush=True)
                means[count].append(values.mean(0))
        for count, values in means.items():
            print(f"| mean | {count} | " + " | ".join(f"{v:.3f}" for v in np.mean(values, axis=0)) + " |")


if __name__ == "__main__":
    main()
