"""PyTorch checkpoint files (.pt, .pth, .ckpt), read and written without torch.

Nothing in a file is run, and nothing reads it but this: the archive's directory is checked (`zip_archive`), its pickle
is read as data (`pickle_scan`), every tensor that it claims is held against the record's size, and its numbers are
copied out of the record that was checked. There is no second reader that could see another file.
"""

import math
import pathlib
import re
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import describe, replacing, show_path
from weight_port.pickle_scan import STORAGE_TYPES, OddKey, Opaque, TensorClaim, scan
from weight_port.state_dict import Choice, choose
from weight_port.store import MAX_HEADER_BYTES, MAX_TENSORS
from weight_port.tensors import InputFile, Tensor, Tensors
from weight_port.zip_archive import Record, read_directory, read_record

MAX_PICKLE_BYTES = 16 * 2**20
_ZIP_MAGIC = b"PK\x03\x04"
_DTYPES = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name, _ in STORAGE_TYPES.values()}


def looks_like_torch(file: InputFile) -> bool:
    """Whether the file starts like something `torch.save` wrote, old or new."""
    start = bytes(file.read(0, min(16, file.size)))
    pickle = start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    # The length of a safetensors header may well begin like a pickle, but never goes on like one.
    return start.startswith(_ZIP_MAGIC) or (pickle and int.from_bytes(start[:8], "little") > MAX_HEADER_BYTES)


def read_torch(file: InputFile, *, key: str | None = None, prefix: str | None = None) -> tuple[Tensors, Choice]:
    """The model's tensors in a checkpoint, by its names, and what was chosen (`state_dict.choose`).

    Raises:
        InputError: not a checkpoint, damaged, hostile, or several models lie in it.
    """
    where = show_path(file.path)
    claims, records = _survey(file)
    choice = choose(claims, lambda value: isinstance(value, TensorClaim), where, key=key, prefix=prefix)
    holder = claims
    for part in choice.reading.keys:
        holder = holder[part]
    return _tensors(file, {name: holder[own] for name, own in choice.names.items()}, records), choice


