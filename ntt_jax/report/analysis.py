"""What matched detections say about a run: curves, thresholds, histograms, confusion, the cost of errors. Host only.

The precision of `precision_curves` is that of pycocotools' COCOeval: its mean is AP.
"""

import numpy as np

from ntt_jax.evaluation.average_precision import envelope
from ntt_jax.report.matching import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    IGNORED,
    KINDS,
    LOCALISATION,
    RIGHT,
    THRESHOLDS,
    MatchedRows,
)

RECALLS = np.linspace(0.0, 1.0, 101)
BINS = 50
"""Scores are counted in this many steps from 0 to 1."""


def precision_curves(rows: MatchedRows) -> np.ndarray:
    """Interpolated precision `[10, 101, K]` at `THRESHOLDS` and `RECALLS`, as COCOeval's; -1 for a class without
    objects. Its mean over thresholds and recalls is a class's AP."""
    curves = np.full((len(THRESHOLDS), len(RECALLS), rows.classes), -1.0)
    objects = rows.objects
    for k, own in enumerate(_by_class(rows)):
        if not objects[k]:
            continue
        own = own[np.argsort(-rows.score[own], kind="stable")]
        for t in range(len(THRESHOLDS)):
            counted = own[~rows.ignored[own, t]]
            curves[t, :, k] = interpolated_precision(rows.hit[counted, t], int(objects[k]))
    return curves


def interpolated_precision(hits: np.ndarray, objects: int) -> np.ndarray:
    """Precision `[101]` at `RECALLS`, from hits `[n]` bool by descending score: the best at this recall or beyond."""
    right = np.cumsum(hits)
    recall = right / objects
    precision = envelope(right / (np.arange(1, len(hits) + 1) + np.spacing(1)))
    place = np.searchsorted(recall, RECALLS, side="left")
    return np.append(precision, 0.0)[np.minimum(place, len(hits))]


def _by_class(rows: MatchedRows) -> list[np.ndarray]:
    """Detections of each class, in the order of the rows."""
    order = np.argsort(rows.label, kind="stable")
    return np.split(order, np.searchsorted(rows.label[order], np.arange(1, rows.classes)))


def best_thresholds(rows: MatchedRows) -> tuple[np.ndarray, np.ndarray]:
    """The score threshold with the best F1 at IoU 0.5: of each class and, last, of all together.

    Returns thresholds `[K + 1]` float and their F1 `[K + 1]`; NaN where nothing is right.
    """
    groups = [*_by_class(rows), np.arange(len(rows.label))]
    objects = [*rows.objects, rows.objects.sum()]
    result = np.full((2, len(groups)), np.nan)
    for k, (own, count) in enumerate(zip(groups, objects, strict=True)):
        own = own[~rows.ignored[own, 0]]
        if not len(own) or not count:
            continue
        own = own[np.argsort(-rows.score[own], kind="stable")]
        right = np.cumsum(rows.hit[own, 0])
        f1 = 2 * right / (np.arange(1, len(own) + 1) + count)
        # A threshold keeps all that score the same.
        last = np.append(np.diff(rows.score[own]) != 0, True)
        best = int(np.argmax(np.where(last, f1, -1.0)))
        if f1[best] > 0:
            result[:, k] = rows.score[own[best]], f1[best]
    return result[0], result[1]


def bins(scores: np.ndarray) -> np.ndarray:
    """The step of each score, 0 to `BINS` - 1."""
    return np.clip((scores.astype(np.float64) * BINS).astype(int), 0, BINS - 1)


def histograms(rows: MatchedRows) -> np.ndarray:
    """Detections `[2, K, BINS]` by class and score: right ones first, then wrong ones; ignored ones do not count."""
    counts = np.zeros((2, rows.classes, BINS), int)
    counted = rows.kind != IGNORED
    wrong = (rows.kind != RIGHT).astype(int)
    np.add.at(counts, (wrong[counted], rows.label[counted], bins(rows.score)[counted]), 1)
    return counts


