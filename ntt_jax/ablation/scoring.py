"""COCO average precision of many memories at once: the numbers of `evaluate_detections`, exactly, for all of them.

pycocotools compares every detection of every result anew and matches them in Python loops. Here a mask that several
memories found is compared with the ground truth once, the matching of one image and class is done for all memories,
thresholds and area ranges together, and detections that overlap nothing by the lowest threshold are not matched at all.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.cocoeval import Params

from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth, assemble_metrics, evaluate_detections
from ntt_jax.evaluation.matching import match_objects
from ntt_jax.evaluation.results import decimals
from ntt_jax.images.rle import rle_areas

MEMORIES_AT_ONCE = 64
"""Memories scored in one pass over the detections. What a pass holds per detection is 10 bytes and its matches."""
_MASKS_AT_ONCE = 128  # pycocotools (2.0.11) fails on some lists of 256 and more


def evaluate_shared(
    ground_truth: GroundTruth, read: Callable[[], Iterable[SharedDetections]], memories: int
) -> list[dict[str, Any]]:
    """Metrics of every memory, each equal to `evaluate_detections(ground_truth, [found.of(m) for found in read()])`.

    read: starts a pass over the detections by ascending image id, each image at most once; it is called again for every
    `MEMORIES_AT_ONCE` memories. memories: M of all of them. By other rules than COCO's each memory is scored by itself,
    in a pass of its own.

    Raises `InputError` if a detection is of an image that is not evaluated, an image comes twice, or M differs.
    """
    if ground_truth.protocol != "coco":
        return [evaluate_detections(ground_truth, (found.of(m) for found in read())) for m in range(memories)]
    found = []
    for start in range(0, memories, MEMORIES_AT_ONCE):
        found += _evaluate_some(ground_truth, read(), memories, range(start, min(start + MEMORIES_AT_ONCE, memories)))
    return found


def _evaluate_some(
    ground_truth: GroundTruth, detections: Iterable[SharedDetections], memories: int, chosen: range
) -> list[dict[str, Any]]:
    classes = {category.id: k for k, category in enumerate(ground_truth.categories)}
    entries: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in ground_truth.image_ids}
    for entry in ground_truth.entries:
        entries[entry["image_id"]].append({**entry, "class": classes[entry["category_id"]]})
    boards = {kind: _Board(kind, ground_truth, len(classes), chosen) for kind in ground_truth.kinds}
    counts = np.zeros((len(chosen), len(classes)), int)
    previous = -1
    for found in detections:
        if found.image_id not in entries or found.image_id <= previous or len(found.masks) != memories:
            raise InputError(
                f"evaluation: detections of image {found.image_id}: expected images to evaluate in ascending order, "
                f"of {memories} memories, found {len(found.masks)}"
            )
        previous = found.image_id
        rows = _Rows.of(found, chosen, len(classes))
        np.add.at(counts, (rows.memory, rows.label), 1)
        for board in boards.values():
            there = entries[found.image_id]
            board.add(found, rows, there if board.kind == "bbox" else [e for e in there if "segmentation" in e])
    curves = {kind: board.curves() for kind, board in boards.items()}
    return [
        assemble_metrics(
            ground_truth,
            {kind: (precision[i], recall[i], params) for kind, (precision, recall, params) in curves.items()},
            counts[i].tolist(),
        )
        for i in range(len(chosen))
    ]


class _Rows:
    """All detections of one image by several memories, by memory and class, then best first.

    memory, label, mask, rank (among those of the memory and class), score: `[n]` each.
    """

    def __init__(self, memory: np.ndarray, label: np.ndarray, mask: np.ndarray, score: np.ndarray, classes: int):
        self.memory, self.label, self.mask, self.score = memory, label, mask, score
        group = memory * classes + label
        # A place minus that of the first of its group.
        first = np.concatenate([[True], group[1:] != group[:-1]]) if len(group) else np.zeros(0, bool)
        place = np.arange(len(group))
        self.rank = place - np.maximum.accumulate(np.where(first, place, 0)) if len(group) else place

    @classmethod
    def of(cls, found: SharedDetections, chosen: range, classes: int) -> "_Rows":
        part = slice(chosen.start, chosen.stop)
        masks, labels, scores = found.masks[part], found.labels[part], found.scores[part]
        memory, column = np.nonzero(masks >= 0)
        label, mask, score = (array[memory, column] for array in (labels, masks, scores))
        if label.size and label.max() >= classes:
            raise InputError(f"detections of image {found.image_id}: label {label.max()} has no category")
        order = np.lexsort((-score, label, memory))  # stable: equal scores stay in order
        return cls(memory[order], label[order], mask[order], score[order], classes)


class _Board:
    """Matches of one kind, "bbox" or "segm", collected image by image. T thresholds, A area ranges."""

    def __init__(self, kind: Any, ground_truth: GroundTruth, classes: int, chosen: range):
        self.kind, self.memories, self.classes = kind, len(chosen), classes
        params = self.params = Params(iouType=kind)
        self.limit = params.maxDets[-1]
        self.ranges = np.asarray(params.areaRng, np.float64)  # [A, 2]
        # pycocotools starts its search for a better overlap here.
        self.thresholds = np.minimum(params.iouThrs, 1 - 1e-10)
        entries = ground_truth.of_kind(kind)
        area = np.array([entry["area"] for entry in entries], np.float64)
        crowd = np.array([entry["iscrowd"] for entry in entries], bool)
        label = np.searchsorted(
            [category.id for category in ground_truth.categories],
            [entry["category_id"] for entry in entries],
        ).astype(int)
        counted = ~(crowd[None] | self._outside(area).T)  # [A, n]
        self.positives = np.stack([np.bincount(label[row], minlength=classes) for row in counted], axis=1)  # [K, A]
        self.rows: list[tuple[np.ndarray, ...]] = []
        self.matches: list[tuple[np.ndarray, ...]] = []
        self.total = 0

    def _outside(self, area: np.ndarray) -> np.ndarray:
        """Whether each area lies outside each range: `[n]` -> `[n, A]`."""
        return (area[:, None] < self.ranges[None, :, 0]) | (area[:, None] > self.ranges[None, :, 1])

    def add(self, found: SharedDetections, rows: _Rows, entries: list[dict[str, Any]]) -> None:
        """Match the detections of one image with its ground truth."""
        if self.kind == "segm":
            area = rle_areas(found.rles).astype(np.float64)
            shapes: Any = list(found.rles)
        else:
            corners = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
            shapes = np.array([decimals(box) for box in corners], np.float64).reshape(-1, 4)
            area = shapes[:, 2] * shapes[:, 3]
        outside = self._outside(area)
        kept = np.flatnonzero(rows.rank < self.limit)
        self.rows.append(
            (
                rows.memory[kept].astype(np.int16),
                rows.label[kept].astype(np.int32),
                rows.rank[kept].astype(np.uint8),
                rows.score[kept],
                outside[rows.mask[kept]],
            )
        )
        if entries and len(kept):
            crowd = [entry["iscrowd"] for entry in entries]
            truth: Any = [entry["segmentation" if self.kind == "segm" else "bbox"] for entry in entries]
            truth = np.asarray(truth, np.float64) if self.kind == "bbox" else truth
            overlap = np.concatenate(
                [
                    np.asarray(mask_api.iou(shapes[i : i + _MASKS_AT_ONCE], truth, crowd)).reshape(-1, len(entries))
                    for i in range(0, len(shapes), _MASKS_AT_ONCE)
                ]
            )  # [U, G]
            labels = np.array([entry["class"] for entry in entries])
            for label in np.unique(labels):
                own = np.flatnonzero(labels == label)
                self._match(rows, kept, label, overlap[:, own], [entries[i] for i in own])
        self.total += len(kept)

    def _match(
        self, rows: _Rows, kept: np.ndarray, label: int, overlap: np.ndarray, entries: list[dict[str, Any]]
    ) -> None:
        """Match the detections of one class, best first, for all memories, thresholds and ranges. overlap `[U, G]`."""
        near = overlap.max(axis=1) >= self.thresholds[0]
        place = np.flatnonzero((rows.label[kept] == label) & near[rows.mask[kept]])  # by memory, best first
        if not len(place):
            return
        memory, mask = rows.memory[kept][place], rows.mask[kept][place]
        crowd = np.array([entry["iscrowd"] for entry in entries], bool)
        ignored = crowd[None] | self._outside(np.array([entry["area"] for entry in entries], np.float64)).T  # [A, G]
        found, to_ignored = match_objects(overlap[mask], memory, self.thresholds, crowd, ignored)
        self.matches.append((self.total + place, found >= 0, to_ignored))

    def curves(self) -> tuple[np.ndarray, np.ndarray, Any]:
        """COCOeval's precision `[M, T, R, K, A, D]`, recall `[M, T, K, A, D]`; -1 what no number is made of."""
        params, detections = self.params, len(self.params.maxDets)
        shape = (len(params.iouThrs), self.classes, len(params.areaRng), detections)
        recall = np.full((self.memories, *shape), -1.0)
        precision = np.full((self.memories, shape[0], len(params.recThrs), *shape[1:]), -1.0)
        empty = (np.zeros(0, np.int16), np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0, np.float32))
        self.rows.append((*empty, np.zeros((0, shape[2]), bool)))
        memory, label, rank, score, outside = (np.concatenate(parts) for parts in zip(*self.rows, strict=True))
        nothing = np.zeros((0, shape[0], shape[2]), bool)
        self.matches.append((np.zeros(0, int), nothing, nothing))
        where, matched, to_ignored = (np.concatenate(parts) for parts in zip(*self.matches, strict=True))
        match_of = np.full(len(memory), -1, np.int32)
        match_of[where] = np.arange(len(where))

        group = memory.astype(np.int64) * self.classes + label
        # By memory and class, best first; equal scores by image, then by rank, as they came.
        order = np.lexsort((-score, group))
        bounds = np.searchsorted(group[order], np.arange(self.memories * self.classes + 1))
        for m in range(self.memories):
            for k in range(self.classes):
                rows = order[bounds[m * self.classes + k] : bounds[m * self.classes + k + 1]]
                match = match_of[rows]
                met = match >= 0
                hit = np.zeros((len(rows), shape[0], shape[2]), bool)  # [n, T, A]
                hit[met] = matched[match[met]]
                lost = np.broadcast_to(outside[rows][:, None], hit.shape).copy()
                lost[met] = np.where(hit[met], to_ignored[match[met]], lost[met])
                for d, limit in enumerate(params.maxDets):
                    some = rank[rows] < limit
                    for a, count in enumerate(self.positives[k]):
                        if count and (a == 0 or d == detections - 1):
                            ignored = lost[some, :, a].T  # [T, n]
                            p, r = _curve(hit[some, :, a].T & ~ignored, ignored, count, params.recThrs)
                            precision[m, :, :, k, a, d], recall[m, :, k, a, d] = p, r
        return precision, recall, params


def _curve(hits: np.ndarray, ignored: np.ndarray, positives: int, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision `[T, R]` at the recall levels and largest recall `[T]` of detections `[T, n]`, best first."""
    count = hits.shape[1]
    true = np.cumsum(hits, axis=1).astype(float)
    false = np.cumsum(~hits & ~ignored, axis=1).astype(float)
    recall = true / positives
    precision = true / (false + true + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros((len(hits), len(levels)))
    for t in range(len(hits)):
        place = np.searchsorted(recall[t], levels, side="left")
        reached = place < count
        found[t, reached] = precision[t, place[reached]]
    return found, recall[:, -1] if count else np.zeros(len(hits))
