"""The memory bank as a file: one safetensors with what the target pass needs and where it came from.

Three tensors, `prototypes` [K, C] F32, `instance_means` [K, S, C] F32, `valid` [K, S] BOOL, a fourth where there are
negative references, `negatives` [K, N, C] F32, and one metadata entry `bank` of JSON: class names and ids, the
encoder's configuration, provenance. A file from elsewhere is checked in full before it is used; nothing in it is
executed, and nothing is allocated by what its header claims.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ntt_jax.config import EncoderConfig, from_dict, to_dict
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path, write_bytes
from ntt_jax.memory.aggregate import Memory
from ntt_jax.safetensors_file import read_header

FORMAT = "ntt-jax memory"
VERSION = 1
MAX_MEMORY_BYTES = 1024**3
MAX_HEADER_BYTES = 64 * 1024**2
_TENSORS = {"prototypes": ("F32", 2), "instance_means": ("F32", 3), "valid": ("BOOL", 2)}
_OPTIONAL = {"negatives": ("F32", 3)}
_WHAT = "memory file"


@dataclass(frozen=True)
class MemoryBank:
    """A memory with the names of its classes and its origin.

    memory: K classes, arrays. class_names, category_ids: K each, in class index order. encoder: the
    configuration of the DINOv2 it was made with, whose `input_size` is the side of the crops. provenance: JSON data for
    people: checkpoint sha256 under "encoder_sha256", the fingerprint of its tensors under "encoder_weights", the
    references of every class under "references", the version of this package under "tool", and whatever else the maker
    adds.
    """

    memory: Memory
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    encoder: EncoderConfig
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def shots(self) -> tuple[int, ...]:
        """References of every class."""
        return tuple(int(n) for n in np.sum(np.asarray(self.memory.valid), axis=1))

    @property
    def negative_shots(self) -> tuple[int, ...]:
        """Negative references of every class."""
        return tuple(int(n) for n in np.asarray(self.memory.negative_shots))


def save_memory(path: PathLike, bank: MemoryBank) -> None:
    """Write the bank, whole or not at all. Raises `InputError` if it is inconsistent or cannot be written."""
    shown = show_path(path)
    _check_bank(bank, f"{shown}: memory to be written")
    info = {
        "format": FORMAT,
        "version": VERSION,
        "class_names": list(bank.class_names),
        "category_ids": list(bank.category_ids),
        "encoder": to_dict(bank.encoder),
        "provenance": bank.provenance,
    }
    try:
        text = json.dumps(info, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{shown}: the provenance of the memory is not JSON data: {error}") from error
    memory = bank.memory
    tensors = {
        "prototypes": np.ascontiguousarray(memory.prototypes, np.float32),
        "instance_means": np.ascontiguousarray(memory.instance_means, np.float32),
        "valid": np.ascontiguousarray(memory.valid, np.bool_),
    }
    if memory.negatives is not None:
        tensors["negatives"] = np.ascontiguousarray(memory.negatives, np.float32)
    write_bytes(path, safetensors.numpy.save(tensors, {"bank": text}))


def load_memory(path: PathLike) -> MemoryBank:
    """Read a bank.

    Raises:
      InputError: naming the file: missing, too large, not safetensors, other tensors than a bank's, a header that does
        not fit the data, values that are not finite, names or ids that are missing, of the wrong type or repeated.
    """
    data = read_bytes(path, max_bytes=MAX_MEMORY_BYTES, what=_WHAT)
    tensors, text = _parse(data, path)
    shown = show_path(path)
    info = parse_json(text.encode("utf-8", "surrogatepass"), path, what="description in the memory file", strict=True)
    if not isinstance(info, dict) or info.get("format") != FORMAT or info.get("version") != VERSION:
        raise InputError(f'{shown}: expected a "{FORMAT}" file of version {VERSION}; make it with "ntt-jax memory"')
    names, ids = info.get("class_names"), info.get("category_ids")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{shown}: "class_names" must be a list of strings, found {describe(names)}')
    if not isinstance(ids, list) or not all(type(i) is int and abs(i) < 2**63 for i in ids):
        raise InputError(f'{shown}: "category_ids" must be a list of 64-bit integers, found {describe(ids)}')
    provenance = info.get("provenance")
    if not isinstance(provenance, dict):
        raise InputError(f'{shown}: "provenance" must be an object, found {describe(provenance)}')
    try:
        json.dumps(provenance, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{shown}: "provenance" holds a number that is not finite; make the memory again') from error
    try:
        encoder = from_dict(info.get("encoder"))  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{shown}: encoder {error}") from error
    if not isinstance(encoder, EncoderConfig):
        raise InputError(f"{shown}: the encoder must be a DINOv2 or DINOv3, found {encoder.name!a}")
    memory = Memory(**{name: jnp.asarray(tensor) for name, tensor in tensors.items()})
    bank = MemoryBank(memory, tuple(names), tuple(ids), encoder, provenance)
    _check_bank(bank, shown)
    return bank


def require_encoder(
    bank: MemoryBank,
    encoder: EncoderConfig,
    sha256: str | None = None,
    weights: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Refuse a bank made with another encoder: features of two encoders cannot be compared.

    Args:
      encoder: configuration of the loaded one. sha256: of the checkpoint that it came from; the same one is the same
        encoder. weights: returns the fingerprint of its float32 tensors (`weight_port.identity`), asked for where the
        checkpoints differ or the bank does not say its own: Meta's and Hugging Face's files of one model are alike.

    Raises:
      InputError: saying what differs. Older banks say no fingerprint; those of another checkpoint are refused.
    """
    made, found = to_dict(bank.encoder), to_dict(encoder)
    for key in made:
        if key != "name" and made[key] != found.get(key):
            raise InputError(
                f"the memory was made with {bank.encoder.name} ({key} {made[key]}), the encoder given is "
                f"{encoder.name} ({key} {found[key]}); use the same encoder or make the memory again"
            )
    known, tensors = bank.provenance.get("encoder_sha256"), bank.provenance.get("encoder_weights")
    if sha256 is not None and known == sha256:
        return
    if weights is not None and isinstance(tensors, dict) and tensors.get("types") == ["float32"]:
        if tensors.get("sha256") != weights()["sha256"]:
            raise InputError(
                f"the memory was made with other weights of {bank.encoder.name}; use those or make the memory again"
            )
        return
    if sha256 is not None and isinstance(known, str):
        raise InputError(
            f"the memory was made with another checkpoint of {bank.encoder.name} (sha256 {known[:12]!a}, the encoder "
            f"given has {sha256[:12]}); use that one or make the memory again"
        )


