"""SAM 2, image path: `model.Sam2` and its parts, one file per part of Meta's package."""

from ntt_jax.models.sam2.sam2_base import ImageFeatures, Sam2

__all__ = ["ImageFeatures", "Sam2"]
