"""A finished run on the disk without any model: scenes of rectangles, detections right and wrong in known ways."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.config import DinoV2Config
from ntt_jax.datasets.coco import load_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation.results import ImageDetections, write_results
from ntt_jax.files import write_json
from ntt_jax.images.rle import encode_masks
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, save_memory
from weight_port.files import sha256

CLASSES = {3: "square", 5: "disc", 8: "bar"}
HOSTILE = {
    3: "<img src=x onerror=\"window.hacked='class'\">",
    5: "</script><script>window.hacked='script'</script>",
    8: "\u2028'\"&lt;${window.hacked}%%DATA%%",
}
HOSTILE_FILE = "a\"><svg onload=window.hacked='file'>&amp;{}.png"
ENCODER = DinoV2Config(name="tiny", embed_dim=16, depth=1, num_heads=2, image_size=140, input_size=140)
WORDS = ("right", "localisation", "classification", "duplicate", "background")


@dataclasses.dataclass(frozen=True)
class Run:
    """Paths of a run folder and what belongs to it."""

    folder: Path
    annotations: Path
    images: Path
    names: dict[int, str]


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    x, y, wide, high = box
    mask[y : y + high, x : x + wide] = True
    return mask


def make_run(
    base: Path,
    count: int,
    *,
    names: dict[int, str] = CLASSES,
    file_name: str = "scene_{}.png",
    size: tuple[int, int] = (120, 160),
    extra: int = 0,
    seed: int = 0,
) -> Run:
    """`count` images with two objects each; in image i one detection of the i-th kind of `WORDS` beside a right one.

    extra: more background detections per image, with low scores.
    """
    generator = np.random.default_rng(seed)
    (base / "images").mkdir(parents=True)
    height, width = size
    ids = sorted(names)
    images, annotations, records = [], [], []
    for i in range(count):
        name, image_id = file_name.format(i), 100 + i
        coarse = generator.integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(base / "images" / name, "JPEG", quality=70)  # the content decides, not the name
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        unit = height // 12
        boxes = [(2 * unit, 2 * unit, 4 * unit, 4 * unit), (8 * unit, 6 * unit, 4 * unit, 4 * unit)]
        labels = [i % 3, (i + 1) % 3]
        masks = [rectangle(height, width, box) for box in boxes]
        for label, box, rle in zip(labels, boxes, encode_masks(np.asarray(masks)), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[label],
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )
        records.append(_detections(image_id, size, boxes, labels, WORDS[i % len(WORDS)], extra, generator))
    categories = [{"id": i, "name": name} for i, name in names.items()]
    path = base / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    folder = base / "run"
    folder.mkdir()
    write_results(folder / "results.json", records, ids)
    _write_memory(folder, annotations, names, load_coco(path).sha256)
    identity = {
        "annotation file": sha256(path),
        "memory": sha256(folder / "memory.safetensors"),
        "dtype": "float32",
        "note": f"{names[ids[0]]}",
    }
    files = {"annotations": str(path), "images": str(base / "images")}
    start = {"started": "2026-01-01T00:00:00Z", "seconds": 1.0, "files": files}
    write_json(folder / "run.json", {"format": 1, "identity": identity, "starts": [start]})
    skipped = [{"image_id": 100, "file_name": images[0]["file_name"], "reason": f"broken {names[ids[0]]}"}]
    rows = [{"category_id": i, "name": names[i]} for i in ids]
    write_json(folder / "metrics.json", {"per_class": rows, "skipped": skipped})
    return Run(folder, path, base / "images", names)


def _detections(
    image_id: int, size: tuple[int, int], boxes: Any, labels: list[int], word: str, extra: int, generator: Any
) -> ImageDetections:
    """The first object is found with 0.9; 0.8 for what is the matter with the second one."""
    height, width = size
    unit = height // 12
    x, y, wide, high = boxes[1]
    second = {
        "right": (boxes[1], labels[1]),
        "localisation": ((x, y, wide // 3, high), labels[1]),
        "classification": (boxes[1], (labels[1] + 1) % 3),
        "duplicate": (boxes[0], labels[0]),
        "background": ((x, 0, wide, unit), labels[1]),
    }[word]
    found = [(boxes[0], labels[0], 0.9), (*second, 0.8)]
    for _ in range(extra):
        corner = generator.integers(0, [width - unit, height - unit])
        found.append(((*corner.tolist(), unit, unit), int(generator.integers(3)), float(generator.uniform(0.05, 0.4))))
    found.sort(key=lambda row: -row[2])
    masks = np.asarray([rectangle(height, width, box) for box, _, _ in found])
    corners = [(x, y, x + w - 1, y + h - 1) for (x, y, w, h), _, _ in found]
    scores, classes = [score for _, _, score in found], [label for _, label, _ in found]
    arrays = np.asarray(corners), np.asarray(scores), np.asarray(classes)
    return image_id, HostDetections(height, width, *arrays, tuple(encode_masks(masks)))


def _write_memory(folder: Path, annotations: list[dict[str, Any]], names: dict[int, str], sha: str) -> None:
    """A memory of up to four references per class, the last one of the first class like the second class."""
    generator = np.random.default_rng(1)
    ids = sorted(names)
    centres = np.eye(ENCODER.embed_dim, dtype=np.float32)[: len(ids)]
    chosen = {i: [a for a in annotations if a["category_id"] == i][:4] for i in ids}
    means = [
        [centres[k] + 0.1 * generator.normal(size=ENCODER.embed_dim).astype(np.float32) for _ in chosen[i]]
        for k, i in enumerate(ids)
    ]
    means[0][-1] = centres[1]
    references = {str(i): [[a["image_id"], a["id"]] for a in chosen[i]] for i in ids}
    provenance = {"annotations_sha256": sha, "references": references, "tool": "test"}
    memory = memory_from_instance_means(means, [names[i] for i in ids])
    bank = MemoryBank(memory, tuple(names[i] for i in ids), tuple(ids), ENCODER, provenance)
    save_memory(folder / "memory.safetensors", bank)


def data_of(page: Path, block: str = "data") -> Any:
    """What a page holds as JSON: "data" or "pictures"."""
    text = page.read_text("utf-8")
    found = re.search(rf'<script type="application/json" id="{block}">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])
