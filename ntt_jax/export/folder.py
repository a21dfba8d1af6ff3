"""The folder that `ntt-jax export` writes."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors.numpy

import ntt_jax
from ntt_jax.config import COMPILER_OPTIONS, DetectConfig, to_dict
from ntt_jax.errors import InputError
from ntt_jax.export import loader
from ntt_jax.export.programs import BACKENDS, CANVAS_STEP, programs, serialize, weights_of
from ntt_jax.files import PathLike, read_bytes, write_bytes, write_json
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.pipeline import as_classes, check_models
from weight_port.store import Item, write_safetensors

FORMAT = "ntt-jax export"
VERSION = 1


def export_folder(
    folder: PathLike,
    sam2: Sam2,
    dinov2: Encoder,
    bank: MemoryBank,
    config: DetectConfig | None = None,
    *,
    platforms: tuple[str, ...] = tuple(BACKENDS),
    matmul_precision: str = "highest",
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the target pass of these models and this memory so that it runs without this package.

    The folder then holds `NAME.PLATFORM.jax` for every program of `programs`, weights.safetensors, classes.safetensors
    (prototypes, and negatives if there are any), load.py, and, written last, export.json.

    Args:
      folder: exists. bank: made with `dinov2`. config: constants of the method, part of the programs.
      platforms: of "cpu" and "cuda". matmul_precision: as for `Predictor`. extra: JSON data for export.json.

    Returns:
      The content of export.json.

    Raises:
      InputError: models in the wrong order, a memory of another encoder, an unknown platform, or a file that cannot be
        written.
    """
    check_models(sam2, dinov2)
    config = DetectConfig() if config is None else config
    config.require_plain_points("export")
    if unknown := [name for name in platforms if name not in BACKENDS]:
        raise InputError(f"platforms: expected {' and '.join(BACKENDS)}, found {unknown[0]!r:.40}")
    place = pathlib.Path(folder)
    prototypes, negatives = as_classes(bank.memory.prototypes, bank.memory.negatives, [dinov2.config.embed_dim])
    with contextlib.suppress(FileNotFoundError):  # until all is written, the folder is none that can be loaded
        (place / "export.json").unlink()
    weights = weights_of(sam2, dinov2)
    items = [Item(name, np.dtype(x.dtype), x.shape, lambda x=x: np.asarray(x)) for name, x in weights.items()]
    write_safetensors(place / "weights.safetensors", items, {})
    classes = {"prototypes": prototypes} | ({} if negatives is None else {"negatives": negatives})
    arrays = {name: np.asarray(x) for name, x in classes.items()}
    write_bytes(place / "classes.safetensors", safetensors.numpy.save(arrays))
    count = None if config.classes_per_mask == 1 else len(prototypes)
    made = programs(sam2, dinov2, config, negatives=negatives is not None, class_count=count)
    for name, program in made.items():
        for platform in platforms:
            write_bytes(place / f"{name}.{platform}.jax", serialize(program, platform, matmul_precision))
    write_bytes(place / "load.py", read_bytes(loader.__file__, max_bytes=2**20, what="loader"))
    info = {
        "format": FORMAT,
        "version": VERSION,
        "class_names": list(bank.class_names),
        "category_ids": list(bank.category_ids),
        "image_size": sam2.config.image_size,
        "canvas_step": CANVAS_STEP,
        "platforms": list(platforms),
        "compiler_options": {name: {} if name == "draw" else COMPILER_OPTIONS for name in made},
        "models": {"sam2": to_dict(sam2.config), "dinov2": to_dict(dinov2.config)},
        "jax": jax.__version__,
        "tool": f"ntt-jax {ntt_jax.__version__}",
        **(extra or {}),
    }
    write_json(place / "export.json", info)
    return info