def read_torch_named(path: pathlib.Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The tensors of a training checkpoint whose last name is one of `names`, by that name; others are not touched.

    `{"seg_model.bank.means": ...}` gives "means"; the names lie flat, under "state_dict" (Lightning) or under "model".

    Raises:
        InputError: as `read_torch`, or two tensors have the same last name.
    """
    file = InputFile(path)
    claims, records = _survey(file)
    under = next((key for key in ("state_dict", "model") if isinstance(claims.get(key), dict)), None)
    holder = claims if under is None else claims[under]
    full: dict[str, str] = {}
    for name in holder:
        last = name.rpartition(".")[2] if type(name) is str else ""
        if last in names:
            if last in full:
                first, second = describe(full[last]), describe(name)
                raise InputError(f"{show_path(path)}: two tensors are called {last!r}: {first} and {second}")
            full[last] = name
    return dict(_tensors(file, {last: holder[name] for last, name in full.items()}, records)) if full else {}


def _tensors(file: InputFile, claims: dict[Any, Any], records: dict[str, Record]) -> Tensors:
    """The tensors of these claims, checked against the records."""
    _check_claims(file, claims, records)
    return Tensors(
        {
            name: Tensor(_DTYPES[claim.storage.dtype], claim.shape, _reader(file, claim, records[claim.storage.key]))
            for name, claim in claims.items()
        }
    )


def _reader(file: InputFile, claim: TensorClaim, record: Record) -> Callable[[], np.ndarray]:
    """Copies a strided view of a record out of the file; of a large record no more than the view spans."""
    dtype = _DTYPES[claim.storage.dtype]

    def read() -> np.ndarray:
        if not math.prod(claim.shape):
            return np.zeros(claim.shape, dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(claim.shape, claim.stride, strict=True))
        start = record.offset + claim.offset * dtype.itemsize
        data = np.frombuffer(file.read(start, span * dtype.itemsize), dtype)
        strides = [step * dtype.itemsize for step in claim.stride]
        return np.lib.stride_tricks.as_strided(data, claim.shape, strides)

    return read


def _survey(file: InputFile) -> tuple[dict[Any, Any], dict[str, Record]]:
    """What the archive holds: the scanned pickle, and where each storage record lies."""
    where = show_path(file.path)
    if bytes(file.read(0, min(4, file.size))) != _ZIP_MAGIC:
        raise InputError(
            f"{where}: no checkpoint, or one written by torch before 1.6; expected a zip archive: where you trust it, "
            "save it again with torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    entries = read_directory(file)
    prefixes = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(prefixes) != 1 or f"{prefixes[0]}constants.pkl" in entries:
        raise InputError(
            f"{where}: not a checkpoint of torch.save (a TorchScript model or another archive); "
            "expected a state dict saved with torch.save"
        )
    (prefix,) = prefixes
    order = entries.get(f"{prefix}byteorder")
    if order is not None and order.size < 16 and read_record(file, order) != b"little":
        raise InputError(f"{where}: written on a big-endian machine; save it again on a little-endian one")
    pickle = entries[f"{prefix}data.pkl"]
    if pickle.size > MAX_PICKLE_BYTES:
        raise InputError(f"{where}: its pickle is larger than {MAX_PICKLE_BYTES >> 20} MB")
    claims = scan(read_record(file, pickle), where)
    if not isinstance(claims, dict):
        raise _refused(where, claims) or InputError(
            f"{where}: expected a dictionary of tensors, found {type(claims).__name__}"
        )
    data = f"{prefix}data/"
    return claims, {name.removeprefix(data): r for name, r in entries.items() if name.startswith(data)}


def _refused(where: str, value: Any) -> InputError | None:
    """What to say of a value that would have to be built."""
    if not isinstance(value, Opaque):
        return None
    return InputError(
        f"{where}: the pickle asks for {describe(value.asks_for)[1:-1]}; only tensors are read, nothing was executed: "
        "save the tensors alone, torch.save(model.state_dict(), FILE)"
    )


def _check_claims(file: InputFile, claims: dict[Any, Any], records: dict[str, Record]) -> None:
    path = show_path(file.path)
    if not 0 < len(claims) <= MAX_TENSORS:
        raise InputError(f"{path}: expected 1 to {MAX_TENSORS} tensors, found {len(claims)}")
    for name, claim in claims.items():
        where = f"{path}: {describe(name)}"
        if isinstance(name, OddKey) or type(name) is not str:
            kind = name.kind if isinstance(name, OddKey) else type(name).__name__
            raise InputError(f"{path}: a dictionary key is {kind}, expected a string")
        if not isinstance(claim, TensorClaim):
            raise _refused(path, claim) or InputError(
                f"{where} is {type(claim).__name__}, expected a state dict: names and tensors only"
            )
        if claim.odd:
            raise InputError(f"{where} is stored negated or conjugated; save it again after .clone()")
        storage, record = claim.storage, records.get(claim.storage.key)
        found = None if record is None else record.size
        if storage.numel * storage.itemsize != found:
            raise InputError(
                f"{where}: the pickle claims a storage of {storage.numel * storage.itemsize} bytes, "
                f"the archive has {found}"
            )
        if not _fits(claim):
            raise InputError(
                f"{where}: shape {list(claim.shape)} reaches beyond its storage of {storage.numel} numbers"
            )
    if (total := sum(claim.nbytes for claim in claims.values())) > file.size:
        raise InputError(
            f"{path}: its tensors would take {total} bytes, the file has {file.size}: storages used repeatedly"
        )


def _fits(claim: TensorClaim) -> bool:
    if not math.prod(claim.shape):  # a side of 0 must not hide another of 2^47
        return max(claim.shape, default=0) <= 2**31
    last = claim.offset + sum((n - 1) * step for n, step in zip(claim.shape, claim.stride, strict=True))
    return last < claim.storage.numel


def torch_to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as a numpy array of the same bits, without a copy where it lies in main memory."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy itself knows no bfloat16, and torch not numpy's extension
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


_STORAGES = {_DTYPES[name]: storage for storage, (name, _) in STORAGE_TYPES.items()}
_ALIGNMENT = 64


def write_torch(path: pathlib.Path, tensors: Mapping[str, np.ndarray], *, wrap: bool) -> None:
    """Write a checkpoint as Meta's: `{"model": {...}}` if `wrap`, else the flat dictionary; `torch.load` reads it.

    Raises:
        InputError: the file system refuses.
    """
    entries = Tensors.of(tensors).entries
    with replacing(path) as file:
        archive = _ArchiveWriter(file, path.stem)
        archive.add("data.pkl", _pickle(entries, wrap))
        archive.add("byteorder", b"little")
        for number, name in enumerate(entries):
            array = np.ascontiguousarray(tensors[name])
            archive.add(f"data/{number}", array.reshape(-1).view(np.uint8).data)
        archive.add("version", b"3\n")
        archive.close()


def _pickle(entries: Mapping[str, Tensor], wrap: bool) -> bytes:
    """The pickle, protocol 2, of a dictionary of contiguous tensors whose storages are the records 0, 1, 2, ..."""

    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    def tensor(number: int, entry: Tensor) -> bytes:
        strides = tuple(math.prod(entry.shape[i + 1 :]) for i in range(entry.ndim))
        storage = text("storage") + f"ctorch\n{_STORAGES[entry.dtype]}\n".encode() + text(str(number)) + text("cpu")
        arguments = b"((" + storage + integer(entry.size) + b"tQ" + integer(0) + numbers(entry.shape)
        arguments += numbers(strides) + b"\x89ccollections\nOrderedDict\n)Rt"
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"

    items = b"".join(text(name) + tensor(number, entry) for number, (name, entry) in enumerate(entries.items()))
    state = b"ccollections\nOrderedDict\n)R(" + items + b"u"
    return b"\x80\x02" + (b"}" + text("model") + state + b"s" if wrap else state) + b"."


class _ArchiveWriter:
    """A stored zip whose records begin at multiples of 64, as torch writes them; sizes of 4 GB and more included."""

    def __init__(self, file: IO[bytes], root: str):
        self.file, self.root = file, re.sub(r"[^\w.-]", "_", root) or "archive"
        self.position, self.directory = 0, []

    def add(self, name: str, data: Any) -> None:
        raw, size, crc = f"{self.root}/{name}".encode(), len(data), zlib.crc32(data)
        wide = struct.pack("<2H2Q", 1, 16, size, size) if size >= 0xFFFFFFFF else b""
        narrow = min(size, 0xFFFFFFFF)
        start = self.position + 30 + len(raw) + len(wide) + 4
        padding = struct.pack("<2s", b"FB") + struct.pack("<H", -start % _ALIGNMENT) + b"Z" * (-start % _ALIGNMENT)
        fields = (crc, narrow, narrow)
        header = struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 45, 0x800, 0, 0, 0x21, *fields, len(raw), len(wide) + len(padding)
        )
        self.directory.append((raw, fields, size, self.position))
        self.file.write(header + raw + wide + padding)
        self.file.write(data)
        self.position = start + len(padding) - 4 + size

    def close(self) -> None:
        start = self.position
        for raw, fields, size, offset in self.directory:
            wide = struct.pack("<2Q", size, size) if size >= 0xFFFFFFFF else b""
            wide += struct.pack("<Q", offset) if offset >= 0xFFFFFFFF else b""
            extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
            numbers = (len(raw), len(extra), 0, 0, 0, 0, min(offset, 0xFFFFFFFF))
            entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0x800, 0, 0, 0x21, *fields, *numbers)
            self.file.write(entry + raw + extra)
            self.position += len(entry) + len(raw) + len(extra)
        count, size = len(self.directory), self.position - start
        wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
        self.file.write(wide + struct.pack("<4sIQI", b"PK\x06\x07", 0, self.position, 1))
        narrow = (min(count, 0xFFFF), min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(start, 0xFFFFFFFF))
        self.file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *narrow, 0))
