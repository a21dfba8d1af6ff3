"""The classes of a memory as categories of an annotation file, which may number them in its own way."""

import dataclasses

import jax
import numpy as np

from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import describe, show_path
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.notes import Notes


def match_classes(
    bank: MemoryBank, dataset: CocoDataset
) -> tuple[MemoryBank, tuple[CocoCategory, ...], tuple[str, ...]]:
    """The memory with the ids of the file's categories, ascending, these categories, and what there is to say of it.

    A class is the category of its id and name; where the two disagree, the only category of its name.
    Raises `InputError` if there is none.
    """
    by_name: dict[str, list[CocoCategory]] = {}
    for category in dataset.categories.values():
        by_name.setdefault(category.name, []).append(category)
    notes = Notes()
    categories: list[CocoCategory] = []
    for category_id, name in zip(bank.category_ids, bank.class_names, strict=True):
        found = dataset.categories.get(category_id)
        if found is None or found.name != name:
            named = by_name.get(name, [])
            if len(named) != 1:
                what = f"there it is {found.name!r}" if found else "it has no such category"
                what = f"{len(named)} of its categories have that name" if named else what
                raise InputError(
                    f"{show_path(dataset.path)}: the memory's class {category_id} is {name!r}, but {what}; "
                    "give the annotations that belong to the memory"
                )
            found = named[0]
            kind = "classes that the memory and the annotations number differently, matched by their names"
            notes.add(kind, f"{describe(name)} is {category_id} in the memory, {found.id} in the annotations")
        categories.append(found)
    ids = [category.id for category in categories]
    if len(set(ids)) != len(ids):
        raise InputError(f"{show_path(dataset.path)}: two classes of the memory are one of its categories; rename one")
    if tuple(ids) == bank.category_ids:
        return bank, tuple(categories), ()
    order = np.argsort(ids)
    memory = jax.tree.map(lambda array: np.asarray(array)[order], bank.memory)
    names = tuple(bank.class_names[i] for i in order)
    changed = dataclasses.replace(bank, memory=memory, class_names=names, category_ids=tuple(sorted(ids)))
    return changed, tuple(categories[i] for i in order), notes.lines()
