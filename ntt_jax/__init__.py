"""Training-free, reference-based instance segmentation in JAX.

Names are imported on first use, so that `import ntt_jax` costs nothing and the weight tool does not start JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntt_jax.box_masks import Prompt
    from ntt_jax.config import DetectConfig, DinoV2Config, Sam2Config
    from ntt_jax.detection import detect
    from ntt_jax.errors import InputError
    from ntt_jax.loading import load_dinov2, load_sam2
    from ntt_jax.memory import aggregate_memory
    from ntt_jax.pipeline import segment
    from ntt_jax.segmenter import Segmenter

__version__ = "0.1.0"

_EXPORTS = {
    "DetectConfig": "config",
    "DinoV2Config": "config",
    "Sam2Config": "config",
    "InputError": "errors",
    "load_dinov2": "loading",
    "load_sam2": "loading",
    "aggregate_memory": "memory",
    "detect": "detection",
    "segment": "pipeline",
    "Prompt": "box_masks",
    "Segmenter": "segmenter",
}

__all__ = [
    "DetectConfig",
    "DinoV2Config",
    "InputError",
    "Prompt",
    "Sam2Config",
    "Segmenter",
    "__version__",
    "aggregate_memory",
    "detect",
    "load_dinov2",
    "load_sam2",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ntt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ntt_jax.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
