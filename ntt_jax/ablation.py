"""Many memories in one pass: numbers of shots, seeds of their choice, references left out.

What does not depend on the memory is done once: each distinct reference is encoded once; each target image is encoded,
its masks are decoded, described and compared with each other once. Every memory then labels the same candidates,
removes duplicates and merges them by itself, exactly as alone, and a mask that several of them return is drawn once.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.coco import CocoCategory, CocoDataset
from ntt_jax.config import DetectConfig
from ntt_jax.detection import Merged, Rows, best_rows, label_rows, overlap_rows
from ntt_jax.dinov2 import DinoVisionTransformer
from ntt_jax.errors import InputError
from ntt_jax.match import object_features
from ntt_jax.memory import Memory, prototypes_from_instance_means
from ntt_jax.pipeline import map_images, propose_masks
from ntt_jax.predictor import Predictor
from ntt_jax.sam2.model import ImageFeatures, Sam2
from ntt_jax.sampling import ClassReferences, ReferenceSet, sample_references
from ntt_jax.shared_detections import SharedDetections

# Memories


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


# The target pass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ManyMerged:
    """Detections of an image by M memories, without masks. merged: `[M, D]`, sources are places in what follows.

    boxes: `[P, 4]` int32 of the candidates, those first that any memory returns; count: how many these are.
    """

    merged: Merged
    boxes: Array
    count: Array


def detect_many(
    sam2: Sam2,
    dinov2: DinoVisionTransformer,
    prototypes: Array,
    images: Array,
    sizes: Array,
    config: DetectConfig,
    negatives: Array | None = None,
) -> tuple[ManyMerged, Array]:
    """`pipeline.detect_images` for M memories at once. Pure.

    Args:
      prototypes: `[M, K, C]`. negatives: `[M, K, N, C]`. images, sizes: as `detect_images`.

    Returns:
      `ManyMerged` with a leading batch axis, and the logits `[B, P, m, m]` of all candidates in its order.
    """
    memories, num_classes = prototypes.shape[:2]

    def one(features: ImageFeatures, patches: Array, size: Array) -> tuple[ManyMerged, Array]:
        candidates, logits, ious = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), config)
        objects, has_direction = object_features(candidates.weights, patches.astype(jnp.float32))
        valid = candidates.valid & has_direction

        def label(classes: tuple[Array, Array | None]) -> Rows:
            return label_rows(objects, candidates.boxes, valid, ious, classes[0], config, classes[1])

        # One memory at a time: the very products of a single one.
        rows = jax.lax.map(label, (prototypes, negatives))
        # For the overlaps, classes of different memories are different classes.
        apart = rows.label + num_classes * jnp.arange(memories, dtype=jnp.int32)[:, None]
        flat = (array.reshape(-1) for array in (rows.candidate, apart, rows.score, rows.alive))
        together = Rows(*flat, best_label=rows.best_label[0])
        total = logits.shape[0]
        overlaps = overlap_rows(together, logits, memories * num_classes, total, height=size[0], width=size[1])
        merged = jax.lax.map(lambda some: best_rows(some, objects, overlaps, config), rows)
        used = jnp.zeros(total, bool).at[jnp.where(merged.valid, merged.source, total)].set(True, mode="drop")
        order = jnp.argsort(~used, stable=True)
        place = jnp.zeros(total, jnp.int32).at[order].set(jnp.arange(total, dtype=jnp.int32))
        merged = dataclasses.replace(merged, source=place[merged.source])
        return ManyMerged(merged, overlaps.boxes[overlaps.slot[order]], jnp.sum(used)), logits[order]

    return map_images(sam2, dinov2, images, sizes, one)


class ManyPredictor(Predictor):
    """`Predictor` for prototypes `[M, K, C]` of M memories: an iterable of images in, `SharedDetections` out, in order.

    negatives: `[M, K, N, C]`, rows of zeros where a memory has fewer. Image ids of the detections are 0. All logits of
    a batch stay on the device until its masks are drawn (268 MB an image with the published sizes). Other arguments
    and errors as `Predictor`.
    """

    def __init__(
        self,
        sam2: Sam2,
        dinov2: DinoVisionTransformer,
        prototypes: Any,
        config: DetectConfig | None = None,
        *,
        negatives: Any = None,
        **options: Any,
    ):
        if np.ndim(prototypes) != 3 or not len(prototypes):
            raise InputError(f"prototypes: expected [M, K, C], found {list(np.shape(prototypes))}")
        super().__init__(sam2, dinov2, prototypes[0], config, **options)
        self._classes = self._place(prototypes, negatives, np.shape(prototypes)[1:])
        self._program = functools.partial(self._program, detect=detect_many)

    def _collect(self, outputs: Any, sizes: list[tuple[int, int]]) -> Any:
        many, logits = outputs
        shards = sorted(logits.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        many = jax.tree.map(np.asarray, many)
        merged, found = many.merged, []
        for index, (height, width) in enumerate(sizes):
            shard, row = divmod(index, self.batch_size // len(shards))
            count = int(many.count[index])
            rles = self._masks(shards[shard].data, row, count, height, width)
            found.append(
                SharedDetections(
                    0,
                    height,
                    width,
                    many.boxes[index, :count].astype(np.float32),
                    tuple(rles),
                    np.where(merged.valid[index], merged.source[index], -1),
                    merged.labels[index],
                    merged.scores[index],
                )
            )
        return found
