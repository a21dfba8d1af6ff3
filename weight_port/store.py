"""Safetensors files, read with suspicion and written in one pass.

The format: 8 bytes little-endian header length, a JSON header `{name: {"dtype", "shape", "data_offsets"}}` with
optional string-to-string `"__metadata__"`, then the data. Every claim of the header is checked against the file before
anything is mapped; nothing is allocated by what a header says.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import replacing, show_path
from weight_port.files import reason, regular_file

FORMAT = "ntt-jax-weights"
"""Metadata "format" of a file that `convert` wrote."""

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 20_000
MAX_RANK = 8

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Item(NamedTuple):
    """One tensor to write: `make` is called when its turn comes, so that one copy at a time is in memory."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def read_json(text: bytes, where: str) -> Any:
    """Parse JSON from outside; repeated keys are refused. Raises `InputError`."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where}: not valid JSON: {reason(e)}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("the same key twice in one object")
    return out


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map the tensors of a safetensors file (read-only views of the file, in its order) and read its metadata.

    Raises:
        InputError: not a safetensors file, truncated, or a header that does not describe exactly the file's bytes.
    """
    size = regular_file(path)
    try:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 10 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise InputError(f"{show_path(path)}: not a safetensors file, or truncated (header of {length} bytes)")
            header = read_json(f.read(length), f"{show_path(path)}: header")
    except OSError as e:
        raise InputError(f"{show_path(path)}: cannot be read: {reason(e)}") from None
    if not isinstance(header, dict):
        raise InputError(f"{show_path(path)}: header: expected a JSON object, found {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{show_path(path)}: header: metadata must map strings to strings")
    if not 0 < len(header) <= MAX_TENSORS:
        raise InputError(f"{show_path(path)}: expected 1 to {MAX_TENSORS} tensors, found {len(header)}")
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    _check_layout(path, entries, size - 8 - length)
    try:
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    except (OSError, ValueError) as e:
        raise InputError(f"{show_path(path)}: cannot be read: {reason(e)}") from None
    data = np.asarray(data)  # a plain array: memmap instances are slow to slice
    return {
        name: data[begin:end].view(dtype).reshape(shape) for name, (dtype, shape, begin, end) in entries.items()
    }, metadata


def _entry(path: pathlib.Path, name: str, value: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    where = f"{show_path(path)}: tensor {name!r:.120}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: header entry must have dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise InputError(f"{where}: unknown dtype {value['dtype']!r:.40}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise InputError(f"{where}: shape must be a list of at most {MAX_RANK} sizes, found {shape!r:.80}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise InputError(f"{where}: data_offsets must be two positions, found {offsets!r:.80}")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{where}: shape {shape} of {value['dtype']} needs {math.prod(shape) * dtype.itemsize} bytes, "
            f"the header gives it {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def _check_layout(
    path: pathlib.Path, entries: dict[str, tuple[np.dtype, tuple[int, ...], int, int]], size: int
) -> None:
    """The tensors must tile the data exactly: no overlap (a small file that expands), no gap, no bytes over."""
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise InputError(f"{show_path(path)}: tensor {name!r:.120} starts at byte {begin}, expected {position}")
        position = end
    if position != size:
        raise InputError(
            f"{show_path(path)}: the header describes {position} bytes of data, the file has {size}; truncated?"
        )


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
