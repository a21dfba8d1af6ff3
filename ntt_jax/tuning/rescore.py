"""Recorded proposals to detections, for any rules and many memories: steps 6 to 10 of METHOD stage 3 and no more.

The candidates stand at their places among all of the grid, so that every product has the shape that it has in
`detect_images`: what comes out is what that gives, bit for bit.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.config import DetectConfig
from ntt_jax.detection.merge import Extras, Merged, Overlaps, best_rows, label_rows
from ntt_jax.errors import InputError
from ntt_jax.tuning.proposals import STABILITY_OFFSETS, Proposals


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """The P candidates of one image as arrays of fixed sizes, zeros where none is recorded; names as `Proposals`."""

    valid: Array
    objects: Array
    predicted_ious: Array
    grid_boxes: Array
    areas: Array
    stabilities: Array
    boxes: Array
    intersections: Array

    @classmethod
    def of(cls, proposals: Proposals) -> "Candidates":
        """Those of one image, on the host."""
        total, place = proposals.candidates, proposals.place

        def spread(array: np.ndarray) -> Any:
            whole = np.zeros((total, *array.shape[1:]), array.dtype)
            whole[place] = array
            return whole

        names = ("objects", "predicted_ious", "grid_boxes", "areas", "stabilities", "boxes")
        intersections = np.zeros((total, total), np.int32)
        intersections[np.ix_(place, place)] = proposals.intersections
        return cls(
            valid=spread(np.ones(len(place), bool)),
            intersections=intersections,  # type: ignore[arg-type]
            **{name: spread(getattr(proposals, name)) for name in names},
        )


@functools.partial(jax.jit, static_argnames="config")
def rescore(candidates: Candidates, prototypes: Array, negatives: Array | None, config: DetectConfig) -> Merged:
    """Detections of one image by M memories.

    Args:
      prototypes: `[M, K, C]`. negatives: `[M, K, N, C]` or None. config: of the recording's points_per_side, and a
        pred_iou_threshold not below the recording's (`check_config`).

    Returns:
      `Merged` with a leading axis of memories; `source` are places among the P candidates.
    """
    total = candidates.valid.shape[0]
    valid = candidates.valid & (candidates.predicted_ious > config.pred_iou_threshold)
    extras = None
    stable = bool(config.stability_threshold or config.stability_power)
    if stable or config.order_area_power:
        offset = STABILITY_OFFSETS.index(config.stability_offset) if stable else 0
        stability = candidates.stabilities[:, offset] if stable else jnp.ones_like(candidates.areas)
        extras = Extras(candidates.areas, stability)
    overlaps = Overlaps(jnp.arange(total, dtype=jnp.int32), candidates.intersections, candidates.boxes)

    def one(classes: tuple[Array, Array | None]) -> Merged:
        rows = label_rows(
            candidates.objects,
            candidates.grid_boxes,
            valid,
            candidates.predicted_ious,
            classes[0],
            config,
            classes[1],
            extras,
        )
        return best_rows(rows, candidates.objects, overlaps, config)

    return jax.lax.map(one, (prototypes, negatives))


def check_config(config: DetectConfig, recorded: DetectConfig) -> None:
    """Raise `InputError` unless detections of `config` follow from what was recorded with `recorded`."""
    config.require_plain_points("tune")
    if config.points_per_side != recorded.points_per_side:
        raise InputError(
            f"points_per_side: {config.points_per_side}, but proposals were recorded with {recorded.points_per_side}; "
            "record them anew, in another --out"
        )
    if config.pred_iou_threshold < recorded.pred_iou_threshold:
        raise InputError(
            f"pred_iou_threshold: {config.pred_iou_threshold:g}, but proposals were recorded above "
            f"{recorded.pred_iou_threshold:g}; record them anew with a lower --pred-iou-threshold, in another --out"
        )
    if (config.stability_threshold or config.stability_power) and config.stability_offset not in STABILITY_OFFSETS:
        known = ", ".join(map(str, STABILITY_OFFSETS))
        raise InputError(f"stability_offset: {config.stability_offset:g}, but stability is recorded at {known}")
