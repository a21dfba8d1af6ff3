"""Candidate masks to detections (METHOD stage 3, steps 6 to 10): matching, NMS, overlaps at full size, soft merge."""

from ntt_jax.detection.merge import Detections, detect

__all__ = ["Detections", "detect"]
