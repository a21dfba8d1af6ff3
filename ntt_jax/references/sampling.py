"""Reference sets (METHOD stage 0): which annotations stand for each class. Sampling, their JSON file, checks."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntt_jax.datasets.dataset import CocoAnnotation, CocoCategory, CocoDataset, CocoImage
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path, write_json
from ntt_jax.images.rle import rle_areas
from ntt_jax.text import counted

FORMAT = "ntt-jax references"
VERSION = 1
MAX_REFERENCE_BYTES = 256 * 1024**2
MIN_BOX_SIDE = 32
MIN_BORDER_DISTANCE = 10
"""A reference's box has at least this width and height, and this distance to every image border, in pixels."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance: an annotation of an image, by their ids in the annotation file."""

    image_id: int
    annotation_id: int


@dataclass(frozen=True)
class ClassReferences:
    """The references of one class, in sampled order."""

    category_id: int
    name: str
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class ReferenceSet:
    """References of all chosen classes.

    classes: ascending by category id, so a class's position is its class index. shots: references asked for per class;
    a class may have fewer (`short_classes`). seed: None if the set was not sampled here. annotations_name,
    annotations_sha256: the annotation file it was made from, None where unknown.
    """

    classes: tuple[ClassReferences, ...]
    shots: int
    seed: int | None = None
    annotations_name: str | None = None
    annotations_sha256: str | None = None

    def short_classes(self) -> tuple[tuple[str, int], ...]:
        """Name and number of references of every class that has fewer than `shots`."""
        return tuple((c.name, len(c.references)) for c in self.classes if len(c.references) < self.shots)


def sample_references(
    dataset: CocoDataset,
    classes: Sequence[CocoCategory],
    shots: int,
    seed: int,
    *,
    allow_fewer: bool = False,
) -> ReferenceSet:
    """Choose `shots` references per class, the same as upstream for the same annotation file and seed (METHOD stage 0).

    Class after class, in the order of their first annotation in the file, the class's whole list of annotations is
    shuffled by one generator, then walked: an annotation is taken if it is not a crowd, its box is at least 32 pixels
    wide and high and at least 10 pixels from every border, and no annotation of its image has been taken for the class.
    Annotations marked `isimpossible` are treated as if they were not in the file.

    With `allow_fewer` a class that has fewer valid references keeps those it has (`ReferenceSet.short_classes`).
    Raises `InputError`, naming the classes and how many they have, if a class has none, or fewer without `allow_fewer`.
    """
    if shots < 1:
        raise InputError(f"shots: expected at least 1, found {shots}")
    per_class: dict[int, list[CocoAnnotation]] = {}
    chosen = {category.id for category in classes}
    for annotation in dataset.annotations.values():
        if annotation.category_id in chosen and not annotation.isimpossible:
            per_class.setdefault(annotation.category_id, []).append(annotation)
    generator = random.Random(seed)  # the same stream as the module's functions after random.seed(seed)
    found: dict[int, tuple[Reference, ...]] = {}
    for category_id, annotations in per_class.items():
        generator.shuffle(annotations)
        found[category_id] = _take(annotations, dataset, shots)
    result = ReferenceSet(
        classes=tuple(
            ClassReferences(c.id, c.name, found.get(c.id, ()))
            for c in sorted(classes, key=lambda category: category.id)
        ),
        shots=shots,
        seed=seed,
        annotations_name=dataset.path.replace("\\", "/").rsplit("/", 1)[-1],
        annotations_sha256=dataset.sha256,
    )
    why = {c.name: why_not(dataset, c.category_id) for c in result.classes if len(c.references) < shots}
    require_shots(result, dataset.path, allow_fewer=allow_fewer, why=why)
    return result


def require_shots(
    references: ReferenceSet, path: PathLike, *, allow_fewer: bool, why: Mapping[str, str] | None = None
) -> None:
    """Raise `InputError`, naming file and classes, if one has no reference, or too few and that is not allowed.

    why: of some classes, which rule took how many of their annotations (`why_not`).
    """
    why, short = why or {}, references.short_classes()
    empty = [name for name, count in short if count == 0]
    if empty := [(name, why.get(name, "") if i < 5 else "") for i, name in enumerate(empty)]:
        others = 0 if allow_fewer else len(short) - len(empty)
        more = f"; {counted(others, 'other has', 'others have')} fewer than {references.shots} (--allow-fewer)"
        raise InputError(
            f"{show_path(path)}: no valid reference for {_some(empty)}; {_WAYS_OUT}{more if others else ''}"
        )
    if short and not allow_fewer:
        counts = [(name, str(count)) for name, count in short]
        reasons = [f"{describe(name)}: {why[name]}" for name, _ in short[:3] if why.get(name)]
        raise InputError(
            f"{show_path(path)}: fewer than {references.shots} valid references for {_some(counts)};"
            " ask for fewer shots, or allow fewer (--allow-fewer)"
            + (f"; of what there is, {'; '.join(reasons)}" if reasons else "")
        )


_WAYS_OUT = (
    "leave them out of the classes (--drop-empty), or give a COCO file of references, which are taken as they are "
    "(--lists FILE.json)"
)


