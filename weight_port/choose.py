"""Where in a checkpoint the model is: trainers wrap it, prefix it, and save heads, students and optimisers beside it.

A reading is a dictionary inside the file (`--key`) and the prefix (`--prefix`) that all tensors of the model have in
it. Readings are found by the names that only SAM 2, DINOv2 or DINOv3 have. One is taken, with a line that says which;
of several the choice is the user's. Renaming is all that happens to a tensor.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from weight_port.pickle_scan import Opaque, TensorClaim, describe_value

_MAX_DEPTH = 3
_MAX_DICTIONARIES = 2000
_MAX_NAME = 500
_SHOWN = 6

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
"""Parts of names that torch.compile, FSDP, activation checkpointing and DataParallel put in, and no tensor here has."""

_SAM2 = re.compile(
    r"(?:^|(.*?)\.)(?:image_encoder\.(?:trunk|neck)|sam_mask_decoder|sam_prompt_encoder|vision_encoder\.backbone)\."
)
_DINOV2 = re.compile(r"(?:^|(.*?)\.)(?:blocks\.(?:\d+\.)?\d+\.(?:attn|mlp|norm1|ls1)|encoder\.layer\.\d+\.attention)\.")
_DINOV3 = re.compile(r"(?:^|(.*?)\.)(?:model\.)?layer\.\d+\.attention\.")
_NEEDED = (  # of an encoder behind a prefix: other transformers have blocks too
    ("cls_token", "patch_embed.proj.weight"),
    ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"),
    ("embeddings.cls_token", "embeddings.patch_embeddings.weight"),
)
_TRUNKS = ("image_encoder.trunk", "vision_encoder.backbone")  # Hiera's blocks are no DINOv2's
_HEADS = ("head.", "dino_head.", "ibot_head.", "classifier.", "linear_head.")


@dataclass(frozen=True)
class Chosen:
    """The model of a checkpoint. tensors: values as they were, by the names that are left without the prefix.

    beside: what is left out, for people. notes: what was done, one line each.
    """

    tensors: dict[str, Any]
    beside: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reading:
    path: tuple[str, ...]
    prefix: str  # with its dot
    kind: str

    @property
    def key(self) -> str:
        return "/".join(self.path)

    def options(self, others: list["_Reading"]) -> str:
        """What to type to have this one of several."""
        words = [f"--key {_word(self.key)}"] if any(other.path != self.path for other in others) else []
        same = [other for other in others if other.path == self.path]
        words += [f"--prefix {_word(self.prefix)}"] if len(same) > 1 or not words else []
        return " ".join(words)


def choose(root: Mapping[Any, Any], where: str, *, key: str | None = None, prefix: str | None = None) -> Chosen:
    """The tensors of the one model in a checkpoint.

    Args:
        root: the outermost dictionary: tensors (`TensorClaim`, or anything with a shape) by name, and other values.
        where: for messages: the file.
        key: the dictionary to read, "model" or "state/model"; None: look for it.
        prefix: what all names of the model start with, "" for nothing; None: look for it.

    Raises:
        InputError: several readings fit, or what was asked for is not there.
    """
    found = _dictionaries(root)
    paths = [path for path in found if key is None or "/".join(path) == key.strip("/")]
    if key is not None and not paths:
        raise InputError(f"{where}: --key {_word(key)}: no dictionary of tensors there; there are {_listed(found)}")
    readings = [reading for path in paths for reading in _readings(path, found[path])]
    if prefix is not None:
        readings = _asked(prefix, readings, {path: found[path] for path in paths}, where)
    readings = _distinct(_without_students(readings), found)
    if len(readings) > 1:
        listed = ", or ".join(r.options(readings) for r in readings[:_SHOWN])
        more = f" and {len(readings) - _SHOWN} more" if len(readings) > _SHOWN else ""
        raise InputError(
            f"{where}: {len(readings)} models are in this checkpoint; choose one with an option of `python -m "
            f"weight_port convert`: {listed}{more}"
        )
    if readings:
        return _take(readings[0], root, found, where)
    # Nothing known: as Meta saves it, and whoever looks at the names says what is wrong with them.
    inner = root.get("model")
    if key is not None:
        return _take(_Reading(paths[0], "", ""), root, found, where)
    if isinstance(inner, dict):
        return _take(_Reading(("model",), "", ""), root, {("model",): inner}, where)
    return _take(_Reading((), "", ""), root, {(): root}, where)


def _asked(
    prefix: str, readings: list[_Reading], places: Mapping[tuple[str, ...], Mapping[Any, Any]], where: str
) -> list[_Reading]:
    """The readings with this prefix, which may lack its last dot, or else whatever starts with it."""
    spellings = (prefix, f"{prefix}.") if prefix and not prefix.endswith(".") else (prefix,)
    for spelling in spellings[::-1]:
        if fitting := [reading for reading in readings if reading.prefix == spelling]:
            return fitting
    for spelling in spellings[::-1]:
        fitting = [
            _Reading(path, spelling, "") for path, place in places.items() if any(_starts(n, spelling) for n in place)
        ]
        if fitting:
            return fitting
    raise InputError(f"{where}: --prefix {_word(prefix)}: no tensor's name starts with it")


def _dictionaries(root: Mapping[Any, Any]) -> dict[tuple[str, ...], Mapping[Any, Any]]:
    """The dictionaries in the file that hold tensors, by the keys that lead to them."""
    out: dict[tuple[str, ...], Mapping[Any, Any]] = {}
    queue: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), root)]
    seen = {id(root)}
    for path, place in queue:  # grows on the way
        if any(_is_tensor(value) for value in place.values()):
            out[path] = place
        for name, value in place.items():
            deeper = isinstance(value, dict) and type(name) is str and id(value) not in seen
            if deeper and len(path) < _MAX_DEPTH and len(queue) < _MAX_DICTIONARIES:
                seen.add(id(value))
                queue.append(((*path, name), value))
    return out


def _readings(path: tuple[str, ...], place: Mapping[Any, Any]) -> list[_Reading]:
    """The models in one dictionary, by their prefixes in order of appearance."""
    names = {_unwrapped(name)[0] for name, value in place.items() if _is_name(name) and _is_tensor(value)}
    prefixes: dict[tuple[str, str], None] = {}
    for name, value in place.items():
        if not _is_name(name) or not _is_tensor(value):
            continue
        plain, raw = _unwrapped(name)
        for kind, pattern in (("sam2", _SAM2), ("dinov2", _DINOV2), ("dinov3", _DINOV3)):
            if (m := pattern.match(plain)) is None:
                continue
            stem = m[1] or ""
            if kind != "sam2" and (stem.endswith(_TRUNKS) or (stem and not _is_encoder(stem, names))):
                continue
            prefixes[(raw(stem), kind)] = None
    return [_Reading(path, prefix, kind) for prefix, kind in prefixes]


def _is_encoder(stem: str, names: set[str]) -> bool:
    return any(all(f"{stem}.{name}" in names for name in needed) for needed in _NEEDED)


def _unwrapped(name: str) -> tuple[str, Callable[[str], str]]:
    """A name without wrappers' parts, and a function from a start of that to the start of the name as it is."""
    parts = name.split(".")
    kept = [i for i, part in enumerate(parts) if part not in _WRAPPERS]

    def raw(stem: str) -> str:
        count = len(stem.split(".")) if stem else 0
        # Wrappers right after the stem belong to the prefix as well: "module." of "module.cls_token".
        end = kept[count] if count < len(kept) else len(parts)
        return "".join(f"{part}." for part in parts[:end])

    return ".".join(parts[i] for i in kept), raw


