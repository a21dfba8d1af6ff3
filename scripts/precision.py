"""Measure what a narrower arithmetic costs: detections and AP in it against float32, with the package's small models.

    python scripts/precision.py --scenes 40 --seeds 4

Memory and detections are computed twice on made scenes of classes the models never saw, once in float32 and once in
`--dtype`. Every float32 detection is compared with the one of the same class whose mask overlaps it most. Needs the
`torch` extra, which reads the checkpoints.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measured import add_json_option, circumstances, show
from pycocotools import mask as coco_mask

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DTYPES, arithmetic
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.demo.demo import SMALL_DETECT, convert_checkpoints, evaluate, make_benchmark
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.references.build import build_memory
from ntt_jax.references.sampling import sample_references


def compare(exact: HostDetections, other: HostDetections) -> Iterator[tuple[float, float]]:
    """For every float32 detection the overlap with its best counterpart and the difference of the scores."""
    if not len(exact.scores):
        return
    overlaps = np.zeros((len(exact.scores), max(1, len(other.scores))))
    if len(other.scores):
        ours: Any = exact.rles
        theirs: Any = other.rles
        iou: Any = coco_mask.iou(ours, theirs, [0] * len(theirs))
        overlaps = iou * (exact.labels[:, None] == other.labels[None])
    for row, score in zip(overlaps, exact.scores, strict=True):
        best = int(row.argmax())
        yield float(row[best]), float(abs(score - other.scores[best])) if row[best] > 0 else float(score)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES[1:], default="bfloat16")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=4, help="seeds 0, 1, ...: other scenes, classes and references")
    parser.add_argument("--shots", type=int, default=5)
    add_json_option(parser)
    args = parser.parse_args()

    overlaps: list[float] = []
    drifts: list[float] = []
    changes: dict[str, list[float]] = {"bbox": [], "segm": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = convert_checkpoints(Path(folder))
        engines = []
        for dtype in ("float32", args.dtype):
            narrow, precision = arithmetic(dtype)
            sam2, dinov2 = load_sam2(paths[0], narrow), load_dinov2(paths[1], narrow)
            engines.append(
                (sam2, dinov2, precision, ReferenceEncoder(dinov2, batch_size=4, matmul_precision=precision))
            )
        predictors: list[Predictor] = []
        for seed in range(args.seeds):
            benchmark = make_benchmark(Path(folder) / str(seed), seed, args.scenes)
            classes = select_classes(benchmark.references, "all")
            references = sample_references(benchmark.references, classes, args.shots, seed)
            runs = []
            for sam2, dinov2, precision, encoder in engines:
                memory = build_memory(encoder, benchmark.references, benchmark.folder / "references", references)
                if len(predictors) < len(engines):
                    predictors.append(
                        Predictor(
                            sam2,
                            dinov2,
                            memory.prototypes,
                            SMALL_DETECT,
                            batch_size=4,
                            matmul_precision=precision,
                            canvas=640,
                        )
                    )
                runs.append(evaluate(benchmark, predictors[len(runs)].with_prototypes(memory.prototypes)))
            (exact_metrics, exact), (metrics, found) = runs
            for kind, change in changes.items():
                change.append(metrics[kind]["AP"] - exact_metrics[kind]["AP"])
                print(
                    f"seed {seed}: {kind} AP {exact_metrics[kind]['AP']:.4f} -> {metrics[kind]['AP']:.4f}", flush=True
                )
            for image in zip(exact, found, strict=True):
                for overlap, drift in compare(*image):
                    overlaps.append(overlap)
                    drifts.append(drift)
    report = {
        **circumstances(),
        "dtype": args.dtype,
        "detections": len(overlaps),
        "mask_iou": {
            "median": statistics.median(overlaps),
            "mean": statistics.fmean(overlaps),
            "above .95": float(np.mean(np.array(overlaps) > 0.95)),
            "without a counterpart": float(np.mean(np.array(overlaps) == 0)),
        },
        "score_drift": {"median": statistics.median(drifts), "95 %": float(np.quantile(drifts, 0.95))},
        "AP_change": {kind: [round(value, 4) for value in change] for kind, change in changes.items()},
        "AP_change_mean": {kind: statistics.fmean(change) for kind, change in changes.items()},
    }
    show(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