def is_valid_reference(annotation: CocoAnnotation, image: CocoImage) -> bool:
    """Whether an annotation may serve as a reference: METHOD stage 0's crowd, size and border rules."""
    return broken_rule(annotation, image) is None


def broken_rule(annotation: CocoAnnotation, image: CocoImage) -> str | None:
    """The rule for references that an annotation breaks, in words; None if it may serve.

    Of an image whose size is not known, the right and the lower border are not looked at.
    """
    x, y, width, height = annotation.bbox
    if annotation.iscrowd:
        return "a crowd"
    if annotation.isimpossible:
        return "marked difficult or impossible"
    if min(width, height) < MIN_BOX_SIDE:
        return f"box under {MIN_BOX_SIDE} pixels"
    right, lower = (image.width - (x + width), image.height - (y + height)) if image.height else (x, y)
    if min(x, y, right, lower) < MIN_BORDER_DISTANCE:
        return f"box under {MIN_BORDER_DISTANCE} pixels from the border"
    return None


def why_not(dataset: CocoDataset, category_id: int) -> str:
    """Which rule took how many annotations of a class: "3 of 3 annotations: box under 32 pixels"."""
    own = [a for a in dataset.annotations.values() if a.category_id == category_id]
    if not own:
        return "it has no annotations"
    masked = any(a.segmentation is not None for a in own)
    reasons = Counter(_reason(annotation, dataset, masked) or "" for annotation in own)
    valid = reasons.pop("", 0)
    texts = [f"{count} of {len(own)} annotations: {reason}" for reason, count in reasons.most_common(1)]
    texts += [f"{count}: {reason}" for reason, count in reasons.most_common()[1:]]
    if valid:
        texts.append(f"{valid} valid, of which an image gives one")
    return ", ".join(texts)


def _reason(annotation: CocoAnnotation, dataset: CocoDataset, masked: bool) -> str | None:
    """Why an annotation is no reference. masked: others of its class have masks, so it needs one too."""
    if (rule := broken_rule(annotation, dataset.images[annotation.image_id])) is not None:
        return rule
    if annotation.segmentation is None:
        return "no mask" if masked else None
    if callable(annotation.segmentation) or not dataset.images[annotation.image_id].height:
        return None
    try:
        return None if rle_areas([dataset.rle(annotation)])[0] else "a mask without a pixel"
    except InputError:
        return "a mask that cannot be read"


def used_classes(
    dataset: CocoDataset, classes: Sequence[CocoCategory]
) -> tuple[tuple[CocoCategory, ...], tuple[str, ...]]:
    """The classes that have an annotation, and the names of the others (Roboflow's root category, for one)."""
    used = {annotation.category_id for annotation in dataset.annotations.values()}
    return tuple(c for c in classes if c.id in used), tuple(c.name for c in classes if c.id not in used)


def check_references(references: ReferenceSet, dataset: CocoDataset) -> None:
    """Make sure that every reference can be used with this annotation file.

    Raises `InputError` naming the class and the reference if the set was made from another file, an id does not exist,
    the annotation is of another image or class, is a crowd, or its mask is unsound or without a pixel.
    """
    found = show_path(dataset.path)
    if references.annotations_sha256 not in (None, dataset.sha256):
        name = "a file" if references.annotations_name is None else describe(references.annotations_name)
        raise InputError(
            f"{found}: its sha256 is {dataset.sha256[:12]}..., but the references were made from {name}"
            f" with {str(references.annotations_sha256)[:12]}...; give that file, or sample again"
        )
    for chosen in references.classes:
        category = dataset.categories.get(chosen.category_id)
        if category is None or category.name != chosen.name:
            name = f"it is {describe(category.name)}" if category else "there is no such category"
            raise InputError(
                f"references: category {chosen.category_id} is {describe(chosen.name)}, but in {found} {name}"
            )
        for reference in chosen.references:
            _check_reference(reference, chosen, dataset)


def save_references(path: PathLike, references: ReferenceSet) -> None:
    """Write a reference file (JSON, whole or not at all). Raises `InputError` if it cannot be written."""
    write_json(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "annotations": {"name": references.annotations_name, "sha256": references.annotations_sha256},
            "seed": references.seed,
            "shots": references.shots,
            "classes": [
                {
                    "category_id": c.category_id,
                    "name": c.name,
                    "references": [{"image_id": r.image_id, "annotation_id": r.annotation_id} for r in c.references],
                }
                for c in references.classes
            ],
        },
    )


def load_references(path: PathLike, *, max_bytes: int = MAX_REFERENCE_BYTES) -> ReferenceSet:
    """Read a reference file. Raises `InputError` naming the file and what is wrong in it."""
    return parse_references(read_bytes(path, max_bytes=max_bytes, what="reference file"), path)


