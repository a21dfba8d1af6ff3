"""The references of a `Segmenter`, class by class: editing it, and its way to a memory file and back. Host only.

Classes are a dict from name to `ClassReferences`; its order is the order of class indices. Nothing here changes one in
place, so that a failed edit leaves what was there.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

import ntt_jax
from ntt_jax.compiled.devices import published_numbers
from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.memory.aggregate import Memory, memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.models.encoder import Encoder
from weight_port.identity import fingerprint

_BUCKET = 8  # the compiled pass takes this many classes, or twice as many, and so on; the same of negatives


@dataclass(frozen=True)
class ClassReferences:
    """One class: COCO category id; per reference its mean feature `[C]` and, as JSON data, where it came from; the same
    of its negative references."""

    category_id: int
    means: tuple[np.ndarray, ...]
    origins: tuple[Any, ...]
    negatives: tuple[np.ndarray, ...] = ()
    negative_origins: tuple[Any, ...] = ()

    def with_references(self, means: tuple[np.ndarray, ...], origins: tuple[Any, ...]) -> "ClassReferences":
        """With more references at the end."""
        return dataclasses.replace(self, means=self.means + means, origins=self.origins + origins)

    def with_negatives(self, means: tuple[np.ndarray, ...], origins: tuple[Any, ...]) -> "ClassReferences":
        """With more negative references at the end."""
        return dataclasses.replace(
            self, negatives=self.negatives + means, negative_origins=self.negative_origins + origins
        )


Classes = Mapping[str, ClassReferences]


def place_for(classes: Classes, name: Any, category_id: int | None) -> ClassReferences:
    """The class `name` to add references to: as it is, or new and empty. `category_id` None: one above the highest.

    Raises `InputError` for a bad name or id, or an id that is another's or not this class's.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"expected a class name, found {describe(name)}")
    shown, old = describe(name), classes.get(name)
    if category_id is None:
        return old or ClassReferences(max((one.category_id for one in classes.values()), default=0) + 1, (), ())
    if type(category_id) is not int or not 0 <= category_id < 2**63:
        raise InputError(f"class {shown}: category_id: expected an integer from 0, found {describe(category_id)}")
    if old and old.category_id != category_id:
        raise InputError(f"class {shown} has category id {old.category_id}, not {category_id}")
    for other, one in classes.items():
        if other != name and one.category_id == category_id:
            raise InputError(f"class {shown}: category id {category_id} is that of class {describe(other)}")
    return old or ClassReferences(category_id, (), ())


def known(classes: Classes, name: Any, what: str) -> ClassReferences:
    """The class `name`. Raises `InputError`, starting with `what`, if there is none."""
    if not isinstance(name, str) or name not in classes:
        raise InputError(f"{what}: no class {describe(name)}; the classes are: {_listed(classes)}")
    return classes[name]


