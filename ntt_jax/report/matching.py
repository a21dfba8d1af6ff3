"""Which detections are right, and what is wrong with the others. Host only, numpy over a whole run.

Matching follows pycocotools' COCOeval (all sizes, 100 detections per class and image), for LVIS with its own rules of
what is ignored; VOC's difficult objects are ignored as crowds are. The kinds of errors are those
of TIDE (Bolya et al. 2020), at IoU 0.5 for "found" and 0.1 for "touched". Matching is greedy by descending score, so
leaving out what scores below some threshold changes no match above it: counts at any threshold follow from the same
rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth
from ntt_jax.evaluation.lvis import DETECTIONS_PER_IMAGE
from ntt_jax.evaluation.matching import match_objects
from ntt_jax.images.rle import Rle, encode_masks

THRESHOLDS = np.linspace(0.5, 0.95, 10)
FOUND, TOUCHED = 0.5, 0.1
MAX_PER_CLASS = 100

KINDS = ("right", "localisation", "classification", "both", "duplicate", "background", "ignored")
"""What a detection is. right: matched at IoU 0.5; localisation: its class, but IoU under 0.5; classification: an object
of another class at IoU 0.5; both: of another class and under 0.5; duplicate: the object is taken by a better detection;
background: touches no object; ignored: on a crowd or a difficult object, of a class that LVIS does not judge in this
image, or beyond the number that is judged."""
RIGHT, LOCALISATION, CLASSIFICATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(len(KINDS))


@dataclass(frozen=True, eq=False)
class MatchedRows:
    """All N detections and M objects of a run, by ascending image id; detections of an image by descending score.

    Detections: image `[N]` int32 position in the ground truth's image_ids; label `[N]` int32 class index; score `[N]`
    float32; hit `[N, 10]` bool, matched at each IoU threshold; ignored `[N, 10]` bool, COCOeval leaves it out; kind
    `[N]` int8, index into `KINDS`; target `[N]` int32, row of the object it is about or -1; overlap `[N]` float32, IoU
    with it (0 without one); taken `[N]` int32, row of the object it takes when classes are not looked at, -1: none,
    -2: only objects that are taken already.
    Objects, in the order of `GroundTruth.entries`: object_image, object_label `[M]` int32; crowd `[M]` bool, crowds and
    difficult ones, which do not count; found `[M]` int32, row of the detection that matches it at IoU 0.5 or -1.
    classes: K.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    overlap: np.ndarray
    taken: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    crowd: np.ndarray
    found: np.ndarray
    classes: int

    @property
    def objects(self) -> np.ndarray:
        """Objects of each class, `[K]`; crowds do not count."""
        return np.bincount(self.object_label[~self.crowd], minlength=self.classes)


