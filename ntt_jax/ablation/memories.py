"""Many memories from one set of references: shots and seeds, or each reference left out."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import Memory, prototypes_from_instance_means
from ntt_jax.references.sampling import ClassReferences, ReferenceSet, sample_references


def sample_many(
    dataset: CocoDataset,
    classes: Sequence[CocoCategory],
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    allow_fewer: bool = False,
) -> dict[tuple[int, int], ReferenceSet]:
    """Reference sets by (shots, seed), each equal to `sample_references(dataset, classes, shots, seed)`.

    The references of fewer shots are the first of those of more, so every seed is drawn once. Raises `InputError` as
    `sample_references`, for the largest number of shots.
    """
    if not shots or not seeds:
        raise InputError("expected at least one number of shots and one seed")
    found: dict[tuple[int, int], ReferenceSet] = {}
    for seed in seeds:
        largest = sample_references(dataset, classes, max(shots), seed, allow_fewer=allow_fewer)
        for count in shots:
            fewer = (dataclasses.replace(c, references=c.references[:count]) for c in largest.classes)
            found[count, seed] = dataclasses.replace(largest, classes=tuple(fewer), shots=count)
    return found


def distinct_references(sets: Sequence[ReferenceSet]) -> ReferenceSet:
    """All references of all sets, each once: encoding these encodes what every set needs."""
    union = [dict.fromkeys(r for classes in column for r in classes.references) for column in _columns(sets)]
    classes = [dataclasses.replace(c, references=tuple(all_)) for c, all_ in zip(sets[0].classes, union, strict=True)]
    return dataclasses.replace(sets[0], classes=tuple(classes), shots=max(map(len, union)), seed=None)


def _columns(sets: Sequence[ReferenceSet]) -> Iterator[tuple[ClassReferences, ...]]:
    """Per class, its references in every set."""
    return zip(*(references.classes for references in sets), strict=True)


def stack_prototypes(sets: Sequence[ReferenceSet], distinct: ReferenceSet, memory: Memory) -> np.ndarray:
    """Class prototypes `[M, K, C]` float32 of every set, bit for bit those of its own memory.

    distinct: `distinct_references` of the sets; memory: theirs (`build_memory`). Raises `InputError`, naming the class,
    if the features of its references cancel out.
    """
    means = np.asarray(memory.instance_means)  # [K, N, C]
    most = max(len(chosen.references) for references in sets for chosen in references.classes)
    stacked = np.zeros((len(sets), len(means), most, means.shape[2]), np.float32)
    valid = np.zeros(stacked.shape[:3], bool)
    for k, column in enumerate(_columns(sets)):
        place = {reference: s for s, reference in enumerate(distinct.classes[k].references)}
        for m, chosen in enumerate(column):
            count = len(chosen.references)
            stacked[m, k, :count] = means[k, [place[reference] for reference in chosen.references]]
            valid[m, k, :count] = True
    prototypes = _prototypes(stacked.reshape(-1, *stacked.shape[2:]), valid.reshape(-1, most))
    prototypes = prototypes.reshape(*stacked.shape[:2], -1)
    if not np.all(there := np.any(prototypes != 0, axis=2)):
        raise InputError(f"class {distinct.classes[np.argwhere(~there)[0][1]].name}: its references cancel out")
    return prototypes


def leave_one_out(memory: Memory) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A memory, and what it is without each of its references.

    Returns:
      prototypes `[1 + N, K, C]` float32, first the memory's own; for each of the others the (class, reference) that it
      lacks. A class's only reference is not left out.
    """
    means, valid = np.asarray(memory.instance_means), np.asarray(memory.valid)
    lacking = [(int(k), int(s)) for k, s in np.argwhere(valid) if valid[k].sum() > 1]
    # Only the prototype of one class differs.
    shortened = np.stack([valid[k] & (np.arange(valid.shape[1]) != s) for k, s in lacking] or [valid[0]])
    own = [k for k, _ in lacking] or [0]
    changed = _prototypes(means[own], shortened)
    prototypes = np.repeat(np.asarray(memory.prototypes)[None], 1 + len(lacking), axis=0)
    for m, (k, _) in enumerate(lacking):
        prototypes[1 + m, k] = changed[m]
    return prototypes, lacking


def _prototypes(means: np.ndarray, valid: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(prototypes_from_instance_means(jnp.asarray(means), jnp.asarray(valid)))
