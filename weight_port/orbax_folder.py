"""Orbax checkpoints for JAX programs: a folder with the parameters of our module and its configuration.

`params` is an orbax checkpoint of nested dictionaries with the module's attribute names, numpy arrays in its layouts;
`config.json` is `ntt_jax.config.to_dict`. Nothing of this project is needed to restore the arrays:

    params = orbax.checkpoint.StandardCheckpointer().restore(folder / "params")

and a module is made of them by

    config = ntt_jax.config.from_dict(json.loads((folder / "config.json").read_text()))
    graph, state = nnx.split(nnx.eval_shape(lambda: DinoVisionTransformer(config, rngs=nnx.Rngs(0))))  # or Sam2
    nnx.replace_by_pure_dict(state, params)
    model = nnx.merge(graph, state)
"""

import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from ntt_jax.config import to_dict
from ntt_jax.errors import InputError
from ntt_jax.files import show_path, sync_folder
from weight_port.files import reason
from weight_port.port import Weights, read_converted


def export_orbax(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> Weights:
    """Write a converted file as an orbax checkpoint; the folder appears under its name only when complete.

    The image path only: SAM 2's video-only tensors, which no module here uses, are left out. Types are the file's.

    Args:
        source: a converted file.
        destination: folder to make.

    Raises:
        InputError: anything wrong with either; nothing is written then.
    """
    folder = pathlib.Path(destination)
    if folder.exists():
        raise InputError(f"{show_path(folder)}: exists already; remove it or give another name")
    weights = read_converted(source)
    temporary = folder.absolute().with_name(f".{folder.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / "params", _nested(weights.tensors))
        (temporary / "config.json").write_text(json.dumps(to_dict(weights.config), indent=2) + "\n")
        for path in temporary.rglob("*"):
            _sync(path)
        os.rename(temporary, folder)
        sync_folder(folder.absolute().parent)
    except Exception as e:  # orbax raises many types where the file system refuses
        raise InputError(f"{show_path(folder)}: cannot be written: {reason(e)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return weights


def _nested(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *parents, last = name.split(".")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = np.ascontiguousarray(array)
    return tree


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
