"""Training-free, reference-based instance segmentation in JAX.

Names are imported on first use, so that `import ntt_jax` costs nothing and the weight tool does not start JAX.
"""

import importlib
from typing import Any

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
    "Segmenter": "segmenter",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ntt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ntt_jax.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
