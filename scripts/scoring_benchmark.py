"""How long COCO's rules take by hotcoco and by pycocotools, on the same made detections: seconds, memory, ratio.

    python scripts/scoring_benchmark.py --images 5000        # --scorers hotcoco leaves pycocotools' minutes out
    python scripts/scoring_benchmark.py --images 5000 --classes 1203 --lvis --scorers hotcoco
    python scripts/scoring_benchmark.py --images 200 --memories 60 --scorers hotcoco     # as `ntt-jax ablate`

Each scorer runs in a process of its own. The numbers of all scorers are compared and must be equal to the last digit.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.ablation.scoring import evaluate_shared
from ntt_jax.datasets.coco import parse_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation import SCORERS, evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.results import ImageDetections
from ntt_jax.images.rle import encode_masks

SIDE, OBJECTS = 160, 7


def made(images: int, detections: int, classes: int, lvis: bool) -> tuple[dict, list[ImageDetections]]:
    """A COCO or LVIS document of rectangles, and detections that hit some of them."""
    generator = np.random.default_rng(0)
    masks = np.zeros((500, SIDE, SIDE), np.bool_)
    boxes = np.zeros((500, 4), np.int64)
    for i in range(500):
        w, h = generator.integers(8, 60, 2)
        x, y = generator.integers(0, SIDE - w), generator.integers(0, SIDE - h)
        masks[i, y : y + h, x : x + w] = True
        boxes[i] = x, y, x + w - 1, y + h - 1
    rles = encode_masks(masks)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": [],
    }
    if lvis:  # of each image twenty classes are known to be absent
        for image in content["images"]:
            absent = generator.choice(classes, 20, replace=False) + 1
            image |= {"neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": []}
        for category in content["categories"]:
            category["frequency"] = "rcf"[category["id"] % 3]
    found = []
    for i in range(1, images + 1):
        for j in generator.integers(0, 500, OBJECTS):
            x1, y1, x2, y2 = boxes[j].tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i,
                    "category_id": int(generator.integers(1, classes + 1)),
                    "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
                    "segmentation": rles[j],
                    "area": float(masks[j].sum()),
                    "iscrowd": 0,
                }
            )
        chosen = generator.integers(0, 500, detections)
        scores = np.sort(generator.random(detections).astype(np.float32))[::-1]
        labels = generator.integers(0, classes, detections)
        one = HostDetections(SIDE, SIDE, boxes[chosen], scores, labels, tuple(rles[j] for j in chosen))
        found.append((i, one))
    return content, found


def shared(found: list[ImageDetections], memories: int) -> list[SharedDetections]:
    """As many memories, each of which found a quarter of the masks of every image."""
    generator = np.random.default_rng(1)
    result = []
    for image_id, one in found:
        masks = np.stack([generator.permutation(len(one))[: len(one) // 4] for _ in range(memories)]).astype(np.int32)
        scores = -np.sort(-generator.random(masks.shape).astype(np.float32), axis=1)
        labels = one.labels[masks]
        result.append(SharedDetections(image_id, one.height, one.width, one.boxes, one.rles, masks, labels, scores))
    return result


def run(scorer: str, images: int, detections: int, classes: int, lvis: bool, memories: int) -> None:
    """One scorer, in this process: a line of JSON."""
    content, found = made(images, detections * (4 if memories else 1), classes, lvis)
    many = shared(found, memories) if memories else []
    dataset = parse_coco(json.dumps(content).encode(), "made.json")
    truth = prepare_ground_truth(dataset, list(dataset.categories.values()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if memories:
        metrics = evaluate_shared(truth, lambda: iter(many), memories, scorer=scorer)
    else:
        metrics = evaluate_detections(truth, found, scorer=scorer)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "more": (after - before) / 1024, "peak": after / 1024, "metrics": metrics}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--lvis", action="store_true", help="by LVIS's rules")
    parser.add_argument("--memories", type=int, default=0, help="score so many memories on the same images")
    parser.add_argument("--scorers", default=",".join(SCORERS))
    parser.add_argument("--one", choices=SCORERS, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    size = (parsed.images, parsed.detections, parsed.classes)
    if parsed.one:
        return run(parsed.one, *size, parsed.lvis, parsed.memories)
    results = {}
    for scorer in parsed.scorers.split(","):
        sizes = [f"--images={size[0]}", f"--detections={size[1]}", f"--classes={size[2]}"]
        more = [f"--memories={parsed.memories}", *(["--lvis"] if parsed.lvis else [])]
        command = [sys.executable, __file__, "--one", scorer, *sizes, *more]
        results[scorer] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    words = f", {parsed.memories} memories" if parsed.memories else ""
    print(f"{size[0]} images x {size[1]} detections x {size[2]} classes, boxes and masks{words}")
    for scorer, result in results.items():
        print(
            f"  {scorer:12} {result['seconds']:7.2f} s  {result['more']:6.0f} MiB more, peak {result['peak']:.0f} MiB"
        )
    if len(results) > 1:
        first, *others = results.values()
        equal = first["metrics"] == others[0]["metrics"]
        print(f"  ratio {others[0]['seconds'] / first['seconds']:.1f}, numbers equal: {equal}")


if __name__ == "__main__":
    main()
