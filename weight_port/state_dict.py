"""Which of the tensors in a checkpoint are the model's, where a trainer has saved more than the model.

Trainers put the model under a key ("model", "state_dict"), a prefix before its names ("module.", "backbone."),
and optimisers, heads and options beside it. A model shows itself by tensors that only it has; what shares their key and
prefix is the model, the rest is left out and named. Nothing is filled in, and where two readings fit, a person chooses.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from weight_port.pickle_scan import Opaque

# Tensors by which a model is known, by the end of their names: one that is looked for, and one that goes with it.
_ANCHORS = (
    ("image_encoder.trunk.patch_embed.proj.weight", "image_encoder.trunk.pos_embed"),  # SAM 2
    ("cls_token", "patch_embed.proj.weight"),  # DINOv2
    ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"),  # DINOv2 of Hugging Face
    ("vision_encoder.backbone.pos_embed", "vision_encoder.backbone.patch_embed.projection.weight"),  # SAM 2 of theirs
)
# Heads that classify, beside DINOv2 without a prefix of their own.
_HEADS = ("head", "heads", "head_dist", "classifier", "fc", "linear_head", "decode_head", "dino_head", "ibot_head")
_MAX_DEPTH = 3


@dataclass(frozen=True)
class Reading:
    """A place where a model lies: the keys of the dictionaries down to it, and the prefix of its tensors' names."""

    keys: tuple[str, ...]
    prefix: str

    @property
    def options(self) -> str:
        """As options of the command line."""
        key = f"--key {'.'.join(self.keys)}" if self.keys else "--key ''"
        return f"{key} --prefix {self.prefix!r}" if self.prefix else f"{key} --prefix ''"


@dataclass(frozen=True)
class Choice:
    """What was chosen. names: the model's name of each tensor -> its name in the file. left_out: what was not."""

    reading: Reading
    names: dict[str, str]
    left_out: list[str]
    remarks: list[str] = field(default_factory=list)