def match(ground_truth: GroundTruth, detections: Mapping[int, HostDetections], kind: str) -> MatchedRows:
    """Match the detections of every image with its objects, by the IoU of masks ("segm") or boxes ("bbox").

    detections: by image id; an image without an entry has none.
    Raises `InputError` if a detection is of a class or an image that the ground truth does not have.
    """
    if unknown := set(detections) - set(ground_truth.image_ids):
        raise InputError(f"report: image {min(unknown)} of the detections is not among the evaluated images")
    index = {category.id: k for k, category in enumerate(ground_truth.categories)}
    entries: dict[int, list[int]] = {image_id: [] for image_id in ground_truth.image_ids}
    for row, entry in enumerate(ground_truth.entries):
        entries[entry["image_id"]].append(row)
    labels = np.array([index[entry["category_id"]] for entry in ground_truth.entries], np.int32)
    crowd = np.array([bool(entry["iscrowd"] or entry["difficult"]) for entry in ground_truth.entries], bool)
    if kind == "segm":  # what has no mask is not compared by it
        crowd |= np.array(["segmentation" not in entry for entry in ground_truth.entries], bool)
    object_image = np.zeros(len(labels), np.int32)
    found = np.full(len(labels), -1, np.int32)
    parts: list[dict[str, np.ndarray]] = []
    count = 0
    for position, image_id in enumerate(ground_truth.image_ids):
        rows = np.array(entries[image_id], np.intp)
        object_image[rows] = position
        record = detections.get(image_id)
        if record is None or not len(record):
            continue
        if record.labels.max() >= len(ground_truth.categories):
            raise InputError(f"report: image {image_id} has a detection of class {record.labels.max()}, unknown here")
        order = np.argsort(-record.scores, kind="stable")
        truth = [ground_truth.entries[row] for row in rows]
        overlaps = _overlaps(record, truth, kind)[order]
        judged, complete = _judged(ground_truth, image_id, record.labels[order], labels[rows])
        part, matched = _match_image(overlaps, record.labels[order], labels[rows], crowd[rows], judged, complete)
        found[rows] = np.where(matched >= 0, matched + count, -1)
        for name in ("target", "taken"):
            local = part[name]
            part[name] = np.where(local >= 0, rows[np.maximum(local, 0)] if len(rows) else local, local)
        parts.append(
            part
            | {"image": np.full(len(record), position), "label": record.labels[order], "score": record.scores[order]}
        )
        count += len(record)
    none, never = np.zeros(0, np.int32), np.zeros(0, bool)
    empty = _match_image(np.zeros((0, 0)), none, none, never, never, never)[0]
    parts.append(empty | {name: np.zeros(0) for name in ("image", "label", "score")})
    types = {"score": np.float32, "overlap": np.float32, "kind": np.int8, "hit": np.bool_, "ignored": np.bool_}
    merged = {
        name: np.concatenate([part[name] for part in parts]).astype(types.get(name, np.int32)) for name in parts[0]
    }
    return MatchedRows(
        **merged,
        object_image=object_image,
        object_label=labels,
        crowd=crowd,
        found=found,
        classes=len(ground_truth.categories),
    )


def _overlaps(record: HostDetections, truth: list[dict[str, Any]], kind: str) -> np.ndarray:
    """IoU `[n, m]` of an image's detections and objects; with a crowd, the share of the detection inside it."""
    if not truth:
        return np.zeros((len(record), 0))
    crowd = [int(entry["iscrowd"]) for entry in truth]
    iou: Any = mask_api.iou
    if kind == "segm":
        height, width = record.height, record.width
        nothing = Rle(size=[height, width], counts=encode_masks(np.zeros((1, height, width), bool))[0]["counts"])
        objects = [entry.get("segmentation", nothing) for entry in truth]
        return np.asarray(iou(list(record.rles), objects, crowd), np.float64).reshape(len(record), len(truth))
    boxes = record.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    objects = np.array([entry["bbox"] for entry in truth], np.float64)
    return np.asarray(iou(boxes, objects, crowd), np.float64).reshape(len(record), len(truth))


