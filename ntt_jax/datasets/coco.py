"""Data sets of annotated instances; the reader of COCO's and LVIS's JSON (`datasets.load_dataset` knows the others)."""

import gc
import hashlib
from typing import Any

from ntt_jax.datasets.coco_entries import Entries, Ids, read_annotations, read_categories, read_images
from ntt_jax.datasets.dataset import CocoDataset, make_dataset
from ntt_jax.datasets.lvis import federated_lists
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path
from ntt_jax.notes import Notes

MAX_ANNOTATION_BYTES = 2 * 1024**3
"""Default size limit of an annotation file (COCO train2017: 470 MB)."""


def load_coco(path: PathLike, *, max_bytes: int = MAX_ANNOTATION_BYTES) -> CocoDataset:
    """Read a COCO or LVIS instance annotation file.

    What the tools of the field write beside COCO's own form is read as they mean it (docs/files.md); what cannot be
    used is left out; both are counted in the `notes` of the result. Unknown keys are ignored. What lies inside a
    segmentation is checked when its mask is asked for. A file whose images say which categories were looked for in vain
    (`neg_category_ids`) is LVIS's; without "file_name", the last two parts of "coco_url" count.

    Raises `InputError`, one line with the file, if it is no such file, or none of its images or categories can be used.
    """
    data = read_bytes(path, max_bytes=max_bytes, what="annotation file")
    return parse_coco(data, path)


def parse_coco(data: bytes, path: PathLike, *, pointed: bool = False) -> CocoDataset:
    """`load_coco` for a file's contents; `path` names them in messages.

    pointed: keep annotations that have nothing but "points"; their box is 0, 0, 0, 0.
    """
    name, notes = show_path(path), Notes()
    # A million small objects without a cycle: the collector only costs time here (a third of it).
    collecting = gc.isenabled()
    gc.disable()
    try:
        content = parse_json(data, path, what="annotation file")
        if not isinstance(content, dict):
            raise InputError(f"{name}: expected a COCO annotation object, found {describe(content)}")
        lists = {key: _list(content, key, name) for key in ("images", "categories", "annotations")}
        images = read_images(lists["images"], notes)
        categories = read_categories(lists["categories"], notes)
        for what, found in (("images", images), ("categories", categories)):
            if lists[what] and not found.by_id:
                raise InputError(f"{name}: none of its {len(lists[what])} {what} can be used: {notes.lines()[-1]}")
        annotations, positions = read_annotations(lists["annotations"], images, categories, notes, pointed=pointed)
        federated = federated_lists(_kept(lists["images"], images), _kept(lists["categories"], categories), name)
    finally:
        if collecting:
            gc.enable()
    return make_dataset(
        path,
        hashlib.sha256(data).hexdigest(),
        images.by_id,
        annotations,
        categories.by_id,
        federated=federated,
        notes=notes.lines(),
        image_ids=_texts(images.ids),
        category_ids=_texts(categories.ids),
        positions=positions if len(positions) != len(lists["annotations"]) else None,
    )


def _list(content: dict[str, Any], key: str, name: str) -> list[Any]:
    if key not in content:
        raise InputError(f'{name}: not a COCO instance annotation file: the key "{key}" is missing')
    if not isinstance(content[key], list):
        raise InputError(f'{name}: "{key}": expected a list, found {describe(content[key])}')
    return content[key]


def _kept(entries: list[Any], found: Entries) -> list[Any]:
    """The entries that are used, with the ids by which they are known here."""
    if found.plain:
        return entries
    kept = [(entry, found.ids.find(entry.get("id"))) for entry in entries if isinstance(entry, dict)]
    return [{**entry, "id": number} for entry, number in kept if number in found.by_id]


def _texts(ids: Ids) -> dict[int, str | int]:
    return ids.written
