"""COCO's and LVIS's rules by hotcoco, image by image: what is kept of an image is its matches, not its masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import hotcoco
import numpy as np

from ntt_jax.detection.on_host import HostDetections, decimals
from ntt_jax.errors import InputError
from ntt_jax.evaluation.ground_truth import GroundTruth

Curves = tuple[np.ndarray, np.ndarray, Any]
"""COCOeval's precision `[T, R, K, A, M]` and recall `[T, K, A, M]`, -1 where not defined, and the parameters."""
_NO_BOXES = np.zeros((0, 7))
_IMAGES_AT_ONCE = 32  # one call for each image takes twice the time


class HotcocoScorer:
    """COCOeval's curves of detections that come one image at a time, in any order, each image at most once.

    By LVIS's rules if the ground truth is LVIS's. The caller checks image ids and labels.
    """

    def __init__(self, ground_truth: GroundTruth):
        self._ground_truth = ground_truth
        # Counted from 1, because ids of any size do not survive in a table of floats.
        self._images = {image_id: i + 1 for i, image_id in enumerate(ground_truth.image_ids)}
        self._classes = {category.id: k + 1 for k, category in enumerate(ground_truth.categories)}
        lists = self._lists = ground_truth.federated if ground_truth.protocol == "lvis" else None
        categories: list[dict[str, Any]] = [{"id": k, "name": str(k)} for k in self._classes.values()]
        if lists is not None:
            for category_id, category in zip(self._classes, categories, strict=True):
                category["frequency"] = lists.frequency[category_id]
        self._entries: dict[int, list[dict[str, Any]]] = {}
        for entry in ground_truth.entries:
            self._entries.setdefault(entry["image_id"], []).append(entry)
        self._waiting: list[tuple[int, HostDetections | None]] = []
        self._left = set(ground_truth.image_ids)
        with one_line():
            self._evaluations = {
                kind: hotcoco.StreamingEval(categories, kind, lvis_style=lists is not None)
                for kind in ground_truth.kinds
            }

    def add(self, image_id: int, record: HostDetections) -> None:
        """Compare the detections of one image with its objects."""
        self._left.discard(image_id)
        self._take(image_id, record)

    def curves(self) -> dict[str, Curves]:
        """By kind. Images that did not come have no detections. To be called once."""
        for image_id in sorted(self._left):
            self._take(image_id, None)
        self._flush()
        curves = {}
        for kind, streamed in self._evaluations.items():
            with one_line():
                evaluation = streamed.finalize()
                evaluation.accumulate()
                arrays: Any = evaluation.eval
                curves[kind] = np.asarray(arrays["precision"]), np.asarray(arrays["recall"]), evaluation.params
        return curves

    def _take(self, image_id: int, record: HostDetections | None) -> None:
        self._waiting.append((image_id, record))
        if len(self._waiting) >= _IMAGES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        images = [self._image(*one) for one in waiting]
        for kind, streamed in self._evaluations.items():
            objects = [entry for image_id, _ in waiting for entry in self._objects(image_id, kind)]
            parts = [self._found(self._images[i], record, kind) for i, record in waiting if record is not None]
            found: Any = list(chain.from_iterable(parts)) if kind == "segm" else np.concatenate([*parts, _NO_BOXES])
            with one_line():
                streamed.update(images, objects, found)

    def _image(self, image_id: int, record: HostDetections | None) -> dict[str, Any]:
        image: dict[str, Any] = {"id": self._images[image_id]}
        if self._lists is not None:
            image["neg_category_ids"] = self._known(self._lists.negative[image_id])
            image["not_exhaustive_category_ids"] = self._known(self._lists.not_exhaustive[image_id])
        masks = [entry["segmentation"] for entry in self._entries.get(image_id, []) if "segmentation" in entry]
        masks = list(record.rles[:1]) + masks if record is not None else masks
        image["height"], image["width"] = masks[0]["size"] if masks else (1, 1)
        return image

    def _objects(self, image_id: int, kind: str) -> list[dict[str, Any]]:
        return [
            {
                "id": entry["id"],
                "image_id": self._images[image_id],
                "category_id": self._classes[entry["category_id"]],
                "bbox": entry["bbox"],
                "area": entry["area"],
                "iscrowd": entry["iscrowd"],
                **({"segmentation": entry["segmentation"]} if kind == "segm" else {}),
            }
            for entry in self._entries.get(image_id, [])
            if kind == "bbox" or "segmentation" in entry
        ]

    def _known(self, category_ids: frozenset[int]) -> list[int]:
        return sorted(self._classes[i] for i in category_ids if i in self._classes)

    @staticmethod
    def _found(number: int, record: HostDetections, kind: str) -> Any:
        """The detections as hotcoco takes them. Without a box the size of a detection is its mask's (APs, APm, APl)."""
        labels = (record.labels + 1).tolist()  # of a score only its rank matters, so float32 will do
        if kind == "segm":
            return [
                {"image_id": number, "category_id": label, "score": score, "segmentation": rle}
                for label, score, rle in zip(labels, record.scores.tolist(), record.rles, strict=True)
            ]
        corners = record.boxes
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        table = np.empty((len(record), 7))
        table[:, 0], table[:, 5], table[:, 6] = number, record.scores, labels
        table[:, 1:5] = boxes
        broken = boxes != np.round(boxes)  # whole pixels, as masks give them, are their own decimals
        if broken.any():
            table[:, 1:5][broken] = decimals(boxes[broken])
        return table


@contextmanager
def one_line() -> Iterator[None]:
    """What fails inside hotcoco becomes one line. A panic of Rust is no `Exception`: it would pass every handler."""
    try:
        yield
    except (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"evaluation: hotcoco failed ({text}); pycocotools may do: --scorer pycocotools") from error