def _judged(
    ground_truth: GroundTruth, image_id: int, labels: np.ndarray, object_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of an image's detections by descending score: which are judged at all, and which count if they match nothing.

    COCO judges the best 100 of each class. LVIS judges the best 300 of an image, and of those only classes that are
    there or known to be absent; where a class is not marked exhaustively, what matches nothing does not count.
    """
    lists = ground_truth.federated
    if lists is None:
        judged = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            judged[np.flatnonzero(labels == label)[:MAX_PER_CLASS]] = True
        return judged, np.ones(len(labels), bool)
    ids = np.array([category.id for category in ground_truth.categories])
    known = np.union1d(ids[object_labels], list(lists.negative[image_id]))
    judged = np.isin(ids[labels], known) & (np.arange(len(labels)) < DETECTIONS_PER_IMAGE)
    return judged, ~np.isin(ids[labels], list(lists.not_exhaustive[image_id]))


def _match_image(
    overlaps: np.ndarray,
    labels: np.ndarray,
    object_labels: np.ndarray,
    crowd: np.ndarray,
    judged: np.ndarray,
    complete: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One image: overlaps `[n, m]` with detections by descending score -> per-detection arrays (objects counted within
    the image), and the detection that matches each object at IoU 0.5, `[m]`, -1 for none. judged, complete: `_judged`.
    """
    n, m = overlaps.shape
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)
    hit, ignored = np.zeros((n, len(limits)), bool), np.zeros((n, len(limits)), bool)
    target, taken = np.full(n, -1), np.full(n, -1)
    matched = np.full(m, -1)
    for label in np.unique(labels):
        own = np.flatnonzero((labels == label) & judged)
        mine = np.flatnonzero(object_labels == label)
        if not len(mine):
            continue
        found, to_crowd = match_objects(
            overlaps[np.ix_(own, mine)], np.zeros(len(own)), limits, crowd[mine], crowd[None, mine]
        )
        found, ignored[own] = found[..., 0], to_crowd[..., 0]  # [n, 10]
        hit[own] = (found >= 0) & ~ignored[own]
        first = own[hit[own, 0]]
        target[first] = mine[found[hit[own, 0], 0]]
        matched[target[first]] = first
    ignored |= ~judged[:, None] | (~complete[:, None] & ~hit)
    open_objects = ~crowd
    for d in range(n):  # classes not looked at
        values = np.where(crowd, -1.0, overlaps[d])
        available = np.where(open_objects, values, -1.0)
        if m and available.max() >= FOUND:
            taken[d] = int(np.argmax(available))
            open_objects[taken[d]] = False
        elif m and values.max() >= FOUND:
            taken[d] = -2
    kind = _kinds(overlaps, labels, object_labels, crowd, hit[:, 0], ignored[:, 0], target)
    overlap = np.where(target >= 0, overlaps[np.arange(n), target] if m else 0.0, 0.0)
    return {
        "hit": hit,
        "ignored": ignored,
        "kind": kind,
        "target": target,
        "overlap": overlap,
        "taken": taken,
    }, matched


def _kinds(
    overlaps: np.ndarray,
    labels: np.ndarray,
    object_labels: np.ndarray,
    crowd: np.ndarray,
    right: np.ndarray,
    ignored: np.ndarray,
    target: np.ndarray,
) -> np.ndarray:
    """Kind of every detection of an image, `[n]`, in TIDE's order of questions; fills in `target` of the wrong ones."""
    n, m = overlaps.shape
    if not m:
        return np.where(ignored, IGNORED, BACKGROUND)
    single = np.where(crowd, 0.0, overlaps)
    same = labels[:, None] == object_labels
    own, other = np.where(same, single, -1.0), np.where(same, -1.0, single)
    rows = np.arange(n)
    own_best, other_best = own.argmax(axis=1), other.argmax(axis=1)
    own_iou, other_iou = own[rows, own_best], other[rows, other_best]
    conditions = [
        ignored,
        right,
        (own_iou >= TOUCHED) & (own_iou < FOUND),
        other_iou >= FOUND,
        own_iou >= FOUND,
        other_iou < TOUCHED,
    ]
    kind = np.select(conditions, [IGNORED, RIGHT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
    about_own = np.isin(kind, (LOCALISATION, DUPLICATE))
    about_other = np.isin(kind, (CLASSIFICATION, BOTH))
    target[about_own] = own_best[about_own]
    target[about_other] = other_best[about_other]
    return kind


def image_rows(rows: MatchedRows, images: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of the detections and of the objects of each image, given by position."""
    order = np.argsort(rows.object_image, kind="stable")
    for position in images:
        start, end = np.searchsorted(rows.image, [position, position + 1])
        first, last = np.searchsorted(rows.object_image[order], [position, position + 1])
        yield np.arange(start, end), order[first:last]
