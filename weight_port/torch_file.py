"""PyTorch checkpoint files (.pt, .pth): read without running anything in them, and written for Meta's code.

Three gates, each enough alone against a pickle that carries code: the archive is measured (`zipfile`), the pickle is
read as data (`pickle_scan`), and only then `torch.load(weights_only=True, mmap=True)` opens it, in a torch whose
restricted unpickler has no known hole. Tensors are views of the mapped file, so a model costs no memory until used.
"""

import math
import pathlib
import re
import zipfile
from collections.abc import Collection, Mapping
from typing import Any, cast

import ml_dtypes
import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import replacing, show_path
from weight_port.files import reason
from weight_port.pickle_scan import TensorClaim, scan
from weight_port.store import MAX_HEADER_BYTES, MAX_TENSORS

MIN_TORCH = (2, 10)
MAX_PICKLE_BYTES = 16 * 2**20
_ZIP_MAGIC = b"PK\x03\x04"


def looks_like_torch(path: pathlib.Path) -> bool:
    """Whether the file starts like something `torch.save` wrote, old or new."""
    try:
        with path.open("rb") as f:
            start = f.read(16)
    except OSError as e:
        raise InputError(f"{show_path(path)}: cannot be read: {reason(e)}") from None
    pickle = start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    # The length of a safetensors header may well begin like a pickle, but never goes on like one.
    return start.startswith(_ZIP_MAGIC) or (pickle and int.from_bytes(start[:8], "little") > MAX_HEADER_BYTES)


