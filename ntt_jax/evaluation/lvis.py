"""Average precision by the rules of LVIS.

LVIS is annotated in a federated way: of each image it is known which categories are there, which are certainly absent
(`neg_category_ids`), and for which only some instances are marked (`not_exhaustive_category_ids`); of all others
nothing is known. So a detection of a category that is neither there nor known to be absent does not count at all, and
one that matches nothing does not count where the category is not marked exhaustively. Of an image the 300 highest
scoring detections are judged. AP, AP50, AP75, APs, APm, APl and AR as COCO's; APr, APc, APf are over the rare, common
and frequent categories of the training set. Source: Gupta et al., LVIS, CVPR 2019, and the rules of its `lvis` package.
"""

from typing import Any

import numpy as np

from ntt_jax.datasets.lvis import FREQUENCIES
from ntt_jax.errors import InputError
from ntt_jax.evaluation.average_precision import IOU_THRESHOLDS, Outcomes, defined_mean, envelope, overlaps
from ntt_jax.evaluation.ground_truth import GroundTruth
from ntt_jax.evaluation.matching import match_objects
from ntt_jax.evaluation.results import ImageDetections, coco_results
from ntt_jax.images.rle import rle_areas

DETECTIONS_PER_IMAGE = 300
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])  # all, small, medium, large; pixels


class LvisScorer:
    """LVIS's numbers of boxes and masks. Images are taken one by one and only outcomes are kept."""

    def __init__(self, ground_truth: GroundTruth):
        if ground_truth.federated is None:
            raise InputError("evaluation: LVIS's rules need LVIS's annotation file")
        self._lists = ground_truth.federated
        self._kinds = ground_truth.kinds
        self._category_ids = np.array([category.id for category in ground_truth.categories])
        self._truth: dict[int, dict[int, list[dict[str, Any]]]] = {}  # by image, then by category
        for entry in ground_truth.entries:
            self._truth.setdefault(entry["image_id"], {}).setdefault(entry["category_id"], []).append(entry)
        self._outcomes = {kind: Outcomes(len(_AREAS) * len(IOU_THRESHOLDS)) for kind in self._kinds}
        areas = np.array([entry["area"] for entry in ground_truth.entries], np.float64).reshape(-1)
        rows = np.searchsorted(self._category_ids, [entry["category_id"] for entry in ground_truth.entries])
        self._positives = np.stack(
            [np.bincount(rows[~outside], minlength=len(self._category_ids)) for outside in _outside(areas).T]
        )  # [areas, K]

    def add(self, record: ImageDetections) -> None:
        """Judge the detections of one image."""
        truth = self._truth.get(record.image_id, {})
        counting = self._lists.negative[record.image_id] | truth.keys()
        kept = np.argsort(-record.scores, kind="stable")[:DETECTIONS_PER_IMAGE]
        kept = kept[np.isin(self._category_ids[record.labels[kept]], list(counting))]
        kept = kept[np.argsort(record.labels[kept], kind="stable")]  # class by class, each by descending score
        if not kept.size:
            return
        chosen = _rows(record, kept)
        entries = coco_results(chosen, self._category_ids.tolist())
        incomplete = self._lists.not_exhaustive[record.image_id]
        shape = (len(entries), len(_AREAS), len(IOU_THRESHOLDS))
        for kind in self._kinds:
            true, ignored = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
            for rows in np.split(np.arange(len(entries)), np.flatnonzero(np.diff(chosen.labels)) + 1):
                found, category_id = [entries[row] for row in rows], entries[rows[0]]["category_id"]
                there = truth.get(category_id, [])
                true[rows], ignored[rows] = _judge(found, there, kind, exhaustive=category_id not in incomplete)
            flat = (len(entries), -1)
            self._outcomes[kind].add(
                record.image_id, chosen.labels, chosen.scores, true.reshape(flat), ignored.reshape(flat)
            )

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers by kind, and by class and kind (`protocols.Scorer`)."""
        frequency = np.array([self._lists.frequency[i] for i in self._category_ids.tolist()])
        tables: dict[str, Any] = {}
        rows: list[dict[str, Any]] = [{"frequency": str(value)} for value in frequency]
        for kind in self._kinds:
            precision, recall = self._curves(kind)
            at = {name: int(np.argmin(abs(IOU_THRESHOLDS - value))) for name, value in (("AP50", 0.5), ("AP75", 0.75))}
            tables[kind] = {
                "AP": defined_mean(precision[0]),
                **{name: defined_mean(precision[0, t]) for name, t in at.items()},
                **{name: defined_mean(precision[a]) for a, name in ((1, "APs"), (2, "APm"), (3, "APl"))},
                **{f"AP{letter}": defined_mean(precision[0][:, frequency == letter]) for letter in FREQUENCIES},
                f"AR{DETECTIONS_PER_IMAGE}": defined_mean(recall[0]),
                **{name: defined_mean(recall[a]) for a, name in ((1, "ARs"), (2, "ARm"), (3, "ARl"))},
            }
            for k, row in enumerate(rows):
                row[kind] = {
                    "AP": defined_mean(precision[0, :, k]),
                    **{name: defined_mean(precision[0, t, k]) for name, t in at.items()},
                }
        return tables, rows

    def _curves(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Precision `[areas, T, K, 101]` at 101 recalls and final recall `[areas, T, K]`; NaN without any object."""
        areas, classes = self._positives.shape
        precision = np.full((areas, len(IOU_THRESHOLDS), classes, len(_RECALLS)), np.nan)
        precision[np.broadcast_to((self._positives > 0)[:, None], precision.shape[:3])] = 0.0
        recall = np.where((self._positives > 0)[:, None], 0.0, np.nan) + np.zeros((1, len(IOU_THRESHOLDS), 1))
        for k, true, ignored in self._outcomes[kind].by_class():
            right = np.cumsum(true & ~ignored, axis=1, dtype=np.float64)
            wrong = np.cumsum(~true & ~ignored, axis=1, dtype=np.float64)
            for setting in range(len(true)):
                a, t = divmod(setting, len(IOU_THRESHOLDS))
                if self._positives[a, k]:
                    reached = right[setting] / self._positives[a, k]
                    recall[a, t, k] = reached[-1]
                    # What is ignored stays in the list; the spacing keeps 0 / 0 defined.
                    curve = envelope(right[setting] / (wrong[setting] + right[setting] + np.spacing(1)))
                    places = np.searchsorted(reached, _RECALLS, side="left")
                    inside = places < len(curve)
                    precision[a, t, k, inside] = curve[places[inside]]
        return precision, recall


