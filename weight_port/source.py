"""What a user points at, whatever it is: one file or a Hugging Face folder, PyTorch or safetensors, either naming."""

import functools
import hashlib
import os
import pathlib
from dataclasses import dataclass, field
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, read_bytes, show_path
from ntt_jax.safetensors_file import MAX_HEADER_BYTES
from weight_port import huggingface
from weight_port.choose import choose
from weight_port.files import InputFile, sha256
from weight_port.store import FORMAT, read_safetensors
from weight_port.strangers import describe_stranger
from weight_port.tensor import Tensor
from weight_port.torch_file import TorchFile, looks_like_torch

_INDEX = "model.safetensors.index.json"
_TORCH_NAME = "pytorch_model.bin"
_MAX_SHARDS = 500


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. `tensors` have Meta's names (a converted file's have ours)."""

    path: pathlib.Path
    opened: list[InputFile]
    form: str  # for people: "PyTorch, Meta's names"
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    beside: list[str]  # what the checkpoint holds beside its model, which is left out
    hints: dict[str, Any] | None  # configuration fields from a Hugging Face folder
    notes: list[str] = field(default_factory=list)  # where the model was in it, and how its names were changed

    @property
    def files(self) -> list[pathlib.Path]:
        """Its files, in order."""
        return [pathlib.Path(file.path) for file in self.opened]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.opened)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file; of a sharded checkpoint, sha256 of the lines "digest  name" of its files, in order."""
        digests = [sha256(file) for file in self.opened]
        if len(digests) == 1:
            return digests[0]
        lines = "".join(f"{d}  {path.name}\n" for d, path in zip(digests, self.files, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()


def open_source(path: str | os.PathLike[str], *, key: str | None = None, prefix: str | None = None) -> Source:
    """Open a checkpoint; nothing in it is executed, tensors stay on the disk until they are used.

    Args:
        path: a file of torch.save or of safetensors, an index of shards, or a Hugging Face folder.
        key, prefix: which dictionary of it, and what its names start with, where several models are in it.

    Raises:
        InputError: not a checkpoint, damaged, hostile, of a form that is not read, or with several models in it.
    """
    path = pathlib.Path(path)
    where, hints = show_path(path), None
    if path.is_dir():
        files = _files_of_folder(path)
        hints = _read_hints(path / "config.json")
    elif path.name.endswith(".index.json"):
        files = _shards(path)
    else:
        files = [InputFile(path)]
    if looks_like_torch(files[0]):
        container, metadata = "PyTorch", {}
        torch_file = TorchFile(files[0])
        chosen = choose(torch_file.root, where, key=key, prefix=prefix)
        tensors = torch_file.tensors(chosen.tensors)
    else:
        container = "safetensors"
        tensors, metadata = _read_files(files)
        if metadata.get("format") == FORMAT:
            return Source(path, files, "safetensors, converted", tensors, metadata, [], hints)
        chosen = choose(tensors, where, key=key, prefix=prefix)
        tensors = chosen.tensors
    naming = "Meta's names"
    if huggingface.is_huggingface(tensors):
        naming = "Hugging Face's names"
        tensors = huggingface.to_meta(tensors, where)
    return Source(path, files, f"{container}, {naming}", tensors, metadata, chosen.beside, hints, chosen.notes)


def _read_files(files: list[InputFile]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of all files together, and the metadata of the last."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if (words := describe_stranger(file)) is not None:
            raise InputError(f"{show_path(file.path)}: {words}")
        found, metadata = read_safetensors(file)
        if repeated := sorted(set(found) & set(tensors)):
            raise InputError(f"{show_path(file.path)}: tensor {repeated[0]!r:.120} is in another shard too")
        tensors |= found
    return tensors, metadata


def _files_of_folder(folder: pathlib.Path) -> list[InputFile]:
    for name in ("model.safetensors", _INDEX, _TORCH_NAME):
        if (folder / name).is_file():
            return [InputFile(folder / name)] if name != _INDEX else _shards(folder / name)
    raise InputError(
        f"{show_path(folder)}: no model.safetensors or {_INDEX} in this folder; name the checkpoint file itself"
    )


def _read_hints(config: pathlib.Path) -> dict[str, Any] | None:
    if not config.exists():
        return None
    what = "Hugging Face configuration"
    content = parse_json(read_bytes(config, max_bytes=2**20, what=what), config, what=what, strict=True)
    return huggingface.read_hints(content, show_path(config))


def _shards(index: pathlib.Path) -> list[InputFile]:
    """Files that an index names, in order. Names must be plain: an index may not lead out of its folder."""
    where, what = show_path(index), "index of shards"
    content = parse_json(read_bytes(index, max_bytes=MAX_HEADER_BYTES, what=what), index, what=what, strict=True)
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f'{where}: expected an object "weight_map" of tensor names to file names')
    names = set()
    for value in mapping.values():
        if not isinstance(value, str) or not value.endswith(".safetensors") or set(value) & set("/\\:\0"):
            raise InputError(f"{where}: {value!r:.120} is not the plain name of a .safetensors file beside the index")
        names.add(value)
    if len(names) > _MAX_SHARDS:
        raise InputError(f"{where}: {len(names)} shards, expected at most {_MAX_SHARDS}")
    files = [InputFile(index.parent / name) for name in sorted(names)]
    for file in files:
        found, _ = read_safetensors(file)
        name = pathlib.Path(file.path).name
        claimed = {tensor for tensor, at in mapping.items() if at == name}
        if different := sorted(claimed.symmetric_difference(found)):
            raise InputError(
                f"{show_path(file.path)}: the index and the file disagree about tensor {different[0]!r:.120}"
            )
    return files
