"""Many memories in one pass: numbers of shots, seeds of their choice, references left out.

What does not depend on the memory is done once: each distinct reference is encoded once; each target image is encoded,
its masks are decoded, described and compared with each other once. Every memory then labels the same candidates,
removes duplicates and merges them by itself, exactly as alone, and a mask that several of them return is drawn once.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig
from ntt_jax.detection.match import object_features
from ntt_jax.detection.merge import Merged, Rows, best_rows, describe_extras, label_rows, overlap_rows
from ntt_jax.errors import InputError
from ntt_jax.images.rle import Rle
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import ImageFeatures, Sam2
from ntt_jax.pipeline import map_images, propose_masks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ManyMerged:
    """Detections of an image by M memories, without masks. merged: `[M, D]`, sources are places in what follows.

    boxes: `[P, 4]` int32 of the candidates, those first that any memory returns; count: how many these are.
    """

    merged: Merged
    boxes: Array
    count: Array


def detect_many(
    sam2: Sam2,
    dinov2: Encoder,
    prototypes: Array,
    images: Array,
    sizes: Array,
    config: DetectConfig,
    negatives: Array | None = None,
) -> tuple[ManyMerged, Array]:
    """`pipeline.detect_images` for M memories at once. Pure.

    Args:
      prototypes: `[M, K, C]`. negatives: `[M, K, N, C]`. images, sizes: as `detect_images`.

    Returns:
      `ManyMerged` with a leading batch axis, and the logits `[B, P, m, m]` of all candidates in its order.
    """
    memories, num_classes = prototypes.shape[:2]

    def one(features: ImageFeatures, patches: Array, size: Array) -> tuple[ManyMerged, Array]:
        candidates, logits, ious = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), config)
        objects, has_direction = object_features(candidates.weights, patches.astype(jnp.float32))
        valid = candidates.valid & has_direction
        extras = describe_extras(candidates, logits, config)

        def label(classes: tuple[Array, Array | None]) -> Rows:
            return label_rows(objects, candidates.boxes, valid, ious, classes[0], config, classes[1], extras)

        # One memory at a time: the very products of a single one.
        rows = jax.lax.map(label, (prototypes, negatives))
        # For the overlaps, classes of different memories are different classes.
        apart = rows.label + num_classes * jnp.arange(memories, dtype=jnp.int32)[:, None]
        flat = (array.reshape(-1) for array in (rows.candidate, apart, rows.score, rows.alive))
        together = Rows(*flat, best_label=rows.best_label[0])
        total = logits.shape[0]
        overlaps = overlap_rows(together, logits, memories * num_classes, total, height=size[0], width=size[1])
        merged = jax.lax.map(lambda some: best_rows(some, objects, overlaps, config), rows)
        used = jnp.zeros(total, bool).at[jnp.where(merged.valid, merged.source, total)].set(True, mode="drop")
        order = jnp.argsort(~used, stable=True)
        place = jnp.zeros(total, jnp.int32).at[order].set(jnp.arange(total, dtype=jnp.int32))
        merged = dataclasses.replace(merged, source=place[merged.source])
        return ManyMerged(merged, overlaps.boxes[overlaps.slot[order]], jnp.sum(used)), logits[order]

    return map_images(sam2, dinov2, images, sizes, one)


class ManyPredictor(Predictor):
    """`Predictor` for prototypes `[M, K, C]` of M memories: an iterable of images in, `SharedDetections` out, in order.

    negatives: `[M, K, N, C]`, rows of zeros where a memory has fewer. Image ids of the detections are 0. All logits of
    a batch stay on the device until its masks are drawn (268 MB an image with the published sizes). Devices divide the
    images. Other arguments and errors as `Predictor`.
    """

    def __init__(
        self,
        sam2: Sam2,
        dinov2: Encoder,
        prototypes: Any,
        config: DetectConfig | None = None,
        *,
        negatives: Any = None,
        **options: Any,
    ):
        if np.ndim(prototypes) != 3 or not len(prototypes):
            raise InputError(f"prototypes: expected [M, K, C], found {list(np.shape(prototypes))}")
        options["divide"] = "images"
        super().__init__(sam2, dinov2, prototypes[0], config, **options)
        self._classes = self._place(prototypes, negatives, np.shape(prototypes)[1:])
        self._program = functools.partial(self._program, detect=detect_many)

    def _describe(self, found: Any, height: int, width: int, draw: Callable[..., list[Rle]]) -> Any:
        merged, count = found.merged, int(found.count)
        return SharedDetections(
            0,
            height,
            width,
            found.boxes[:count].astype(np.float32),
            tuple(draw(count=count)),
            np.where(merged.valid, merged.source, -1),
            merged.labels,
            merged.scores,
        )
