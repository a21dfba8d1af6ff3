"""The header of a safetensors file, read with suspicion. The one reader of it: for weights and for memory files.

The format: 8 bytes little-endian header length, a JSON header `{name: {"dtype", "shape", "data_offsets"}}` with
optional string-to-string `"__metadata__"`, then the data. Every claim of the header is checked against the size of the
file before anything is read; nothing is allocated by what a header says.
"""

import math
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, parse_json, reason, show_path

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_BYTES = 2**46
"""More than any file: the product of a tensor's sizes that are not 0, times its item, stays below."""

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


class Entry(NamedTuple):
    """One tensor of the header. begin, end: its bytes, counted from the end of the header."""

    code: str  # "F32"
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A checked header. start: where in the file the data begins."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int


def read_header(
    file: IO[bytes], path: PathLike, size: int, *, max_bytes: int = MAX_HEADER_BYTES, what: str = "safetensors file"
) -> Header:
    """Read and check the header of an open file, from its start; the data are not read.

    Args:
        file: open at its start.
        path: for messages.
        size: of the whole file, bytes.
        max_bytes: limit on the header's length. what: the kind of file, for messages.

    Raises:
        InputError: not a safetensors file, truncated, or a header that does not describe exactly the file's bytes.
    """
    shown = show_path(path)
    try:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(size - 8, max_bytes):
            raise InputError(f"{shown}: not a {what}, or truncated (header of {length} bytes)")
        text = file.read(length)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {reason(error)}") from None
    if len(text) != length:
        raise InputError(f"{shown}: was cut while it was read")
    header = parse_json(text, path, what="header", strict=True)
    if not isinstance(header, dict):
        raise InputError(f"{shown}: header: expected a JSON object, found {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{shown}: header: metadata must map strings to strings")
    if not 0 < len(header) <= MAX_TENSORS:
        raise InputError(f"{shown}: expected 1 to {MAX_TENSORS} tensors, found {len(header)}")
    entries = {name: _entry(shown, name, value) for name, value in header.items()}
    _check_layout(shown, entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


def sensible(shape: tuple[int, ...] | list[int], itemsize: int) -> bool:
    """Whether numpy can hold an array of this shape, also where one of its sizes is 0."""
    return math.prod(max(1, n) for n in shape) * itemsize <= MAX_BYTES


def _entry(shown: str, name: str, value: Any) -> Entry:
    where = f"{shown}: tensor {name!r:.120}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: header entry must have dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(f"{where}: unknown dtype {_short(code)}")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise InputError(f"{where}: shape must be a list of at most {MAX_RANK} sizes, found {_short(shape)}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise InputError(f"{where}: data_offsets must be two positions, found {_short(offsets)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{where}: shape {shape} of {code} needs {math.prod(shape) * dtype.itemsize} bytes, "
            f"the header gives it {end - begin}"
        )
    if not sensible(shape, dtype.itemsize):
        raise InputError(f"{where}: shape {shape} is of no array")
    return Entry(code, dtype, tuple(shape), begin, end)


def _short(value: Any) -> str:
    """A value of the header for a message; nothing deep is printed, which could end in a RecursionError."""
    if isinstance(value, list) and any(isinstance(v, list | dict) for v in value):
        return f"a list of {len(value)} with others inside"
    return f"{value!r:.80}" if not isinstance(value, dict) else f"an object of {len(value)} keys"


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def _check_layout(shown: str, entries: dict[str, Entry], size: int) -> None:
    """The tensors must tile the data exactly: no overlap (a small file that expands), no gap, no bytes over."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise InputError(f"{shown}: tensor {name!r:.120} starts at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != size:
        raise InputError(f"{shown}: the header describes {position} bytes of data, the file has {size}; truncated?")