def choose(
    root: Mapping[Any, Any],
    is_tensor: Callable[[Any], bool],
    where: str,
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> Choice:
    """Find the model among the tensors of a checkpoint.

    Args:
      root: what the file holds: tensors, and dictionaries of them. Not changed.
      is_tensor: whether a value is a tensor.
      where: for messages: the file.
      key: the dictionary that holds the model, "" for the outermost, inner ones joined by dots. None: found.
      prefix: of its tensors' names. None: found.

    Raises:
      InputError: several readings fit, or none does what `key` and `prefix` say.
    """
    holders = dict(_dictionaries(root, is_tensor))
    wanted = None if key is None else tuple(part for part in key.split(".") if part)
    if wanted is not None and wanted not in holders:
        known = ", ".join(sorted({".".join(keys) for keys in holders if keys})) or "none"
        raise InputError(f"{where}: --key {describe(key)}: no dictionary of tensors there; those that are: {known}")
    readings = [
        Reading(keys, found)
        for keys, holder in holders.items()
        if wanted in (None, keys)
        for found in _prefixes(holder, is_tensor)
        if prefix in (None, found)
    ]
    readings = _without_students(readings)
    if len(readings) > 1 and not _all_the_same(readings, holders, is_tensor):
        listed = "; or ".join(reading.options for reading in readings[:4])
        raise InputError(f"{where}: {len(readings)} models lie in this checkpoint; say which: {listed}")
    if readings:
        reading = readings[0]
    elif prefix is not None or wanted is not None:
        reading = Reading(wanted or (), prefix or "")
    else:  # of neither model: what is wrong with it is said by whoever looks at the names
        keys = next(((name,) for name in ("model", "state_dict") if isinstance(root.get(name), dict)), ())
        holder = root[keys[0]] if keys else root
        beside = [name for name in root if keys and name != keys[0]]
        return Choice(Reading(keys, ""), {name: name for name in holder}, _groups([(n, root[n]) for n in beside]))
    return _taken(root, holders.get(reading.keys, {}), reading, is_tensor, where)


def _taken(
    root: Mapping[Any, Any], holder: Mapping[Any, Any], reading: Reading, is_tensor: Callable[[Any], bool], where: str
) -> Choice:
    names: dict[str, str] = {}
    left_out: list[tuple[Any, Any]] = []
    remarks: list[str] = []
    for name, value in holder.items():
        # A tensor of a kind that is not read may belong to the model: it is not left out but refused by name.
        tensor = is_tensor(value) or (isinstance(value, Opaque) and value.asks_for.startswith("torch."))
        if isinstance(name, str) and name.startswith(reading.prefix) and tensor:
            names[name[len(reading.prefix) :]] = name
        else:
            left_out.append((name, value))
    if not names:
        raise InputError(f"{where}: no tensor's name begins with {describe(reading.prefix)} there")
    if "cls_token" in names:
        heads = [name for name in names if name.split(".", 1)[0] in _HEADS]
        left_out += [(name, None) for name in heads]
        for name in heads:
            del names[name]
    place = root
    for part in reading.keys:
        left_out += [(key, value) for key, value in place.items() if key != part]
        place = place[part]
    if reading.keys not in ((), ("model",)):
        remarks.append(f"the model is the dictionary {'.'.join(reading.keys)!a}")
    if reading.prefix:
        remarks.append(f"the prefix {reading.prefix!a} of its {len(names)} names was taken off")
    names, chunks = _without_chunks(names, where)
    if chunks:
        remarks.append(f"block chunks were undone in {chunks} names: blocks.0.1.norm1.weight is blocks.1.norm1.weight")
    return Choice(reading, names, _groups(left_out), remarks)


def _dictionaries(
    root: Mapping[Any, Any], is_tensor: Callable[[Any], bool], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """All dictionaries with a tensor in them, from the outermost inwards."""
    if any(is_tensor(value) for value in root.values()):
        yield keys, root
    if len(keys) < _MAX_DEPTH:
        for key, value in root.items():
            if isinstance(key, str) and isinstance(value, dict) and value is not root:
                yield from _dictionaries(value, is_tensor, (*keys, key))


def _prefixes(holder: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> list[str]:
    names = {name for name, value in holder.items() if isinstance(name, str) and is_tensor(value)}
    found = {}
    for name in names:
        for anchor, other in _ANCHORS:
            before = name[: len(name) - len(anchor)]
            whole = name.endswith(anchor) and (not before or before.endswith("."))
            # The class token of theirs ends like Meta's.
            if whole and before + other in names and not before.endswith("embeddings."):
                found[before] = None
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _without_students(readings: list[Reading]) -> list[Reading]:
    """Where a teacher lies beside its student, the teacher counts, as DINO means it."""

    def parts(reading: Reading) -> tuple[str, ...]:
        return (*reading.keys, *reading.prefix.split("."))

    teachers = {parts(reading) for reading in readings if "teacher" in parts(reading)}
    return [
        reading
        for reading in readings
        if tuple("teacher" if part == "student" else part for part in parts(reading)) not in teachers
        or "teacher" in parts(reading)
    ]


def _all_the_same(
    readings: list[Reading], holders: Mapping[tuple[str, ...], Mapping[Any, Any]], is_tensor: Callable[[Any], bool]
) -> bool:
    """Whether all readings are one model under several names (one dictionary or the same tensors twice)."""

    def tensors(reading: Reading) -> dict[str, int]:
        return {
            name[len(reading.prefix) :]: id(value)
            for name, value in holders[reading.keys].items()
            if isinstance(name, str) and name.startswith(reading.prefix) and is_tensor(value)
        }

    first = tensors(readings[0])
    return all(tensors(reading) == first for reading in readings[1:])


def _without_chunks(names: dict[str, str], where: str) -> tuple[dict[str, str], int]:
    """DINOv2 trained in chunks numbers its blocks twice: the chunk, then the block among all."""
    pattern = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")
    chunked = {name: found for name in names if (found := pattern.fullmatch(name))}
    if not chunked or any(name.startswith("blocks.") and name not in chunked for name in names):
        return names, 0
    blocks: dict[str, str] = {}
    for found in chunked.values():
        if blocks.setdefault(found[2], found[1]) != found[1]:
            raise InputError(f"{where}: block {found[2]} is in chunks {blocks[found[2]]} and {found[1]}")
    renamed = {f"blocks.{chunked[n][2]}.{chunked[n][3]}" if n in chunked else n: own for n, own in names.items()}
    return renamed, len(chunked)


def _groups(left_out: list[tuple[Any, Any]]) -> list[str]:
    """Names of what is left out: a group of tensors by what its names begin with, an object with what it would be."""
    counts: dict[str, int] = {}
    for name, value in left_out:
        first = name.split(".", 1)[0] if isinstance(name, str) else str(getattr(name, "kind", name))
        first += f": {value.asks_for}" if isinstance(value, Opaque) else ""
        counts[first] = counts.get(first, 0) + 1
    return [f"{name} ({count})" if count > 1 else name for name, count in counts.items()]
