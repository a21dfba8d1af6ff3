"""From a name or a weight file to a model (a converted file carries its configuration)."""

import os
from typing import cast

from ntt_jax.config import Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.hub import DEFAULT_DINOV2, DEFAULT_SAM2, resolve
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from weight_port import port


def load_sam2(
    name_or_path: str | os.PathLike[str] = DEFAULT_SAM2,
    dtype: str = "float32",
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> Sam2:
    """Load SAM 2 by name or from any checkpoint of it.

    Args:
        name_or_path: a name as `sam2.1_hiera_large` or `facebook/sam2.1-hiera-large` (docs/names.md), a converted file,
            Meta's .pt or .pth, a Hugging Face .safetensors or its folder. What is no converted file yet is fetched and
            converted once, into a cache.
        dtype: "float32" or "bfloat16": type of kernels and matrix products. Norms, position tables and the heads that
            meet thresholds stay float32. A file of float16 or bfloat16 weights is widened or rounded accordingly.
        key, prefix: which of several models of a checkpoint, as for `weight_port.convert`; docs/weights.md.

    Returns:
        The model, on JAX's default device.

    Raises:
        InputError: no such name or file, another model's, damaged, a download that failed (the message says what to
            do), or tensors that do not fit their configuration.
    """
    return cast(Sam2, _load(name_or_path, "sam2", dtype, key, prefix))


def load_dinov2(
    name_or_path: str | os.PathLike[str] = DEFAULT_DINOV2,
    dtype: str = "float32",
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> Encoder:
    """Load the encoder, DINOv2 or DINOv3, by name or from any checkpoint of it.

    Args:
        name_or_path: a name as `dinov2_vitl14` or `facebook/dinov2-large` (docs/names.md), a converted file,
            Meta's .pt or .pth of DINOv2, a Hugging Face .safetensors or its folder. What is no converted file yet is
            fetched and converted once, into a cache.
        dtype: "float32" or "bfloat16": type of kernels and matrix products. Norms, LayerScale, tokens and the position
            table stay float32. A file of float16 or bfloat16 weights is widened or rounded accordingly.
        key, prefix: which of several models of a checkpoint, as for `weight_port.convert`; docs/weights.md.

    Returns:
        The model, on JAX's default device.

    Raises:
        InputError: no such name or file, another model's, damaged, a download that failed (the message says what to
            do), or tensors that do not fit their configuration.
    """
    return cast(Encoder, _load(name_or_path, "dinov2", dtype, key, prefix))


def _load(name_or_path: str | os.PathLike[str], kind: str, dtype: str, key: str | None, prefix: str | None) -> object:
    if not isinstance(name_or_path, (str, os.PathLike)):
        found = type(name_or_path).__name__
        raise InputError(f"load_{kind}: expected the name of a model or the path of its weights, found {found}")
    path = resolve(name_or_path, kind, key=key, prefix=prefix)
    weights = port.read_converted(path)
    found = "sam2" if isinstance(weights.config, Sam2Config) else "dinov2"
    if found != kind:
        raise InputError(f"{os.fspath(path)}: holds {weights.config.name}; load it with ntt_jax.load_{found}")
    return port.build(weights, dtype)
