"""The memories that rules are tried with: of several shots and seeds, or from files."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.ablation.job import Shots, Targets, encode, same_classes, sample
from ntt_jax.ablation.memories import distinct_references, stack_prototypes
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.memory.bank import load_memory, require_encoder
from ntt_jax.runs import inputs
from ntt_jax.runs.models import read_encoder
from ntt_jax.runs.observer import Observer
from ntt_jax.runs.paths import make_output_folder
from weight_port.files import sha256


@dataclass(frozen=True, eq=False)
class Memories:
    """M memories of the same K classes.

    prototypes: float32 `[M, K, C]`. negatives: float32 `[M, K, N, C]` or None. keys: what each is, JSON-ready
    (`{"shots", "seed"}` or `{"memory"}`). groups: `[M]`, equal for those that are not independent of each other: one
    seed's, whose fewer shots are the first of its more.
    """

    prototypes: np.ndarray
    negatives: np.ndarray | None
    keys: list[dict[str, Any]]
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


Made = tuple[CocoDataset, Sequence[CocoCategory], dict[str, Any], Callable[[], Memories]]
"""The data set (with notes), its classes, what identifies the memories, and what makes them."""


def of_shots(folder: Path, given: Shots, target: Targets, dataset: CocoDataset, observer: Observer) -> Made:
    """Memories of several numbers of shots and seeds.

    Encoded references are kept below `folder`, those of every choice by themselves: one that was made before, and a
    stopped one, goes on where it was.
    """
    sources, classes, sets = sample(given, observer)
    categories, order = same_classes(classes, dataset, observer)
    identity = {"reference annotation file": sources.sha256, "shots": list(given.shots), "seeds": list(given.seeds)}

    choice = {**identity, "classes": [category.id for category in classes]}
    own = folder / "memories" / hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:12]

    def make() -> Memories:
        distinct = distinct_references(list(sets.values()))
        make_output_folder(own)
        memory = encode(own, target, sources, given.images or target.images, distinct, observer)
        prototypes = stack_prototypes(list(sets.values()), distinct, memory)[:, order]
        keys = [{"shots": shots, "seed": seed} for shots, seed in sets]
        return Memories(prototypes, None, keys, np.array([seed for _, seed in sets]))

    return dataset, categories, identity, make


def of_files(files: Sequence[Path], target: Targets, dataset: CocoDataset, observer: Observer) -> Made:
    """Memories of files, all with the same classes. Raises `InputError` where they differ or fit no annotation."""
    encoder = read_encoder(target.dinov2)
    banks, first = [], None
    for file in files:
        bank = load_memory(file)
        require_encoder(bank, *encoder)
        bank, dataset, categories = inputs.match_bank(bank, dataset, observer)
        if first is not None and [c.id for c in categories] != [c.id for c in first]:
            raise InputError(
                f"{show_path(file)}: has other classes than {show_path(files[0])}; give one set of classes"
            )
        first = categories
        banks.append(bank)
    assert first is not None

    def make() -> Memories:
        prototypes = np.stack([np.asarray(bank.memory.prototypes, np.float32) for bank in banks])
        own = [bank.memory.negatives for bank in banks]
        most = max((one.shape[1] for one in own if one is not None), default=0)
        negatives = np.zeros((*prototypes.shape[:2], most, prototypes.shape[2]), np.float32) if most else None
        for m, one in enumerate(own):
            if one is not None and negatives is not None:
                negatives[m, :, : one.shape[1]] = one
        keys = [{"memory": show_path(file)} for file in files]
        return Memories(prototypes, negatives, keys, np.arange(len(files)))

    return dataset, first, {"memories": [sha256(file) for file in files]}, make
