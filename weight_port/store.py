"""Safetensors files: tensors read when they are asked for, and written in one pass."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, replacing, show_path
from ntt_jax.safetensors_file import DTYPES, Entry, Header, read_header
from weight_port.files import InputFile
from weight_port.tensor import Tensor

FORMAT = "ntt-jax-weights"
"""Metadata "format" of a file that `convert` wrote."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Item(NamedTuple):
    """One tensor to write: `make` is called when its turn comes, so that one copy at a time is in memory."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def read_safetensors(file: PathLike | InputFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, in its order, and its metadata. The header alone is read.

    Raises:
        InputError: not a safetensors file, truncated, or a header that does not describe exactly the file's bytes.
    """
    opened = file if isinstance(file, InputFile) else InputFile(file)
    header = read_header(opened.at_start(), opened.path, opened.size)
    return {name: _tensor(opened, header, name, entry) for name, entry in header.entries.items()}, header.metadata


def _tensor(file: InputFile, header: Header, name: str, entry: Entry) -> Tensor:
    def read() -> np.ndarray:
        raw = file.read(header.start + entry.begin, entry.end - entry.begin)
        if entry.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise InputError(f"{show_path(file.path)}: tensor {name!r:.120} holds bytes that are neither 0 nor 1")
        return raw.view(entry.dtype).reshape(entry.shape)

    return Tensor(entry.dtype, entry.shape, read)


def write_safetensors(path: pathlib.Path, items: Iterable[Item], metadata: dict[str, str]) -> None:
    """Write tensors one after the other; the file appears under its name only when complete.

    Raises:
        InputError: the file system refuses (no such folder, no space, no permission).
    """
    items = list(items)
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for item in items:
        end = position + math.prod(item.shape) * item.dtype.itemsize
        header[item.name] = {
            "dtype": _DTYPE_NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # data starts on a 64-byte boundary, so that mapped arrays are aligned
    with replacing(path) as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for item in items:
            array = np.ascontiguousarray(item.make())
            if array.shape != item.shape or array.dtype != item.dtype:
                raise AssertionError(f"{item.name}: {array.dtype}{array.shape}, announced {item.dtype}{item.shape}")
            f.write(array.reshape(-1).view(np.uint8).data)