def _without_students(readings: list[_Reading]) -> list[_Reading]:
    """A student beside its teacher is left out, as DINOv2's own evaluation does: the teacher is what is published."""

    def teacher(reading: _Reading) -> tuple[Any, ...]:
        path = tuple("teacher" if part == "student" else part for part in reading.path)
        return path, re.sub(r"\bstudent\b", "teacher", reading.prefix)

    there = {(r.path, r.prefix) for r in readings}
    return [r for r in readings if teacher(r) == (r.path, r.prefix) or teacher(r) not in there]


def _distinct(readings: list[_Reading], found: Mapping[Any, Mapping[Any, Any]]) -> list[_Reading]:
    """Without readings that would give the very same bytes as an earlier one, and one reading for each place."""
    out: list[_Reading] = []
    seen: list[Any] = []
    for reading in readings:
        if any((r.path, r.prefix) == (reading.path, reading.prefix) for r in out):
            continue
        place = found[reading.path]
        start = reading.prefix
        members = {n[len(start) :]: v for n, v in place.items() if _is_tensor(v) and _is_name(n) and _starts(n, start)}
        if any(_same(members, other) for other in seen):
            continue
        seen.append(members)
        out.append(reading)
    # Wrappers come off by tensor, so that one model may show up with and without them: the shorter prefix holds both.
    return [r for r in out if not any(_covers(other, r) for other in out)]


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two readings are the same tensors: one object, or equal claims on the same bytes."""
    claims = (TensorClaim, TensorClaim)
    return a.keys() == b.keys() and all(
        value is b[name] or ((type(value), type(b[name])) == claims and value == b[name]) for name, value in a.items()
    )


def _covers(other: _Reading, reading: _Reading) -> bool:
    rest = reading.prefix.removeprefix(other.prefix).strip(".").split(".")
    longer = len(reading.prefix) > len(other.prefix) and reading.prefix.startswith(other.prefix)
    return other.path == reading.path and longer and all(part in _WRAPPERS for part in rest)


def _take(reading: _Reading, root: Mapping[Any, Any], found: Mapping[Any, Mapping[Any, Any]], where: str) -> Chosen:
    place, dinov2 = found[reading.path], reading.kind == "dinov2"
    tensors: dict[str, Any] = {}
    groups: dict[str, int] = {}  # of tensors left out, by the start of their names
    beside: list[str] = []
    unwrapped = 0
    for name, value in place.items():
        inside = _starts(name, reading.prefix)
        rest = name[len(reading.prefix) :] if inside and type(name) is str else name
        if inside and not reading.kind:  # nothing known: all of it, to be refused by name
            tensors[rest] = value
        elif inside and (_is_tensor(value) or _refused(value)) and not (dinov2 and str(rest).startswith(_HEADS)):
            plain = _unwrapped(rest)[0] if _is_name(rest) else rest
            if plain in tensors:
                raise InputError(f"{where}: two tensors would both be called {plain!r:.120}")
            unwrapped += plain != rest
            tensors[plain] = value
        elif _is_tensor(value) and type(name) is str:
            group = _group(name, reading.prefix)
            groups[group] = groups.get(group, 0) + 1
        else:
            beside.append(_named(name, value))
    outer: Mapping[Any, Any] = root
    for part in reading.path:
        beside = [*(_named(name, value) for name, value in outer.items() if name != part), *beside]
        outer = outer[part]
    beside += [f"{group}.* ({count} tensors)" if count > 1 else group for group, count in groups.items()]
    notes = [f"read under the key {_word(reading.key)}"] if reading.path not in ((), ("model",)) else []
    if reading.prefix:
        notes.append(f"{_word(reading.prefix)} taken off the names of {len(tensors)} tensors")
    if unwrapped:
        notes.append(f"what wraps modules (_orig_mod and the like) taken out of {unwrapped} names")
    if dinov2:
        tensors, renumbered = _without_chunks(tensors)
        notes += [f"blocks in chunks (blocks.0.0.*) renumbered: {renumbered} names"] if renumbered else []
    return Chosen(tensors, beside, notes)


def _group(name: str, prefix: str) -> str:
    """The start of a name that is left out, as long as it takes to tell it from the prefix of what is read."""
    parts, common = name.split("."), prefix.split(".")
    count = next((i for i, (a, b) in enumerate(zip(parts, common, strict=False)) if a != b), len(common) - 1)
    return ".".join(parts[: count + 1])[:80]


def _without_chunks(tensors: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """DINOv2 trained with `block_chunks` has `blocks.CHUNK.BLOCK.*`, where BLOCK counts through all chunks."""
    pattern = re.compile(r"blocks\.\d+\.(\d+)\.")
    blocks = [name for name in tensors if name.startswith("blocks.")]
    if not blocks or not all(pattern.match(name) for name in blocks):
        return tensors, 0
    renamed = {name: pattern.sub(r"blocks.\1.", name, count=1) for name in blocks}
    if len(set(renamed.values())) != len(blocks):
        return tensors, 0  # counted anew in every chunk: not as Meta does, and left to be refused
    return {renamed.get(name, name): value for name, value in tensors.items()}, len(blocks)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorClaim) or hasattr(value, "shape")


def _refused(value: Any) -> bool:
    """Tensors of kinds that are not read stand for weights all the same, and must not be passed over."""
    return isinstance(value, Opaque) and value.name.startswith(("torch.", "numpy.")) and "scalar" not in value.name


def _is_name(name: Any) -> bool:
    return type(name) is str and len(name) <= _MAX_NAME


def _starts(name: Any, prefix: str) -> bool:
    return name.startswith(prefix) if type(name) is str else not prefix


def _named(name: Any, value: Any) -> str:
    """What is left out, with its class where it is an object."""
    shown = name[:60] if type(name) is str else describe(name) if not isinstance(name, Opaque) else f"a {name.name}"
    return f"{shown} ({describe_value(value)[:60]})" if isinstance(value, Opaque) else shown


def _word(text: str) -> str:
    return text if re.fullmatch(r"[\w./+-]{1,80}", text) else ascii(text[:80])


def _listed(found: Mapping[tuple[str, ...], Any]) -> str:
    words = [_word("/".join(path)) if path else "the outermost (--key '')" for path in list(found)[:_SHOWN]]
    return ", ".join(words) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "") if words else "none"
