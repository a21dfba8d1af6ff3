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

import os
import pathlib
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ntt_jax.config import to_dict
from ntt_jax.errors import InputError
from ntt_jax.files import reason, show_path, sync_folder, write_json
from weight_port.port import Weights, read_converted
from weight_port.tensor import Tensor


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
    shown, parent = show_path(folder), folder.absolute().parent
    temporary = parent / f".{folder.name[:100]}.{secrets.token_hex(8)}.tmp"
    try:
        needed = sum(array.nbytes for array in weights.tensors.values())
        if shutil.disk_usage(parent).free < needed:
            raise InputError(f"{shown}: cannot be written: the disk has less than the {needed:,} bytes that it needs")
        temporary.mkdir()
        _save_apart(source, temporary / "params", shown)
        write_json(temporary / "config.json", to_dict(weights.config))
        for path in temporary.rglob("*"):
            _sync(path)
        os.rename(temporary, folder)
        sync_folder(parent)
    except OSError as error:
        raise InputError(f"{shown}: cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return weights


def _save_apart(source: str | os.PathLike[str], params: pathlib.Path, shown: str) -> None:
    """Let another process write the parameters.

    Where the file system refuses (a disk that is full), orbax's threads print hundreds of lines and go on writing after
    the error has been raised: here they end with their process, unheard, and what they left can be removed.
    """
    paths = [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-P", "-m", "weight_port.orbax_folder", os.path.abspath(source), str(params)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if result.returncode:
        said = result.stdout.strip().splitlines()
        raise InputError(f"{shown}: cannot be written: {said[-1] if said else 'orbax has ended without a reason'}")


def _save(source: str, params: pathlib.Path) -> None:
    """The other process: a converted file in, orbax's folder out, of an error one line on stdout."""
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(params, _nested(read_converted(source).tensors))
    except Exception as error:  # orbax raises many types
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 20:
            causes.append(cause)
        system = next((cause for cause in causes if isinstance(cause, OSError)), error)
        print(reason(system), flush=True)
        os._exit(1)  # without waiting for threads that still write
    os._exit(0)


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *parents, last = name.split(".")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = np.ascontiguousarray(array.read())
    return tree


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    _save(sys.argv[1], pathlib.Path(sys.argv[2]))
