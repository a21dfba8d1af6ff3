"""What a `Segmenter` has learned, reference by reference: editing it, and its way to a memory file and back. Host only.

Classes are a dict from name to `LearnedClass`; its order is the order of class indices. Nothing here changes one in
place, so that a failed edit leaves what was there.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.memory_file import MemoryBank


@dataclass(frozen=True)
class LearnedClass:
    """One class: COCO category id; per reference its mean feature `[C]` and, as JSON data, where it came from."""

    category_id: int
    means: tuple[np.ndarray, ...]
    origins: tuple[Any, ...]

    def grown(self, means: tuple[np.ndarray, ...], origins: tuple[Any, ...]) -> "LearnedClass":
        """With more references at the end."""
        return LearnedClass(self.category_id, self.means + means, self.origins + origins)


Classes = Mapping[str, LearnedClass]


def place_for(classes: Classes, name: Any, category_id: int | None) -> LearnedClass:
    """The class `name` to add references to: as it is, or new and empty. `category_id` None: one above the highest.

    Raises `InputError` for a bad name or id, or an id that is another's or not this class's.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"expected a class name, found {describe(name)}")
    shown, old = describe(name), classes.get(name)
    if category_id is None:
        return old or LearnedClass(max((one.category_id for one in classes.values()), default=0) + 1, (), ())
    if type(category_id) is not int or not 0 <= category_id < 2**63:
        raise InputError(f"class {shown}: category_id: expected an integer from 0, found {describe(category_id)}")
    if old and old.category_id != category_id:
        raise InputError(f"class {shown} has category id {old.category_id}, not {category_id}")
    for other, one in classes.items():
        if other != name and one.category_id == category_id:
            raise InputError(f"class {shown}: category id {category_id} is that of class {describe(other)}")
    return old or LearnedClass(category_id, (), ())


def indices_of(classes: Classes, names: Iterable[str]) -> list[int]:
    """Class indices of names (or of one). Raises `InputError` for one that is not there."""
    places, given = list(classes), [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in classes:
            raise InputError(f"no class {describe(name)}; the classes are: {_listed(classes)}")
    return [places.index(name) for name in given]


def _listed(classes: Classes) -> str:
    return ", ".join(map(describe, list(classes)[:10])) + (", ..." if len(classes) > 10 else "") or "none"


def without(classes: Classes, name: str, index: int | None) -> dict[str, LearnedClass]:
    """The classes without one, or without one reference of it. Raises `InputError` as `Segmenter.remove`."""
    if name not in classes:
        raise InputError(f"remove: no class {describe(name)}; the classes are: {_listed(classes)}")
    if index is None:
        return {other: one for other, one in classes.items() if other != name}
    one, count = classes[name], len(classes[name].means)
    if not isinstance(index, (int, np.integer)) or isinstance(index, bool) or not 0 <= index < count:
        raise InputError(f"remove: class {describe(name)} has references 0 to {count - 1}, found {describe(index)}")
    if count == 1:
        raise InputError(f"remove: class {describe(name)} has no other reference; remove the class instead")
    keep = [i for i in range(count) if i != index]
    less = LearnedClass(one.category_id, tuple(one.means[i] for i in keep), tuple(one.origins[i] for i in keep))
    return {**classes, name: less}


def from_bank(bank: MemoryBank) -> dict[str, LearnedClass]:
    """The classes of a memory file; origins are None where it does not tell them."""
    means, valid = np.asarray(bank.memory.instance_means), np.asarray(bank.memory.valid)
    recorded = bank.provenance.get("references")
    classes = {}
    for k, (name, category_id) in enumerate(zip(bank.class_names, bank.category_ids, strict=True)):
        kept = tuple(means[k][valid[k]])
        told = recorded.get(str(category_id)) if isinstance(recorded, dict) else None
        origins = tuple(told) if isinstance(told, list) and len(told) == len(kept) else (None,) * len(kept)
        classes[name] = LearnedClass(category_id, kept, origins)
    return classes


def fingerprint(model: nnx.Module) -> dict[str, Any]:
    """The types of a model's tensors, and a sha256 over all of them: files of one model may differ, this does not."""
    digest, types = hashlib.sha256(), set()
    tensors = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}
    for name in sorted(tensors):
        tensor = np.asarray(tensors[name])
        types.add(str(tensor.dtype))
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(tensor.tobytes())
    return {"types": sorted(types), "sha256": digest.hexdigest()}


def require_weights(bank: MemoryBank, model: nnx.Module) -> None:
    """Refuse a bank that `Segmenter.save` made with other weights of the same types.

    Weights of other types (bfloat16 for float32) may be the same model: they are let through.
    """
    made = bank.provenance.get("encoder_weights")
    if isinstance(made, dict):
        found = fingerprint(model)
        if made.get("types") == found["types"] and made.get("sha256") != found["sha256"]:
            raise InputError(
                f"the memory was made with other weights of {bank.encoder.name}; load those, or make the memory again"
            )
