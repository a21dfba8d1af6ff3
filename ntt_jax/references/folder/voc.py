"""PASCAL VOC's XML: boxes of one photo, and masks where SegmentationObject has them.

    JPEGImages/bus1.jpg  Annotations/bus1.xml  SegmentationObject/bus1.png
    bus1.jpg  bus1.xml                          as labelImg writes it

A box's corners are inclusive and count from 1, as in VOC. Objects marked difficult are left out.
"""

from pathlib import Path, PureWindowsPath

import numpy as np

from ntt_jax.datasets.voc import MAX_XML_BYTES, VocMask, parse_xml, voc_objects
from ntt_jax.errors import InputError
from ntt_jax.files import read_bytes
from ntt_jax.images.reading import read_index_image
from ntt_jax.images.tree import Tree
from ntt_jax.references.folder.found import FoundReference, Lazy, Part

_MASK_FOLDERS = ("segmentationobject", "segmentationclass")


def claim(tree: Tree) -> Part:
    """Makes VOC's own masks known before others look for masks; no reference yet."""
    part = Part()
    if tree.of(".xml"):
        part.claimed = set(_masks(tree))
    tree.claimed |= part.claimed
    return part


def _masks(tree: Tree) -> list[Path]:
    return [f for f in tree.images if f.parent.name.lower() in _MASK_FOLDERS and f.suffix.lower() == ".png"]


def read(tree: Tree) -> Part:
    """References of all files of this kind."""
    part = Part()
    for file in tree.of(".xml"):
        try:
            _read_file(file, tree, part)
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: "))
    return part


def _read_file(file: Path, tree: Tree, part: Part) -> None:
    data = read_bytes(file, max_bytes=MAX_XML_BYTES, what="VOC annotation")
    root = parse_xml(data, file)
    if root.tag != "annotation":
        return
    height, width, objects = voc_objects(root, file)
    name = PureWindowsPath((root.findtext("filename") or "").strip()).stem
    photo = tree.photo_named(file.stem, file) or (tree.photo_named(name, file) if name else None)
    if photo is None:
        raise InputError("its photo is not in the folders given, or there are several of this name")
    if not height:
        height, width = tree.size(photo)
    tree.check_size(photo, height, width)
    masks = [f for f in _masks(tree) if f.stem == file.stem and f.parent.name.lower() == _MASK_FOLDERS[0]]
    masks = [f for f in masks if f.parent.parent in (file.parent.parent, file.parent)]
    numbers = read_index_image(masks[0]) if masks else np.zeros((1, 1), np.uint8)
    there = set(np.unique(numbers).tolist())
    for number, one in enumerate(objects, 1):
        if isinstance(one, InputError):
            part.leave_out(file, one, number)
        elif one.difficult:
            part.leave_out(file, "marked difficult", number)
        elif not masks:
            part.references.append(FoundReference(one.name, photo, file, photo, None, one.bbox, number))
        elif number not in there:
            part.leave_out(file, f"{masks[0].name} has no pixel of it", number)
        else:
            mask = VocMask(masks[0], number, height, width, one.bbox)
            try:
                mask.of(numbers)
            except InputError as error:
                part.leave_out(file, str(error).removeprefix(f"{masks[0]}: "), number)
                continue
            lazy = Lazy(mask, {"mask": masks[0].name, "object": number})
            part.references.append(FoundReference(one.name, photo, file, photo, lazy, one.bbox, number))