def confusion(rows: MatchedRows) -> np.ndarray:
    """Who is taken for whom: distinct rows `[n, 4]` int of (true class, predicted class, score step, count).

    Each detection, best first, takes the object it overlaps most (IoU 0.5 or more) among those not taken, whatever
    their classes. The true class is K where there is no object, K + 1 where it is taken already.
    """
    counted = rows.kind != IGNORED
    taken = rows.taken[counted]
    true = np.full(len(taken), rows.classes)
    true[taken == -2] = rows.classes + 1
    true[taken >= 0] = rows.object_label[taken[taken >= 0]]
    cells = np.stack([true, rows.label[counted], bins(rows.score[counted])], axis=1).reshape(-1, 3)
    distinct, counts = np.unique(cells, axis=0, return_counts=True)
    return np.concatenate([distinct, counts[:, None]], axis=1)


def missed(rows: MatchedRows) -> np.ndarray:
    """Objects `[M]` bool that no detection found, and that no localisation or classification error is about."""
    about = rows.target[np.isin(rows.kind, (LOCALISATION, CLASSIFICATION))]
    explained = np.zeros(len(rows.crowd), bool)
    explained[about] = True
    return (rows.found < 0) & ~explained & ~rows.crowd


def error_costs(rows: MatchedRows) -> dict[str, tuple[int, float]]:
    """Number of errors of each kind, and how much AP50 would rise if they alone were mended (TIDE's delta AP).

    A localisation or classification error becomes a match if it is the best about an object that nothing has found,
    and goes away otherwise; both, duplicate and background errors go away; missed objects are no longer asked for.
    """
    objects = rows.objects
    before = _ap50(rows.label, rows.score, rows.hit[:, 0], ~rows.ignored[:, 0], objects)
    costs = {}
    for kind in (LOCALISATION, CLASSIFICATION, BOTH, DUPLICATE, BACKGROUND):
        wrong = rows.kind == kind
        label, hit, kept = rows.label.copy(), rows.hit[:, 0].copy(), ~rows.ignored[:, 0] & ~wrong
        if kind in (LOCALISATION, CLASSIFICATION):
            mended = _best_about_unfound(rows, np.flatnonzero(wrong))
            hit[mended], kept[mended] = True, True
            label[mended] = rows.object_label[rows.target[mended]]
        after = _ap50(label, rows.score, hit, kept, objects)
        costs[KINDS[kind]] = int(wrong.sum()), after - before
    lost = missed(rows)
    asked = objects - np.bincount(rows.object_label[lost], minlength=rows.classes)
    after = _ap50(rows.label, rows.score, rows.hit[:, 0], ~rows.ignored[:, 0], asked)
    costs["missed"] = int(lost.sum()), after - before
    return costs


def _best_about_unfound(rows: MatchedRows, wrong: np.ndarray) -> np.ndarray:
    """Of the detections `wrong`, the best about each object that no detection has found."""
    wrong = wrong[rows.found[rows.target[wrong]] < 0]
    wrong = wrong[np.argsort(-rows.score[wrong], kind="stable")]
    return wrong[np.unique(rows.target[wrong], return_index=True)[1]]


def _ap50(label: np.ndarray, score: np.ndarray, hit: np.ndarray, kept: np.ndarray, objects: np.ndarray) -> float:
    """Mean over the classes with objects of AP at IoU 0.5; 0 without any."""
    values = []
    order = np.flatnonzero(kept)
    order = order[np.argsort(-score[order], kind="stable")]
    by_class = order[np.argsort(label[order], kind="stable")]
    groups = np.split(by_class, np.searchsorted(label[by_class], np.arange(1, len(objects))))
    for own, count in zip(groups, objects, strict=True):
        if count:
            values.append(interpolated_precision(hit[own], int(count)).mean())
    return float(np.mean(values)) if values else 0.0