def parse_references(data: bytes, path: PathLike) -> ReferenceSet:
    """`load_references` for a file's contents; `path` names them in messages."""
    name = show_path(path)
    content = parse_json(data, path, what="reference file")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{name}: not a reference file (no "format": "{FORMAT}"); make one with ntt-jax sample')
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise InputError(f"{name}: version {describe(content.get('version'))}, expected {VERSION}; sample again")
    source = _get(content, "annotations", dict, name)
    classes = [_class(entry, f"{name}: classes[{i}]") for i, entry in enumerate(_get(content, "classes", list, name))]
    ids = [c.category_id for c in classes]
    if not classes or ids != sorted(set(ids)):
        raise InputError(f'{name}: "classes": expected at least one, ascending by category_id, each once')
    seed = None if content.get("seed") is None else _get(content, "seed", int, name)
    shots = _get(content, "shots", int, name)
    if shots < max(len(c.references) for c in classes):
        raise InputError(f'{name}: "shots" is {shots}, but a class has more references')
    texts = {key: None if source.get(key) is None else _get(source, key, str, name) for key in ("name", "sha256")}
    if texts["sha256"] is not None and not re.fullmatch("[0-9a-f]{64}", texts["sha256"]):
        raise InputError(f'{name}: "sha256": expected 64 hexadecimal digits, found {describe(texts["sha256"])}')
    return ReferenceSet(tuple(classes), shots, seed, texts["name"], texts["sha256"])


def references_as_coco(references: ReferenceSet, dataset: CocoDataset) -> dict[str, Any]:
    """The references as COCO annotations of their own, ids as in `dataset`: boxes, and masks where there are any.

    Raises `InputError` as `CocoDataset.rle`.
    """
    chosen = [dataset.annotations[r.annotation_id] for entry in references.classes for r in entry.references]
    annotations = []
    for annotation in chosen:
        entry: dict[str, Any] = {"id": annotation.id, "image_id": annotation.image_id}
        entry |= {"category_id": annotation.category_id, "bbox": list(annotation.bbox), "iscrowd": 0}
        if annotation.segmentation is not None:
            entry["segmentation"] = dataset.rle(annotation)
        annotations.append(entry)
    images = [dataset.images[i] for i in dict.fromkeys(annotation.image_id for annotation in chosen)]
    return {
        "images": [{"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images],
        "categories": [{"id": entry.category_id, "name": entry.name} for entry in references.classes],
        "annotations": annotations,
    }


def _take(annotations: list[CocoAnnotation], dataset: CocoDataset, shots: int) -> tuple[Reference, ...]:
    taken: dict[int, Reference] = {}
    masked = any(annotation.segmentation is not None for annotation in annotations)
    for annotation in annotations:
        if len(taken) == shots:
            break
        image_id = annotation.image_id
        if image_id not in taken and _reason(annotation, dataset, masked) is None:
            taken[image_id] = Reference(image_id, annotation.id)
    return tuple(taken.values())


def _check_reference(reference: Reference, chosen: ClassReferences, dataset: CocoDataset) -> None:
    where = (
        f"references: class {describe(chosen.name)}: image {reference.image_id}, annotation {reference.annotation_id}"
    )
    annotation = dataset.annotations.get(reference.annotation_id)
    if annotation is None:
        raise InputError(f"{where}: {show_path(dataset.path)} has no such annotation")
    if annotation.image_id != reference.image_id:
        raise InputError(f"{where}: the annotation is of image {annotation.image_id}")
    if annotation.category_id != chosen.category_id:
        raise InputError(f"{where}: the annotation is of category {annotation.category_id}, not {chosen.category_id}")
    if annotation.iscrowd:
        raise InputError(f"{where}: the annotation is a crowd, not one instance")
    if min(annotation.bbox[2:]) <= 0:
        raise InputError(f"{where}: the annotation's box has no area")
    if not rle_areas([dataset.rle(annotation)])[0]:
        raise InputError(f"{where}: the annotation's mask has no pixel")


def _class(entry: Any, where: str) -> ClassReferences:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, found {describe(entry)}")
    references = []
    for i, item in enumerate(_get(entry, "references", list, where)):
        at = f"{where}: references[{i}]"
        if not isinstance(item, dict):
            raise InputError(f"{at}: expected an object, found {describe(item)}")
        references.append(Reference(_get(item, "image_id", int, at), _get(item, "annotation_id", int, at)))
    if not references:
        raise InputError(f"{where}: has no references")
    if len(set(references)) != len(references):
        raise InputError(f"{where}: a reference occurs twice")
    return ClassReferences(_get(entry, "category_id", int, where), _get(entry, "name", str, where), tuple(references))


def _get(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """A value of exactly this JSON type; integers are ids or counts: 0 to 2**63 - 1."""
    value = entry.get(key)
    if type(value) is not kind or (type(value) is int and not 0 <= value < 2**63):
        words = {int: "an integer of at least 0", str: "text", list: "a list", dict: "an object"}[kind]
        found = describe(value) if key in entry else "no such key"
        raise InputError(f'{where}: "{key}": expected {words}, found {found}')
    return value


def _some(classes: Sequence[tuple[str, str]], limit: int = 20) -> str:
    """The first class names, with what there is to say of each."""
    texts = [f"{describe(name)} ({text})" if text else describe(name) for name, text in classes[:limit]]
    return ", ".join(texts) + (f" and {len(classes) - limit} more" if len(classes) > limit else "")
