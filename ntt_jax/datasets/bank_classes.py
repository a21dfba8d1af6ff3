"""The classes of a memory as categories of an annotation file, which may number them in its own way."""

import dataclasses
from collections.abc import Iterable

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
    notes = Notes()
    categories: list[CocoCategory] = []
    classes = list(zip(bank.category_ids, bank.class_names, strict=True))
    for (category_id, name), found in zip(classes, same_categories(classes, dataset, notes, "memory"), strict=True):
        if isinstance(found, int):
            other = dataset.categories.get(category_id)
            what = f"there it is {other.name!r}" if other else "it has no such category"
            what = f"{found} of its categories have that name" if found else what
            raise InputError(
                f"{show_path(dataset.path)}: the memory's class {category_id} is {name!r}, but {what}; "
                "give the annotations that belong to the memory"
            )
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


def same_categories(
    classes: Iterable[tuple[int, str]], dataset: CocoDataset, notes: Notes, owner: str
) -> list[CocoCategory | int]:
    """Classes (id and name) as categories of a file: that of the same id and name, else the only one of the name.

    Where there is none, the number of categories of that name, 0 or at least 2, stands in its place. notes: hear what
    was matched by its name alone. owner: of the classes, for them ("memory").
    """
    by_name: dict[str, list[CocoCategory]] = {}
    for category in dataset.categories.values():
        by_name.setdefault(category.name, []).append(category)
    result: list[CocoCategory | int] = []
    for category_id, name in classes:
        found = dataset.categories.get(category_id)
        if found is None or found.name != name:
            named = by_name.get(name, [])
            if len(named) != 1:
                result.append(len(named))
                continue
            found = named[0]
            kind = f"classes that the {owner} and the annotations number differently, matched by their names"
            notes.add(kind, f"{describe(name)} is {category_id} in the {owner}, {found.id} in the annotations")
        result.append(found)
    return result
