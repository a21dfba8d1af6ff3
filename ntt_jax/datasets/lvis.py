"""What an LVIS annotation file knows beside COCO's: which categories were looked for in which image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import describe

FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: in at most 10, at most 100, and more images of LVIS's training set."""


@dataclass(frozen=True)
class FederatedLists:
    """What an LVIS file knows beside its annotations.

    negative, not_exhaustive: by image id, category ids that are certainly absent, and whose instances are not all
    marked. frequency: by category id, one of `FREQUENCIES`.
    """

    negative: Mapping[int, frozenset[int]]
    not_exhaustive: Mapping[int, frozenset[int]]
    frequency: Mapping[int, str]


def federated_lists(images: list[Any], categories: list[Any], name: str) -> FederatedLists | None:
    """The lists of an LVIS file, None if it is not one; entries have checked ids. `name` starts the messages.

    Raises `InputError` if an image or category lacks what others have.
    """
    if not any("neg_category_ids" in entry for entry in images):
        return None
    known = {entry["id"] for entry in categories}
    negative, not_exhaustive, frequency = {}, {}, {}
    for i, entry in enumerate(images):
        for key, lists in (("neg_category_ids", negative), ("not_exhaustive_category_ids", not_exhaustive)):
            ids = entry.get(key)
            if type(ids) is not list or not all(type(v) is int and v in known for v in ids):
                found = describe(ids) if key in entry else "no such key"
                raise InputError(
                    f'{name}: images[{i}] (id {entry["id"]}): "{key}": expected a list of category ids of this file, '
                    f"found {found}"
                )
            lists[entry["id"]] = frozenset(ids)
    for i, entry in enumerate(categories):
        if entry.get("frequency") not in FREQUENCIES:
            found = describe(entry["frequency"]) if "frequency" in entry else "no such key"
            raise InputError(
                f'{name}: categories[{i}] (id {entry["id"]}): "frequency": expected one of {", ".join(FREQUENCIES)}, '
                f"found {found}"
            )
        frequency[entry["id"]] = entry["frequency"]
    return FederatedLists(negative, not_exhaustive, frequency)
