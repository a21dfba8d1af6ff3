"""Finer masks: detections decoded once more, with their own box or mask as the prompt.

As `use_m2m` of SAM 2's automatic generator, which prompts with the point and the mask and always takes the new mask.
Here the new mask must be the same object, and better by SAM 2's own estimate.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from ntt_jax.config import DetectConfig
from ntt_jax.detection.full_size import full_size_overlaps
from ntt_jax.detection.merge import Merged
from ntt_jax.models.sam2.box_prompts import decode_boxes, decode_masks, without_memory
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2

_CLAMP = 32.0  # Meta's predictor hands on logits within these limits
_SAME = 0.5  # IoU with the first mask, on the mask grid, above which a new one is of the same object


def refine_masks(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    merged: Merged,
    logits: Array,
    predicted_ious: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
) -> tuple[Merged, Array]:
    """Masks and boxes of the detections, finer where SAM 2 says so; scores, labels and order stay. Pure.

    Args:
      features: of the image, as the grid of points gets them. merged: detections with the boxes of their masks.
      logits: `[D, m, m]` and predicted_ious `[D]` of their masks. height, width: of the image. config: `refine` says
        what the prompt is.

    Returns:
      The detections and their logits. A mask is new where its predicted IoU is higher, it overlaps the first by an IoU
      of more than a half, and it has a pixel in the image.
    """
    features = without_memory(sam2.no_mem_embed[...], features)
    size = jnp.stack([jnp.asarray(width), jnp.asarray(height)] * 2).astype(jnp.float32)
    boxes = merged.boxes.astype(jnp.float32) / size[None] * sam2.config.image_size
    if config.refine == "box":
        finer, ious = decode_boxes(sam2, features, boxes, merged.valid)
    else:
        prompts = jnp.clip(logits, -_CLAMP, _CLAMP)
        corners = boxes if config.refine == "mask_and_box" else None
        finer, ious = decode_masks(sam2, features, prompts, merged.valid, corners)
    first, second = logits > 0, finer > 0
    both = jnp.sum(first & second, axis=(1, 2)).astype(jnp.float32)
    either = jnp.sum(first | second, axis=(1, 2)).astype(jnp.float32)
    better = merged.valid & (ious > predicted_ious) & (both > _SAME * either)

    count = merged.valid.shape[0]
    rows = jnp.arange(count, dtype=jnp.int32)
    apart = jnp.zeros((count, count), bool)
    areas, extents = full_size_overlaps(finer, rows, jnp.sum(merged.valid), apart, height, width)
    better = better & (jnp.diagonal(areas) > 0)
    boxes = jnp.where(better[:, None], extents, merged.boxes)
    return dataclasses.replace(merged, boxes=boxes), jnp.where(better[:, None, None], finer, logits)
