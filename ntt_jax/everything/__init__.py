"""Everything in an image: all masks, without classes."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntt_jax.everything.generator import MaskGenerator, generate_masks
    from ntt_jax.everything.settings import MaskSettings

__all__ = ["MaskGenerator", "MaskSettings", "generate_masks"]


def __getattr__(name: str) -> Any:  # on first use: settings need no JAX
    if name in __all__:
        module = "settings" if name == "MaskSettings" else "generator"
        return getattr(importlib.import_module(f"ntt_jax.everything.{module}"), name)
    raise AttributeError(f"module 'ntt_jax.everything' has no attribute {name!r}")