def _parse(data: bytes, path: PathLike) -> tuple[dict[str, np.ndarray], str]:
    """The tensors and the metadata text of a safetensors file, every claim of its header checked."""
    shown = show_path(path)
    header = read_header(io.BytesIO(data), path, len(data), max_bytes=MAX_HEADER_BYTES)
    if "bank" not in header.metadata:
        raise InputError(f'{shown}: not a memory file: no "bank" in its metadata; make it with "ntt-jax memory"')
    entries = header.entries
    expected = _TENSORS | {name: kind for name, kind in _OPTIONAL.items() if name in entries}
    if set(entries) != set(expected):
        other = describe(min(set(entries) ^ set(expected)))
        raise InputError(f"{shown}: expected the tensors {', '.join(_TENSORS)}; missing or unknown: {other}")
    tensors = {}
    for name, (code, rank) in expected.items():
        entry = entries[name]
        if entry.code != code:
            raise InputError(f"{shown}: tensor {name} must be {code}, found {entry.code}")
        if len(entry.shape) != rank or 0 in entry.shape:
            raise InputError(f"{shown}: tensor {name} must have {rank} sizes, none 0, found {list(entry.shape)}")
        raw = memoryview(data)[header.start + entry.begin : header.start + entry.end]
        if code == "BOOL" and np.frombuffer(raw, np.uint8).max() > 1:
            raise InputError(f"{shown}: tensor {name} holds bytes that are neither 0 nor 1")
        tensors[name] = np.frombuffer(raw, entry.dtype).reshape(entry.shape)
    return tensors, header.metadata["bank"]


def _check_bank(bank: MemoryBank, where: str) -> None:
    prototypes, means = np.asarray(bank.memory.prototypes), np.asarray(bank.memory.instance_means)
    valid = np.asarray(bank.memory.valid)
    shapes = f"prototypes {prototypes.shape}, instance_means {means.shape}, valid {valid.shape}"
    if means.ndim != 3 or prototypes.shape != (means.shape[0], means.shape[2]) or valid.shape != means.shape[:2]:
        raise InputError(f"{where}: expected prototypes [K, C], instance_means [K, S, C], valid [K, S], found {shapes}")
    if prototypes.shape[1] != bank.encoder.embed_dim:
        raise InputError(
            f"{where}: features of {prototypes.shape[1]} numbers, but its encoder {bank.encoder.name!a} has "
            f"{bank.encoder.embed_dim}"
        )
    if not (len(bank.class_names) == len(bank.category_ids) == len(prototypes)):
        raise InputError(
            f"{where}: {len(prototypes)} classes, but {len(bank.class_names)} names and {len(bank.category_ids)} ids"
        )
    if len(set(bank.category_ids)) != len(bank.category_ids) or len(set(bank.class_names)) != len(bank.class_names):
        raise InputError(f"{where}: class names and category ids must not repeat")
    if not (np.all(np.isfinite(prototypes)) and np.all(np.isfinite(means))):
        raise InputError(f"{where}: holds values that are not finite")
    if np.any(np.abs(np.linalg.norm(prototypes.astype(np.float64), axis=1) - 1.0) > 1e-3):
        raise InputError(f"{where}: prototypes must have length 1")
    if not np.all(np.any(valid, axis=1)):
        raise InputError(f"{where}: every class needs at least one valid reference")
    if bank.memory.negatives is not None:
        _check_negatives(np.asarray(bank.memory.negatives), prototypes, where)


def _check_negatives(negatives: np.ndarray, prototypes: np.ndarray, where: str) -> None:
    classes, size = prototypes.shape
    if negatives.ndim != 3 or negatives.shape[::2] != prototypes.shape or not negatives.size:
        raise InputError(f"{where}: expected negatives [{classes}, N, {size}], found {list(negatives.shape)}")
    if not np.all(np.isfinite(negatives)):
        raise InputError(f"{where}: holds values that are not finite")
    there = np.any(negatives != 0, axis=2)
    if not there.any() or np.any(there[:, 1:] & ~there[:, :-1]):
        raise InputError(f"{where}: negatives of a class must come first, zeros after the last of them")