def indices_of(classes: Classes, names: Iterable[str]) -> list[int]:
    """Class indices of names (or of one). Raises `InputError` for one that is not there."""
    places, given = list(classes), [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in classes:
            raise InputError(f"no class {describe(name)}; the classes are: {_listed(classes)}")
    return [places.index(name) for name in given]


def _listed(classes: Classes) -> str:
    return ", ".join(map(describe, list(classes)[:10])) + (", ..." if len(classes) > 10 else "") or "none"


def without(classes: Classes, name: str, index: int | None) -> dict[str, ClassReferences]:
    """The classes without one, or without one reference of it. Raises `InputError` as `Segmenter.remove`."""
    one = known(classes, name, "remove")
    if index is None:
        return {other: one for other, one in classes.items() if other != name}
    means, origins = _without(one.means, one.origins, index, f"remove: class {describe(name)}")
    if not means:
        raise InputError(f"remove: class {describe(name)} has no other reference; remove the class instead")
    return {**classes, name: dataclasses.replace(one, means=means, origins=origins)}


def without_negative(classes: Classes, name: str, index: int | None) -> dict[str, ClassReferences]:
    """The classes, one of them without its negative references, or without one of these. Raises `InputError`."""
    one = known(classes, name, "remove_negative")
    means, origins = (), ()
    if index is not None:
        where = f"remove_negative: class {describe(name)}"
        means, origins = _without(one.negatives, one.negative_origins, index, where)
    return {**classes, name: dataclasses.replace(one, negatives=means, negative_origins=origins)}


def _without(
    means: tuple[np.ndarray, ...], origins: tuple[Any, ...], index: int, where: str
) -> tuple[tuple[np.ndarray, ...], tuple[Any, ...]]:
    if not isinstance(index, (int, np.integer)) or isinstance(index, bool) or not 0 <= index < len(means):
        there = f"references 0 to {len(means) - 1}" if means else "none"
        raise InputError(f"{where} has {there}, found {describe(index)}")
    return means[:index] + means[index + 1 :], origins[:index] + origins[index + 1 :]


def from_bank(bank: MemoryBank) -> dict[str, ClassReferences]:
    """The classes of a memory file; origins are None where it does not tell them."""
    means, valid = np.asarray(bank.memory.instance_means), np.asarray(bank.memory.valid)
    negatives = np.zeros((len(means), 0)) if bank.memory.negatives is None else np.asarray(bank.memory.negatives)
    negative_shots = bank.negative_shots

    def told(key: str, category_id: int, count: int) -> tuple[Any, ...]:
        recorded = bank.provenance.get(key)
        origins = recorded.get(str(category_id)) if isinstance(recorded, dict) else None
        return tuple(origins) if isinstance(origins, list) and len(origins) == count else (None,) * count

    classes = {}
    for k, (name, category_id) in enumerate(zip(bank.class_names, bank.category_ids, strict=True)):
        kept, kept_negatives = tuple(means[k][valid[k]]), tuple(negatives[k][: negative_shots[k]])
        classes[name] = ClassReferences(
            category_id,
            kept,
            told("references", category_id, len(kept)),
            kept_negatives,
            told("negatives", category_id, len(kept_negatives)),
        )
    return classes


def memory_of(classes: Classes) -> Memory:
    """The memory of at least one class. Raises `InputError` for references that cancel each other out."""
    with published_numbers("highest"):
        means, negatives = zip(*((one.means, one.negatives) for one in classes.values()), strict=True)
        return memory_from_instance_means(means, list(classes), negatives)


def to_bank(classes: Classes, memory: Memory, dinov2: Encoder, provenance: Mapping[str, Any]) -> MemoryBank:
    """What a memory file holds of these classes and their memory. provenance: what there is to say beside them."""
    negatives = {str(one.category_id): list(one.negative_origins) for one in classes.values()}
    every = {
        **provenance,
        "references": {str(one.category_id): list(one.origins) for one in classes.values()},
        **({"negatives": negatives} if any(negatives.values()) else {}),
        "encoder_weights": fingerprint(dinov2),
        "tool": f"ntt-jax {ntt_jax.__version__}",
    }
    ids = tuple(one.category_id for one in classes.values())
    return MemoryBank(memory, tuple(classes), ids, dinov2.config, every)


def padded_classes(memory: Memory, classes_per_mask: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Prototypes and negatives filled up with zeros to a bucket, so that a new one need not compile the pass anew.

    A zero prototype has similarity 0 to everything, and real classes come before it at ties: it is the best of no
    candidate. Rows of rank n exist only up to n real classes, else its rows would compete in NMS: not padded then. A
    negative of zeros lowers no similarity.
    """
    prototypes = np.asarray(memory.prototypes)
    count = len(prototypes)
    if 1 <= classes_per_mask <= count:
        prototypes = np.pad(prototypes, ((0, _bucket(count) - count), (0, 0)))
    if memory.negatives is None:
        return prototypes, None
    more = _bucket(memory.negatives.shape[1]) - memory.negatives.shape[1]
    return prototypes, np.pad(np.asarray(memory.negatives), ((0, len(prototypes) - count), (0, more), (0, 0)))


def _bucket(count: int) -> int:
    bucket = _BUCKET
    while bucket < count:
        bucket *= 2
    return bucket


def require_weights(bank: MemoryBank, model: nnx.Module) -> None:
    """Refuse a bank that was made with other weights of the same types, whatever files they came from.

    Weights of other types (bfloat16 for float32) may be the same model: they are let through.
    """
    made = bank.provenance.get("encoder_weights")
    if isinstance(made, dict):
        found = fingerprint(model)
        if made.get("types") == found["types"] and made.get("sha256") != found["sha256"]:
            raise InputError(
                f"the memory was made with other weights of {bank.encoder.name}; load those, or make the memory again"
            )
