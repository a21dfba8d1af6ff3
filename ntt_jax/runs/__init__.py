"""Durable work: a folder, its lock, its records, and the jobs that fill them (docs/runs.md).

`evaluate`, `segment`, `segment_everything`, `build_memory` and `make_masks` are the jobs that a program can call. Names
are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntt_jax.runs.evaluation_job import evaluate
    from ntt_jax.runs.everything_job import segment_everything
    from ntt_jax.runs.masks_job import make_masks
    from ntt_jax.runs.memory_job import build_memory
    from ntt_jax.runs.models import Compute
    from ntt_jax.runs.observer import Observer
    from ntt_jax.runs.segment_job import segment

_EXPORTS = {
    "Compute": "models",
    "Observer": "observer",
    "build_memory": "memory_job",
    "evaluate": "evaluation_job",
    "make_masks": "masks_job",
    "segment": "segment_job",
    "segment_everything": "everything_job",
}

__all__ = ["Compute", "Observer", "build_memory", "evaluate", "make_masks", "segment", "segment_everything"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"ntt_jax.runs.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'ntt_jax.runs' has no attribute {name!r}")
