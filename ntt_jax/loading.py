"""From a converted weight file to a model, with nothing but the path (the file carries its configuration)."""

import os
from typing import cast

from ntt_jax.errors import InputError
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.sam2_base import Sam2
from weight_port import port


def load_sam2(path: str | os.PathLike[str], dtype: str = "float32") -> Sam2:
    """Load SAM 2 from a file made by `python -m weight_port convert`.

    Args:
        path: the converted file.
        dtype: "float32" or "bfloat16": type of kernels and matrix products. Norms, position tables and the heads that
            meet thresholds stay float32. A file of float16 or bfloat16 weights is widened or rounded accordingly.

    Returns:
        The model, on JAX's default device.

    Raises:
        InputError: no such file, another model's, not converted (the message says how to), damaged, or tensors that do
            not fit the configuration in the file.
    """
    return cast(Sam2, _load(path, dtype, Sam2, "load_dinov2"))


def load_dinov2(path: str | os.PathLike[str], dtype: str = "float32") -> DinoVisionTransformer:
    """Load DINOv2 from a file made by `python -m weight_port convert`.

    Args:
        path: the converted file.
        dtype: "float32" or "bfloat16": type of kernels and matrix products. Norms, LayerScale, tokens and the position
            table stay float32. A file of float16 or bfloat16 weights is widened or rounded accordingly.

    Returns:
        The model, on JAX's default device.

    Raises:
        InputError: no such file, another model's, not converted (the message says how to), damaged, or tensors that do
            not fit the configuration in the file.
    """
    return cast(DinoVisionTransformer, _load(path, dtype, DinoVisionTransformer, "load_sam2"))


def _load(path: str | os.PathLike[str], dtype: str, expected: type, other: str) -> object:
    weights = port.read_converted(path)
    is_sam2 = hasattr(weights.config, "hiera")
    if is_sam2 != (expected is Sam2):
        raise InputError(f"{os.fspath(path)}: holds {weights.config.name}; load it with ntt_jax.{other}")
    return port.build(weights, dtype)
