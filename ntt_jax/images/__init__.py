"""Pictures as arrays: reading, resizing, normalising, drawing; masks as run lengths."""

from typing import Any

_READING = ("open_image_size", "read_image", "read_index_image")
"""What this room had when it was one module. Found when it is asked for: reading brings numpy with it."""


def __getattr__(name: str) -> Any:
    if name in _READING:
        from ntt_jax.images import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
