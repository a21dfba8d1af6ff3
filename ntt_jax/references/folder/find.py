"""Folders to references: all readers, then which of what they found is taken."""

import os
import random
from collections.abc import Collection, Iterable
from pathlib import Path

from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.mask_names import advice
from ntt_jax.images.tree import Tree, walk
from ntt_jax.references.folder import coco, labelme, masks, voc, yolo
from ntt_jax.references.folder.found import FoundReference, FoundReferences, LeftOut, Part
from ntt_jax.text import close_names

READERS = (("LabelMe", labelme.read), ("COCO", coco.read), ("VOC", voc.read), ("YOLO", yolo.read))
"""After masks, in the order in which they are believed where two say something about a class in a photo."""


def find_references(
    folders: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    classes: Collection[str] | None = None,
    shots: int | None = None,
    seed: int = 0,
    instances: bool = False,
    exif: str = "upright",
) -> FoundReferences:
    """The references in folders of photos with masks, LabelMe, COCO, VOC or YOLO files beside them (docs/fit.md).

    Category ids are those of COCO files, or the numbers from 1 of YOLO's list of classes, where all references are of
    that kind; else classes are numbered from 1 by name. Where two kinds of files say something about one class in one
    photo, the first kind counts: masks, then LabelMe, COCO, VOC, YOLO.

    Args:
      folders: one or several.
      classes: names of the classes to take; all by default.
      shots: at most so many references of each class, chosen by `seed`, first one from each photo; all by default.
      instances: masks may hold the numbers of several instances; each is a reference of its own.
      exif: as for `Segmenter`.

    Raises:
      InputError: no folder, or nothing in it that can be taken: the message says how masks are named, with an example
        from the folder; an unknown class, with close matches.
    """
    given = [Path(folders)] if isinstance(folders, (str, os.PathLike)) else [Path(folder) for folder in folders]
    tree = walk(given, exif)
    parts = [("VOC", voc.claim(tree)), ("masks", masks.read(tree, instances=instances))]
    parts += [(kind, read(tree)) for kind, read in READERS]
    references, left_out = _without_twice(parts)
    if not references:
        _refuse(tree, given, left_out)
    ids = _category_ids(parts, references)
    references.sort(key=lambda one: ids[one.class_name])  # stable: by file within a class
    used = {one.photo for one in references}
    bare = tuple(photo for photo in tree.photos() if photo not in used)
    if classes is not None:
        _require(classes, ids)
        references = [one for one in references if one.class_name in classes]
        ids = {name: i for name, i in ids.items() if name in classes}
    if shots is not None:
        references = _sampled(references, list(ids), shots, seed)
    return FoundReferences(tree.folders, ids, tuple(references), tuple(left_out), bare)


def _without_twice(parts: list[tuple[str, Part]]) -> tuple[list[FoundReference], list[LeftOut]]:
    """All references, and those left out because another kind of file says something about the class in the photo."""
    said: dict[tuple[object, str], str] = {}
    references: list[FoundReference] = []
    left_out: list[LeftOut] = []
    for kind, part in parts:
        for one in part.references:
            first = said.setdefault((one.photo, one.class_name), kind)
            if first == kind:
                references.append(one)
            else:
                reason = f"its photo has {first} of the class" if first == "masks" else f"{first} has the class there"
                left_out.append(LeftOut(one.source, reason, one.number))
        left_out += part.left_out
    return references, list(dict.fromkeys(left_out))  # what two kinds of files cannot read is said once


def _category_ids(parts: list[tuple[str, Part]], references: list[FoundReference]) -> dict[str, int]:
    """Category ids of the classes that occur, ascending."""
    names = {one.class_name for one in references}
    kinds = [part for _, part in parts if part.references]
    if len(kinds) == 1 and names <= set(kinds[0].category_ids):
        known = kinds[0].category_ids
        return {name: known[name] for name in sorted(names, key=known.__getitem__)}
    return {name: i for i, name in enumerate(sorted(names), 1)}


def _require(classes: Collection[str], ids: dict[str, int]) -> None:
    for name in classes:
        if name not in ids:
            close = close_names(name, ids)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(list(ids)[:20])}"
            raise InputError(f"classes: no reference of the class {name!r}; {hint}")


def _sampled(references: list[FoundReference], names: list[str], shots: int, seed: int) -> list[FoundReference]:
    """At most `shots` of each class, in the order of a shuffle: first one from each photo, then others."""
    generator, chosen = random.Random(seed), []
    for name in names:
        own = [one for one in references if one.class_name == name]
        generator.shuffle(own)
        photos: set[object] = set()
        first = [one for one in own if not (one.photo in photos or photos.add(one.photo))]
        others = [one for one in own if not any(one is taken for taken in first)] if len(first) < shots else []
        chosen += [*first, *others][:shots]
    return chosen


def _refuse(tree: Tree, folders: list[Path], left_out: list[LeftOut]) -> None:
    """Raise `InputError` that says what there is and what was expected."""
    where = ", ".join(map(show_path, folders[:3]))
    if not tree.images and not left_out:
        raise InputError(f"{where}: no photo and no annotation file")
    why = ""
    if left_out:
        reason = FoundReferences(tree.folders, {}, (), tuple(left_out)).reasons()
        why = "; ".join(reason[:2]) + (f"; and {len(reason) - 2} more reasons (--dry-run)" if len(reason) > 2 else "")
    expected = "no reference found: expected masks, LabelMe, COCO, VOC or YOLO files beside the photos"
    raise InputError(f"{where}: {expected}; {why + '; ' if why else ''}{advice(tree, [one.file for one in left_out])}")
