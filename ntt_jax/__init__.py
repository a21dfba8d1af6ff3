"""Training-free, reference-based instance segmentation in JAX.

Names are imported on first use, so that `import ntt_jax` costs nothing and the weight tool does not start JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ntt_jax import _moved

if TYPE_CHECKING:
    from ntt_jax.compiled.devices import use_all_cores
    from ntt_jax.compiled.predictor import Predictor
    from ntt_jax.compiled.prompt_masker import Prompt
    from ntt_jax.config import DetectConfig, DinoV2Config, Sam2Config
    from ntt_jax.detection import Detections, detect
    from ntt_jax.errors import InputError
    from ntt_jax.everything import generate_masks
    from ntt_jax.loading import load_dinov2, load_sam2
    from ntt_jax.memory import Memory, aggregate_memory
    from ntt_jax.pipeline import segment
    from ntt_jax.segmenter import Segmenter

__version__ = "0.1.0"

_EXPORTS = {
    "DetectConfig": "config",
    "Detections": "detection",
    "DinoV2Config": "config",
    "InputError": "errors",
    "Memory": "memory",
    "Predictor": "compiled.predictor",
    "Prompt": "compiled.prompt_masker",
    "Sam2Config": "config",
    "Segmenter": "segmenter",
    "aggregate_memory": "memory",
    "detect": "detection",
    "generate_masks": "everything",
    "load_dinov2": "loading",
    "load_sam2": "loading",
    "segment": "pipeline",
    "use_all_cores": "compiled.devices",
}
# Rooms and modules that are attributes after `import ntt_jax`, by the name that people use.
_MODULES = {
    **{
        name: name
        for name in (
            "ablation",
            "compiled",
            "config",
            "datasets",
            "demo",
            "detection",
            "errors",
            "evaluation",
            "everything",
            "export",
            "files",
            "images",
            "loading",
            "memory",
            "models",
            "pipeline",
            "references",
            "report",
            "runs",
            "segmenter",
            "tiles",
            "tuning",
            "upstream",
        )
    },
    **_moved.MOVED,
}

__all__ = [
    "DetectConfig",
    "Detections",
    "DinoV2Config",
    "InputError",
    "Memory",
    "Predictor",
    "Prompt",
    "Sam2Config",
    "Segmenter",
    "__version__",
    "aggregate_memory",
    "detect",
    "generate_masks",
    "load_dinov2",
    "load_sam2",
    "segment",
    "use_all_cores",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"ntt_jax.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"ntt_jax.{_MODULES[name]}")
    raise AttributeError(f"module 'ntt_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
