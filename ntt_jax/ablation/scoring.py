"""The metrics of many memories on the same images, each equal to `evaluate_detections` of that memory alone.

The detections are read once for many memories. A mask that several memories found is compared with the objects once,
to see whether it can match any of them; a mask that cannot is given to the scorer as a short one of the same area.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hotcoco.primitives import mask_iou
from pycocotools import mask as mask_api

from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import SCORERS, Evaluation, GroundTruth
from ntt_jax.images.rle import Rle, rle_areas

RESULTS_AT_ONCE = 100_000
"""Images times memories of one pass over the detections. With a hundred detections each takes 10 kB: 1 GB in all."""
_NEAR = 0.49  # COCO's and LVIS's lowest threshold is 0.5: what overlaps less can match nothing


def evaluate_shared(
    ground_truth: GroundTruth,
    read: Callable[[], Iterable[SharedDetections]],
    memories: int,
    *,
    scorer: str = SCORERS[0],
) -> list[dict[str, Any]]:
    """Metrics of every memory, each equal to `evaluate_detections(ground_truth, [found.of(m) for found in read()])`.

    read: starts a pass over the detections, each image at most once; it is called again where the memories take several
    passes (`RESULTS_AT_ONCE`). memories: M of all of them. scorer: as in `evaluate_detections`.

    Raises `InputError` as `Evaluation.add`, and if M differs.
    """
    at_once = max(1, RESULTS_AT_ONCE // len(ground_truth.image_ids))
    shorten = scorer == "hotcoco" and ground_truth.protocol in ("coco", "lvis") and "segm" in ground_truth.kinds
    objects: dict[int, list[dict[str, Any]]] = {}
    for entry in ground_truth.of_kind("segm") if shorten else ():
        objects.setdefault(entry["image_id"], []).append(entry)
    metrics = []
    for start in range(0, memories, at_once):
        chosen = range(start, min(start + at_once, memories))
        evaluations = [Evaluation(ground_truth, scorer=scorer) for _ in chosen]
        for found in read():
            if len(found.masks) != memories:
                raise InputError(
                    f"evaluation: detections of image {found.image_id}: expected those of {memories} memories, "
                    f"found {len(found.masks)}"
                )
            some = _with_short_masks(found, objects.get(found.image_id, [])) if shorten else found
            for memory, evaluation in zip(chosen, evaluations, strict=True):
                evaluation.add(*some.of(memory))
        while evaluations:  # what was one memory's is free when its numbers are made
            metrics.append(evaluations.pop(0).metrics())
    return metrics


def _with_short_masks(found: SharedDetections, objects: list[dict[str, Any]]) -> SharedDetections:
    """The detections, but a mask that can match none of the objects is a single run of as many pixels.

    Of a mask that matches nothing only the area counts (for AP by size). Reading a run takes a fifth of the time.
    """
    if not found.rles:
        return found
    areas = rle_areas(found.rles).tolist()
    runs = [_run(found.height, found.width, area) for area in areas]
    near = np.zeros(len(runs), bool)
    if objects:
        truth = [entry["segmentation"] for entry in objects]
        crowd = [bool(entry["iscrowd"]) for entry in objects]
        masks: Any
        for masks in (found.rles, runs):  # a run must not match either
            near |= mask_iou(masks, truth, crowd).max(axis=1) >= _NEAR
    rles = [rle if kept else run for rle, run, kept in zip(found.rles, runs, near, strict=True)]
    return dataclasses.replace(found, rles=tuple(rles))


def _run(height: int, width: int, area: int) -> Rle:
    """The mask of the first `area` pixels, column by column."""
    runs: Any = {"size": [height, width], "counts": [0, area, height * width - area]}
    encoded: Any = mask_api.frPyObjects(runs, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
