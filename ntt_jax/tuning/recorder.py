"""The recording pass: encoders, decoder and overlaps once per image; nothing in it depends on a memory."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig
from ntt_jax.detection import rules
from ntt_jax.detection.full_size import full_size_overlaps
from ntt_jax.detection.match import object_features
from ntt_jax.images.rle import Rle
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import ImageFeatures, Sam2
from ntt_jax.pipeline import map_images, propose_masks
from ntt_jax.tuning.proposals import STABILITY_OFFSETS, Proposals


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recorded:
    """`Proposals` on the device: those of `count` first, then what is not recorded. order: `[P]` int32 places."""

    order: Array
    count: Array
    objects: Array
    predicted_ious: Array
    grid_boxes: Array
    areas: Array
    stabilities: Array
    boxes: Array
    intersections: Array


def record_images(
    sam2: Sam2,
    dinov2: Encoder,
    prototypes: Array,
    images: Array,
    sizes: Array,
    config: DetectConfig,
    negatives: Array | None = None,
) -> tuple[Recorded, Array]:
    """What `pipeline.detect_images` computes before it looks at a memory, for a batch of images. Pure.

    Arguments as there; prototypes and negatives are not read. Of `config`, points_per_side and pred_iou_threshold
    matter.

    Returns:
      `Recorded` with a leading batch axis, and the logits `[B, P, m, m]` of all candidates in its order.
    """
    del prototypes, negatives

    def one(features: ImageFeatures, patches: Array, size: Array) -> tuple[Recorded, Array]:
        candidates, logits, ious = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), config)
        objects, has_direction = object_features(candidates.weights, patches.astype(jnp.float32))
        valid = candidates.valid & has_direction
        order = jnp.argsort(~valid, stable=True).astype(jnp.int32)
        count = jnp.sum(valid)
        every = jnp.ones((order.shape[0], order.shape[0]), bool)
        intersections, boxes = full_size_overlaps(logits, order, count, every, size[0], size[1])
        stabilities = jnp.stack([rules.stability(logits, offset) for offset in STABILITY_OFFSETS], axis=1)
        recorded = Recorded(
            order=order,
            count=count,
            objects=objects[order],
            predicted_ious=ious[order],
            grid_boxes=candidates.boxes[order],
            areas=jnp.sum(candidates.weights, axis=(1, 2))[order],
            stabilities=stabilities[order],
            boxes=boxes,
            intersections=intersections,
        )
        return recorded, logits[order]

    return map_images(sam2, dinov2, images, sizes, one)


class ProposalRecorder(Predictor):
    """`Predictor` that gives the `Proposals` of every image in place of detections, with image ids 0.

    prototypes and negatives are not looked at. All logits of a batch stay on the device until its masks are drawn (268
    MB an image with the published sizes). Devices divide the images. Other arguments and errors as `Predictor`.
    """

    def __init__(self, sam2: Sam2, dinov2: Encoder, prototypes: Any, *args: Any, **options: Any):
        options["divide"] = "images"
        super().__init__(sam2, dinov2, prototypes, *args, **options)
        self._program = functools.partial(self._program, detect=record_images)

    def _describe(self, found: Any, height: int, width: int, draw: Callable[..., list[Rle]]) -> Any:
        count = int(found.count)
        names = ("objects", "predicted_ious", "grid_boxes", "areas", "stabilities", "boxes")
        return Proposals(
            0,
            height,
            width,
            len(found.order),
            place=found.order[:count],
            intersections=found.intersections[:count, :count],
            rles=tuple(draw(count=count)),
            **{name: getattr(found, name)[:count] for name in names},
        )
