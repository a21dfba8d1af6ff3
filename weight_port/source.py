"""What a user points at, whatever it is: one file or a Hugging Face folder, PyTorch or safetensors, either naming."""

import functools
import hashlib
import os
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import read_bytes, show_path
from weight_port import huggingface
from weight_port.files import regular_file, sha256
from weight_port.store import FORMAT, MAX_HEADER_BYTES, read_json, read_safetensors
from weight_port.torch_file import looks_like_torch, read_torch

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. `tensors` have Meta's names (a converted file's have ours)."""

    path: pathlib.Path
    files: list[pathlib.Path]
    form: str  # for people: "PyTorch, Meta's names"
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    beside: list[str]  # what a PyTorch file holds beside its model
    hints: dict[str, Any] | None  # configuration fields from a Hugging Face folder

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.files)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file; of a sharded checkpoint, sha256 of the lines "digest  name" of its files, in order."""
        digests = [sha256(path) for path in self.files]
        if len(digests) == 1:
            return digests[0]
        lines = "".join(f"{d}  {path.name}\n" for d, path in zip(digests, self.files, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a checkpoint; nothing in it is executed, tensors stay on the disk.

    Raises:
        InputError: not a checkpoint, damaged, hostile, or of a form that is not read.
    """
    path = pathlib.Path(path)
    hints = None
    if path.is_dir():
        files = _files_of_folder(path)
        hints = _read_hints(path / "config.json")
    elif path.name.endswith(".index.json"):
        files = _shards(path)
    else:
        files = [path]
    beside: list[str] = []
    metadata: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    container = "safetensors"
    for file in files:
        regular_file(file)
        if looks_like_torch(file):
            container = "PyTorch"
            found, beside = read_torch(file)
        else:
            found, metadata = read_safetensors(file)
        if repeated := sorted(set(found) & set(tensors)):
            raise InputError(f"{show_path(file)}: tensor {repeated[0]!r:.120} is in another shard too")
        tensors |= found
    naming = "Meta's names"
    if huggingface.is_huggingface(tensors):
        naming = "Hugging Face's names"
        tensors = huggingface.to_meta(tensors, show_path(path))
    if metadata.get("format") == FORMAT:
        naming = "converted"
    return Source(path, files, f"{container}, {naming}", tensors, metadata, beside, hints)


def _files_of_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    for name in ("model.safetensors", _INDEX):
        if (folder / name).is_file():
            return [folder / name] if name != _INDEX else _shards(folder / name)
    raise InputError(
        f"{show_path(folder)}: no model.safetensors or {_INDEX} in this folder; name the checkpoint file itself"
    )


def _read_hints(config: pathlib.Path) -> dict[str, Any] | None:
    if not config.exists():
        return None
    content = read_bytes(config, max_bytes=2**20, what="Hugging Face configuration")
    return huggingface.read_hints(read_json(content, show_path(config)), show_path(config))


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """Files that an index names, in order. Names must be plain: an index may not lead out of its folder."""
    text = read_bytes(index, max_bytes=MAX_HEADER_BYTES, what="index of shards")
    content = read_json(text, show_path(index))
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f'{index}: expected an object "weight_map" of tensor names to file names')
    names = set()
    for value in mapping.values():
        if not isinstance(value, str) or not value.endswith(".safetensors") or set(value) & set("/\\:\0"):
            raise InputError(
                f"{show_path(index)}: {value!r:.120} is not the plain name of a .safetensors file beside the index"
            )
        names.add(value)
    if len(names) > 1000:
        raise InputError(f"{show_path(index)}: {len(names)} shards, expected at most 1000")
    files = [index.parent / name for name in sorted(names)]
    for file in files:
        found, _ = read_safetensors(file)
        claimed = {tensor for tensor, name in mapping.items() if name == file.name}
        if different := sorted(claimed.symmetric_difference(found)):
            raise InputError(f"{show_path(file)}: the index and the file disagree about tensor {different[0]!r:.120}")
    return files