def _rows(record: ImageDetections, rows: np.ndarray) -> ImageDetections:
    arrays = (record.boxes[rows], record.scores[rows], record.labels[rows])
    return ImageDetections(record.image_id, record.height, record.width, *arrays, tuple(record.rles[i] for i in rows))


def _outside(areas: np.ndarray) -> np.ndarray:
    """Which areas `[n]` lie outside each range of `_AREAS`: bool `[n, areas]`."""
    return (areas[:, None] < _AREAS[:, 0]) | (areas[:, None] > _AREAS[:, 1])


def _judge(
    found: list[dict[str, Any]], there: list[dict[str, Any]], kind: str, *, exhaustive: bool
) -> tuple[np.ndarray, np.ndarray]:
    """True and ignored, bool `[n, areas, T]`, of one category's detections in one image, by descending score."""
    if kind == "segm":
        areas = rle_areas([entry["segmentation"] for entry in found]).astype(np.float64)
    else:
        areas = np.array([entry["bbox"][2] * entry["bbox"][3] for entry in found])
    matched, matched_ignored = np.zeros((2, len(found), len(_AREAS), len(IOU_THRESHOLDS)), np.bool_)
    if there:
        key = "segmentation" if kind == "segm" else "bbox"
        ious = overlaps([entry[key] for entry in found], [entry[key] for entry in there])
        outside = _outside(np.array([entry["area"] for entry in there], np.float64))  # [G, areas]
        near = np.flatnonzero(ious.max(axis=1) >= IOU_THRESHOLDS[0])
        nobody, one = np.zeros(len(there), np.bool_), np.zeros(len(near))
        taken, to_ignored = match_objects(ious[near], one, np.minimum(IOU_THRESHOLDS, 1 - 1e-10), nobody, outside.T)
        matched[near], matched_ignored[near] = (taken >= 0).swapaxes(1, 2), to_ignored.swapaxes(1, 2)
    unjudged = _outside(areas) | (not exhaustive)  # [n, areas]
    return matched, np.where(matched, matched_ignored, unjudged[:, :, None])
