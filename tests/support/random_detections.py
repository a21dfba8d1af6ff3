"""Random objects and detections of them, with everything that scoring rules disagree about: ties, misses, doubles."""

import json
from typing import Any

import numpy as np
from host_detections import host_detections

from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.evaluation.results import ImageDetections
from ntt_jax.images.rle import encode_masks

HEIGHT, WIDTH = 60, 80
LVIS_NAMES = ["aardvark", "bagel", "cabana", "dagger", "easel", "fig"]


def random_mask(generator: np.random.Generator, largest: int = 50) -> np.ndarray:
    """A rectangle with a corner cut off."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    w, h = generator.integers(4, largest, 2)
    x, y = generator.integers(0, WIDTH - 8), generator.integers(0, HEIGHT - 8)
    mask[y : y + h, x : x + w] = True
    mask[y : y + h // 4, x : x + w // 4] = False
    return mask


def bounding_box(mask: np.ndarray) -> list[float]:
    """x, y, width, height."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return [float(corners[0]), float(corners[1]), float(corners[2] - corners[0]), float(corners[3] - corners[1])]


def random_content(seed: int, *, names: list[str], images: int = 12, crowds: bool = False) -> dict[str, Any]:
    """A COCO document; the last class has no object. Areas of objects are spread over COCO's three ranges."""
    generator = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "images": [
            {"id": 5 + 3 * ((i * 7) % images), "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH}
            for i in range(images)
        ],
        "categories": [{"id": 2 * k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": [],
    }
    for image in content["images"]:
        for _ in range(generator.integers(0, 7)):
            mask = random_mask(generator)
            content["annotations"].append(
                {
                    "id": 40 + len(content["annotations"]),
                    "image_id": image["id"],
                    "category_id": int(2 * generator.integers(0, max(len(names) - 1, 1)) + 1),
                    "bbox": bounding_box(mask),
                    "area": float(mask.sum() * generator.choice([1, 4, 20])),
                    "iscrowd": int(crowds and generator.random() < 0.2),
                    "segmentation": encode_masks(mask[None])[0],
                }
            )
    return content


def lvis_content(seed: int, **options: Any) -> dict[str, Any]:
    """A document in LVIS's form: no file names, the federated lists, frequencies, no crowds."""
    generator = np.random.default_rng(seed)
    content = random_content(seed, names=LVIS_NAMES, **options)
    ids = [category["id"] for category in content["categories"]]
    for image in content["images"]:
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image['id']:012}.jpg"
        there = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        absent = [i for i in ids if i not in there]
        image["neg_category_ids"] = [i for i in absent if generator.random() < 0.5]
        image["not_exhaustive_category_ids"] = [i for i in there if generator.random() < 0.3]
    for k, category in enumerate(content["categories"]):
        category |= {"frequency": "rccffc"[k], "image_count": 3, "synset": "x.n.01"}
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    return content


def parse(content: dict[str, Any]) -> CocoDataset:
    """The document as a data set."""
    return parse_coco(json.dumps(content).encode(), "folder/x.json")


def random_detections(dataset: CocoDataset, seed: int, *, most: int = 30) -> list[ImageDetections]:
    """Objects shifted, doubled and mislabelled, with others among them; few distinct scores. One image has none."""
    generator = np.random.default_rng(seed)
    class_ids = list(dataset.categories)
    records = []
    for image_id in list(dataset.images)[1:]:
        masks, labels = [random_mask(generator)], [int(generator.integers(len(class_ids)))]
        objects = dataset.image_annotations[image_id]
        for _ in range(int(generator.integers(0, most)) if objects else 3):
            entry = objects[generator.integers(len(objects))] if objects else None
            if entry is None or generator.random() < 0.2:
                masks.append(random_mask(generator))
                labels.append(int(generator.integers(len(class_ids))))
                continue
            mask = np.roll(dataset.mask(entry), tuple(generator.integers(0, 4, 2)), axis=(0, 1))
            masks.append(mask)
            labels.append(class_ids.index(entry.category_id))
        boxes = np.array([bounding_box(mask) for mask in masks])
        boxes[:, 2:] += boxes[:, :2] - 1  # corners inclusive
        scores = np.sort(generator.integers(1, 20, len(masks)) / np.float32(20))[::-1]
        found = host_detections(np.stack(masks), boxes, scores.astype(np.float32), np.array(labels))
        records.append((image_id, found))
    return records
