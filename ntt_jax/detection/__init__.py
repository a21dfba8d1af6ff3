"""Candidate masks to detections (METHOD stage 3, steps 6 to 10): matching, NMS, overlaps at full size, soft merge.

`on_host` is what becomes of them on the host. It needs no JAX, so the names of the device part come on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntt_jax.detection.merge import Detections, detect

__all__ = ["Detections", "detect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ntt_jax.detection import merge

        return getattr(merge, name)
    raise AttributeError(f"module 'ntt_jax.detection' has no attribute {name!r}")
