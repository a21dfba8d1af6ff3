"""PyTorch checkpoint files (.pt, .pth, .ckpt, .bin), read and written without PyTorch.

One open file throughout: the archive is measured (`zip_records`), its pickle read as data (`pickle_scan`), every claim
of a tensor compared with the record that holds its bytes, and the bytes then read from that record. No unpickler ever
sees the file. What is written is what `torch.save` writes, as far as `torch.load(weights_only=True)` can tell.
"""

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, show_path
from ntt_jax.safetensors_file import MAX_HEADER_BYTES, MAX_TENSORS
from weight_port.files import MAX_CHECKPOINT_BYTES, InputFile
from weight_port.pickle_scan import Global, Opaque, TensorClaim, describe_value, scan
from weight_port.strangers import describe_archive, describe_stranger
from weight_port.tensor import Tensor
from weight_port.zip_records import MAGIC, Record, read_records

MAX_PICKLE_BYTES = 16 * 2**20
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SCATTERED = 64 * 2**20
"""Bytes that a view with gaps may span, beyond eight times its own."""
_MAPPED = 2**29
_SHARED = 16 * 2**20
"""Bytes that tensors may take beyond those of the file: small ones that share a storage, or repeat one number."""
SAVE_TENSORS = (
    "in a PyTorch that you trust it with, save the tensors alone: torch.save({name: tensor.clone() for name, tensor in "
    "model.state_dict().items()}, 'weights.pt')"
)


def looks_like_torch(file: InputFile) -> bool:
    """Whether the file starts like something `torch.save` wrote, old or new."""
    start = file.content(0, 16)
    pickle = start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    # The length of a safetensors header may well begin like a pickle, but never goes on like one.
    return start.startswith(MAGIC) or (pickle and int.from_bytes(start[:8], "little") > MAX_HEADER_BYTES)