def import_torch(path: pathlib.Path) -> Any:
    """The torch module, if it is there and safe enough. Raises `InputError` saying what to install."""
    try:
        import torch
    except ImportError:
        raise InputError(
            f'{path}: PyTorch files need torch: pip install "ntt-jax[torch]" (safetensors files do not)'
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", str(torch.__version__))[:2])
    if version < MIN_TORCH:
        raise InputError(
            f"{show_path(path)}: torch {torch.__version__} can run code from a checkpoint even with weights_only; "
            f'pip install "torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"'
        )
    return torch


def read_torch(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors of a checkpoint by name, and the names of what lies beside `"model"` in it (optimiser state and such).

    Both forms that Meta uses are read: `{"model": {name: tensor}}` and a flat `{name: tensor}`.

    Raises:
        InputError: not such a checkpoint, damaged, hostile, or no suitable torch installed.
    """
    claims, records, size = _survey(path)
    root = claims["model"] if isinstance(claims.get("model"), dict) else claims
    beside = [str(key) for key in claims if root is not claims and key != "model"]
    _check_claims(path, root, records, size)
    return _load(path, None if root is claims else "model", root), beside


def read_torch_named(path: pathlib.Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The tensors of a training checkpoint whose last name is one of `names`, by that name; others are not touched.

    `{"seg_model.bank.means": ...}` gives "means"; the names lie flat, under "state_dict" (Lightning) or under "model".

    Raises:
        InputError: as `read_torch`, or two tensors have the same last name.
    """
    claims, records, size = _survey(path)
    under = next((key for key in ("state_dict", "model") if isinstance(claims.get(key), dict)), None)
    full: dict[str, str] = {}
    for name in claims if under is None else claims[under]:
        last = name.rpartition(".")[2] if type(name) is str else ""
        if last in names:
            if last in full:
                first, second = full[last], name[:120]
                raise InputError(f"{show_path(path)}: two tensors are called {last!r}: {first!r} and {second!r}")
            full[last] = name
    if not full:
        return {}
    chosen = {name: (claims if under is None else claims[under])[name] for name in full.values()}
    _check_claims(path, chosen, records, size)
    loaded = _load(path, under, chosen)
    return {last: loaded[name] for last, name in full.items()}


def _load(path: pathlib.Path, under: str | None, claims: dict[Any, Any]) -> dict[str, np.ndarray]:
    """The tensors of the claims, which have been checked, from the dictionary `under` the root or the root itself."""
    torch = import_torch(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # torch raises many types on damaged files; all mean that this one cannot be used
        raise InputError(f"{show_path(path)}: torch cannot read it: {reason(e)}") from None
    loaded = loaded if under is None else loaded[under]
    return {name: _to_numpy(path, torch, name, loaded[name], claim) for name, claim in claims.items()}


def _survey(path: pathlib.Path) -> tuple[dict[Any, Any], dict[str, int], int]:
    """What the archive holds: the scanned pickle, the size of each storage record, the size of the file."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_archive(path, entries, size)
            prefixes = [e.filename.removesuffix("data.pkl") for e in entries if e.filename.endswith("/data.pkl")]
            names = {e.filename for e in entries}
            if len(prefixes) != 1 or f"{prefixes[0]}constants.pkl" in names:
                raise InputError(
                    f"{show_path(path)}: not a checkpoint of torch.save (a TorchScript model or another archive); "
                    "expected a state dict saved with torch.save"
                )
            order = f"{prefixes[0]}byteorder"
            if order in names and archive.getinfo(order).file_size < 16 and archive.read(order) != b"little":
                raise InputError(
                    f"{show_path(path)}: written on a big-endian machine; save it again on a little-endian one"
                )
            if archive.getinfo(f"{prefixes[0]}data.pkl").file_size > MAX_PICKLE_BYTES:
                raise InputError(f"{show_path(path)}: its pickle is larger than {MAX_PICKLE_BYTES >> 20} MB")
            pickle = archive.read(f"{prefixes[0]}data.pkl")
    except InputError:
        raise
    except Exception as e:  # zipfile too raises many types on damaged files
        if not _starts_with_zip(path):
            raise InputError(
                f"{show_path(path)}: no checkpoint, or one written by torch before 1.6; expected a zip archive: "
                "load it in a PyTorch you trust it with and save it again"
            ) from None
        raise InputError(f"{show_path(path)}: damaged or truncated archive: {reason(e)}; download it again") from None
    data = f"{prefixes[0]}data/"
    records = {e.filename.removeprefix(data): e.file_size for e in entries if e.filename.startswith(data)}
    claims = scan(pickle, show_path(path))
    if not isinstance(claims, dict):
        raise InputError(f"{show_path(path)}: expected a dictionary of tensors, found {type(claims).__name__}")
    return claims, records, size


def _starts_with_zip(path: pathlib.Path) -> bool:
    with path.open("rb") as f:
        return f.read(4) == _ZIP_MAGIC


def _check_archive(path: pathlib.Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """torch stores records uncompressed, one after the other: anything else is a bomb or a trick."""
    if len(entries) > MAX_TENSORS + 100:
        raise InputError(f"{show_path(path)}: {len(entries)} records in the archive, expected at most {MAX_TENSORS}")
    if len({e.filename for e in entries}) != len(entries):
        raise InputError(f"{show_path(path)}: two records of the archive have the same name")
    position = 0
    for e in sorted(entries, key=lambda e: e.header_offset):
        if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size or e.flag_bits & 1:
            raise InputError(
                f"{show_path(path)}: record {e.filename!r:.80} is compressed or encrypted; torch.save does neither"
            )
        if e.header_offset < position or e.header_offset + e.file_size > size:
            raise InputError(f"{show_path(path)}: record {e.filename!r:.80} overlaps another or the end of the file")
        position = e.header_offset + e.file_size


def _check_claims(path: pathlib.Path, root: dict[Any, Any], records: dict[str, int], size: int) -> None:
    if not 0 < len(root) <= MAX_TENSORS:
        raise InputError(f"{show_path(path)}: expected 1 to {MAX_TENSORS} tensors, found {len(root)}")
    for name, claim in root.items():
        where = f"{show_path(path)}: {name!r:.120}"
        if type(name) is not str or not isinstance(claim, TensorClaim):
            raise InputError(f"{where} is {_kind(claim)}, expected a state dict: names and tensors only")
        storage = claim.storage
        if storage.numel * storage.itemsize != records.get(storage.key):
            raise InputError(
                f"{where}: the pickle claims a storage of {storage.numel * storage.itemsize} bytes, "
                f"the archive has {records.get(storage.key)}"
            )
        last = claim.offset + sum((n - 1) * step for n, step in zip(claim.shape, claim.stride, strict=True))
        if math.prod(claim.shape) and last >= storage.numel:
            raise InputError(
                f"{where}: shape {list(claim.shape)} reaches beyond its storage of {storage.numel} numbers"
            )
    if (total := sum(claim.nbytes for claim in root.values())) > size:
        raise InputError(
            f"{show_path(path)}: its tensors would take {total} bytes, the file has {size}: storages used repeatedly"
        )


def _kind(claim: Any) -> str:
    return "a tensor" if isinstance(claim, TensorClaim) else type(claim).__name__


def _to_numpy(path: pathlib.Path, torch: Any, name: str, tensor: Any, claim: TensorClaim) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != claim.shape:
        raise InputError(f"{show_path(path)}: {name!r:.120} is not the tensor that its pickle describes")
    return torch_to_numpy(tensor)


def torch_to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as a numpy array of the same bits, without a copy where it lies in main memory."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy itself knows no bfloat16, and torch not numpy's extension
        import torch

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def write_torch(path: pathlib.Path, tensors: Mapping[str, np.ndarray], *, wrap: bool) -> None:
    """Write a checkpoint as Meta's: `{"model": {...}}` if `wrap`, else the flat dictionary.

    Raises:
        InputError: no suitable torch, or the file system refuses.
    """
    torch = import_torch(path)
    state = {}
    for name, array in tensors.items():
        array = np.require(array, requirements=["C", "W"])  # torch warns about read-only memory; this copies it
        bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
        tensor = torch.from_numpy(bits)
        state[name] = tensor.view(torch.bfloat16) if bits is not array else tensor
    with replacing(path) as f:
        try:
            torch.save({"model": state} if wrap else state, cast(Any, f))
        except RuntimeError as e:  # torch wraps the file system's error
            raise OSError(reason(e)) from None
