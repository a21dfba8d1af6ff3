"""Detections on the host from masks as arrays."""

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.images.rle import encode_masks


def host_detections(masks: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> HostDetections:
    """Masks bool `[D, H, W]`, boxes `[D, 4]`, scores and labels `[D]`."""
    height, width = masks.shape[1:]
    return HostDetections(height, width, boxes, scores, labels, tuple(encode_masks(masks)))