class TorchFile:
    """An opened checkpoint. root: what its pickle describes, a dictionary of `TensorClaim`s and others."""

    def __init__(self, file: InputFile, *, map_beyond: int = MAX_CHECKPOINT_BYTES):
        """Scan the file; no tensor is read.

        Args:
            file: open.
            map_beyond: bytes beyond which a tensor becomes a map of the file instead of a copy in memory.

        Raises:
            InputError: not a checkpoint of `torch.save`, damaged, hostile, or of a form that is not read.
        """
        self.where = where = show_path(file.path)
        self._file, self._map_beyond = file, map_beyond
        if not file.content(0, 4).startswith(MAGIC):
            raise InputError(f"{where}: {describe_stranger(file) or 'not a checkpoint'}")
        records = read_records(file)
        roots = {name.partition("/")[0] for name in records}
        (root,) = roots if len(roots) == 1 else ("",)
        pickle = records.get(f"{root}/data.pkl")
        if pickle is None or f"{root}/constants.pkl" in records:
            raise InputError(f"{where}: {describe_archive(records)}")
        order = records.get(f"{root}/byteorder")
        if order is not None and order.size < 16 and self._bytes(order) != b"little":
            raise InputError(f"{where}: written on a big-endian machine; save it again on a little-endian one")
        if pickle.size > MAX_PICKLE_BYTES:
            raise InputError(f"{where}: its pickle is larger than {MAX_PICKLE_BYTES >> 20} MB")
        content = self._bytes(pickle)
        if pickle.crc and zlib.crc32(content) != pickle.crc:
            raise InputError(
                f"{where}: damaged or truncated archive: its pickle's checksum is wrong; download it again"
            )
        data = f"{root}/data/"
        self._storages = {name.removeprefix(data): r for name, r in records.items() if name.startswith(data)}
        found = scan(content, where)
        if isinstance(found, Opaque | Global):
            raise asks_for(where, found)
        if not isinstance(found, dict):
            raise InputError(f"{where}: expected a dictionary of tensors, found {describe_value(found)}")
        self.root: dict[Any, Any] = found

    def tensors(self, claims: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of some claims, to be read when they are asked for.

        Raises:
            InputError: a value is no tensor, or a claim does not fit the archive.
        """
        if not 0 < len(claims) <= MAX_TENSORS:
            raise InputError(f"{self.where}: expected 1 to {MAX_TENSORS} tensors, found {len(claims)}")
        for name, claim in claims.items():
            self._check(name, claim)
        if (total := sum(claim.nbytes for claim in claims.values())) > self._file.size + _SHARED:
            raise InputError(
                f"{self.where}: its tensors would take {total} bytes, the file has {self._file.size}: storages used "
                "repeatedly"
            )
        return {name: self._tensor(name, claim) for name, claim in claims.items()}

    def _bytes(self, record: Record) -> bytes:
        return self._file.content(record.offset, record.size)

    def _check(self, name: Any, claim: Any) -> None:
        where = f"{self.where}: {name!r:.120}" if type(name) is str else f"{self.where}: {describe(name)}"
        if type(name) is not str or isinstance(claim, Opaque | Global):
            raise asks_for(where, claim if type(name) is str else name)
        if not isinstance(claim, TensorClaim):
            raise InputError(f"{where} is {describe_value(claim)}, expected a state dict: names and tensors only")
        storage = claim.storage
        record, bytes_claimed = self._storages.get(storage.key), storage.numel * storage.itemsize
        if record is None or bytes_claimed != record.size:
            raise InputError(
                f"{where}: the pickle claims a storage of {bytes_claimed} bytes, "
                f"the archive has {None if record is None else record.size}"
            )
        if claim.last >= storage.numel:
            raise InputError(
                f"{where}: shape {list(claim.shape)} reaches beyond its storage of {storage.numel} numbers"
            )
        if claim.lazy:
            raise InputError(f"{where}: a view that torch changes when it is loaded ({claim.lazy}); {SAVE_TENSORS}")

    def _tensor(self, name: str, claim: TensorClaim) -> Tensor:
        dtype = _DTYPES.get(claim.storage.dtype) or np.dtype(claim.storage.dtype)
        return Tensor(dtype, claim.shape, lambda: self._read(name, claim, dtype))

    def _read(self, name: str, claim: TensorClaim, dtype: np.dtype) -> np.ndarray:
        if claim.last < 0:
            return np.zeros(claim.shape, dtype)
        span = (claim.last + 1 - claim.offset) * dtype.itemsize
        if span > max(_SCATTERED, 8 * claim.nbytes):
            raise InputError(f"{self.where}: {name!r:.120}: {claim.nbytes} bytes scattered over {span}; {SAVE_TENSORS}")
        start = self._storages[claim.storage.key].offset + claim.offset * dtype.itemsize
        raw = (self._file.read if span <= self._map_beyond else self._file.mapped)(start, span)
        if dtype == np.bool_ and raw.max() > 1:
            raise InputError(f"{self.where}: {name!r:.120}: bytes that are neither 0 nor 1 in a tensor of booleans")
        numbers = raw.view(dtype)
        steps = [step * dtype.itemsize for step in claim.stride]
        view = np.lib.stride_tricks.as_strided(numbers, claim.shape, steps, writeable=False)
        return np.ascontiguousarray(view) if claim.nbytes != span else view


def asks_for(where: str, value: Any) -> InputError:
    """The refusal of an object that would have to be built."""
    name = describe_value(value)
    if isinstance(value, Opaque) and "." not in name:  # what stands for a dictionary's key
        return InputError(f"{where}: a dictionary key is {name}, expected a string")
    if not isinstance(value, Opaque | Global):
        return InputError(f"{where}: a dictionary key is {name}, expected a string")
    return InputError(
        f"{where}: the pickle asks for {name}; only tensors are read, nothing was executed; {SAVE_TENSORS}"
    )


def read_torch_named(path: PathLike, names: Collection[str]) -> dict[str, np.ndarray]:
    """The tensors of a training checkpoint whose last name is one of `names`, by that name; others are not touched.

    `{"seg_model.bank.means": ...}` gives "means"; the names lie flat, under "state_dict" (Lightning) or under "model".

    Raises:
        InputError: not a checkpoint, damaged or hostile, or two tensors have the same last name.
    """
    file = TorchFile(InputFile(path), map_beyond=_MAPPED)  # features of all references may take many gigabytes
    root = next((file.root[key] for key in ("state_dict", "model") if isinstance(file.root.get(key), dict)), file.root)
    full: dict[str, str] = {}
    for name in root:
        last = name.rpartition(".")[2] if type(name) is str else ""
        if last in names:
            if last in full:
                first, second = full[last], name[:120]
                raise InputError(f"{file.where}: two tensors are called {last!r}: {first!r} and {second!r}")
            full[last] = name
    if not full:
        return {}
    tensors = file.tensors({name: root[name] for name in full.values()})
    return {last: tensors[name].read() for last, name in full.items()}


def torch_to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as a numpy array of the same bits, without a copy where it lies in main memory."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy itself knows no bfloat16, and torch not numpy's extension
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
