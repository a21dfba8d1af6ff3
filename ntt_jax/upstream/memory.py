"""Import of the memory checkpoint that the original PyTorch code writes (`memory.ckpt`, `memory_postprocessed.ckpt`).

It is a training checkpoint with the models' weights and, under names that end as below, the memory of K classes with S
references each, features of h*w patches of C numbers (METHOD stages 1 and 2):

    mem_feats [K, S, hw, C], mem_masks [K, S, hw]     every reference's patches and soft mask
    mem_fill_counts [K]                               references of each class that are there
    mem_feats_ins_avg [K, S, C]                       instance means, 0 before post-processing
    mem_feats_avg [K, C]                              pooled means, which are no prototypes (METHOD stage 2)

Class index is the rank of the category id. Nothing in the file is executed (`weight_port.torch_file`).
"""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ntt_jax.config import EncoderConfig
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, open_input, show_path
from ntt_jax.memory.aggregate import Memory, instance_mean, memory_from_instance_means

_FEATURES, _MASKS, _MEANS, _POOLED = "mem_feats", "mem_masks", "mem_feats_ins_avg", "mem_feats_avg"
_COUNTS = ("mem_fill_counts", "fill_counts")
SAME = 1e-4
"""Relative difference up to which numbers count as the same: float32 sums in another order stay far below."""


@dataclass(frozen=True)
class UpstreamMemory:
    """A memory checkpoint's arrays, float32, views of a copy on the disk where they are large.

    valid: bool `[K, S]`. means: `[K, S, C]` or None, where the checkpoint has none yet. features `[K, S, hw, C]` and
    masks `[K, S, hw]`: both or None. pooled: `[K, C]` or None.
    """

    path: str
    valid: np.ndarray
    means: np.ndarray | None
    features: np.ndarray | None
    masks: np.ndarray | None
    pooled: np.ndarray | None


def read_upstream_memory(path: PathLike) -> UpstreamMemory:
    """Read a memory checkpoint's arrays and check that they fit together.

    Raises `InputError`, naming the file: not a checkpoint, one that asks for more than tensors, without a memory, or
    with arrays that do not fit together.
    """
    from weight_port.torch_file import read_torch_named

    shown = show_path(path)
    open_input(path, what="memory checkpoint").close()
    try:
        found = read_torch_named(pathlib.Path(path), (_FEATURES, _MASKS, _MEANS, _POOLED, *_COUNTS))
    except InputError as error:
        if "only tensors are read" not in str(error):
            raise
        # Lightning may save settings as objects of its own beside the tensors.
        raise InputError(
            f"{error}; where the checkpoint was made, save its tensors alone: "
            'torch.save(torch.load(PATH, weights_only=False)["state_dict"], NEW_PATH)'
        ) from None
    means, features, masks, pooled = (_floats(found.get(name)) for name in (_MEANS, _FEATURES, _MASKS, _POOLED))
    if features is not None and masks is not None and masks.size == np.prod(features.shape[:3]):
        masks = masks.reshape(features.shape[:3])
    ranks = {_MEANS: (means, 3), _FEATURES: (features, 4), _MASKS: (masks, 3), _POOLED: (pooled, 2)}
    for name, (array, rank) in ranks.items():
        if array is not None and (array.ndim != rank or not array.size):
            raise InputError(f"{shown}: {name}: expected {rank} sizes of at least 1, found {list(array.shape)}")
    if features is None or masks is None:
        features = masks = None
    elif masks.shape != features.shape[:3]:
        raise InputError(f"{shown}: {_MASKS} is {list(masks.shape)}, but {_FEATURES} {list(features.shape)}")
    if means is not None and not means.any():
        means = None
    source = means if means is not None else features
    if source is None:
        raise InputError(
            f"{shown}: holds no memory ({_MEANS}, or {_FEATURES} and {_MASKS}); give the file that --out_path named in "
            "fill_memory or postprocess_memory"
        )
    (k, s), c = source.shape[:2], source.shape[-1]
    shapes = {_MEANS: (means, (k, s, c)), _POOLED: (pooled, (k, c)), _FEATURES: (features, (k, s, ..., c))}
    for name, (array, expected) in shapes.items():
        if array is not None and tuple(... if e is ... else n for n, e in zip(array.shape, expected, strict=True)) != (
            expected
        ):
            raise InputError(f"{shown}: {name} is {list(array.shape)}, but the memory has {k} classes, {s} references")
    counts = next((found[name] for name in _COUNTS if name in found), None)
    if counts is None:
        valid = np.asarray(np.any(means if means is not None else np.asarray(masks), axis=2))
    elif counts.shape != (k,) or counts.dtype.kind not in "iu" or not np.all((counts >= 0) & (counts <= s)):
        raise InputError(f"{shown}: the counts of references must be {k} integers from 0 to {s}")
    else:
        valid = np.arange(s) < counts[:, None]
    return UpstreamMemory(str(path), valid, means, features, masks, pooled)


def convert_upstream_memory(
    upstream: UpstreamMemory, names: Sequence[str], encoder: EncoderConfig
) -> tuple[Memory, list[str]]:
    """The memory of this package, and in words what is remarkable about the checkpoint's.

    Prototypes are made from the instance means of the checkpoint, as its own test path does, or, before
    post-processing, from its features and masks. names: of the K classes, by class index. encoder: that which made
    the features.

    Raises `InputError` if the number of classes or features is another, a class has no reference, or a mean is not
    finite (the checkpoint's mask was empty).
    """
    shown = show_path(upstream.path)
    k, s = upstream.valid.shape
    width = _width(upstream)
    if k != len(names):
        raise InputError(f"{shown}: a memory of {k} classes, but {len(names)} classes are chosen; choose the same")
    if width != encoder.embed_dim:
        raise InputError(
            f"{shown}: features of {width} numbers, but {encoder.name} makes {encoder.embed_dim}; give the encoder "
            "that the memory was made with"
        )
    if upstream.features is not None and upstream.features.shape[2] != encoder.grid**2:
        raise InputError(
            f"{shown}: {upstream.features.shape[2]} patches a reference, but {encoder.name} has {encoder.grid**2}"
        )
    again = None if upstream.features is None else _aggregate(upstream)
    means = upstream.means if upstream.means is not None else again
    assert means is not None
    for i, name in enumerate(names):
        if not upstream.valid[i].any():
            raise InputError(f"{shown}: class {name!r} has no reference")
        for j in np.flatnonzero(upstream.valid[i]):
            if not np.isfinite(means[i, j]).all() or not means[i, j].any():
                raise InputError(
                    f"{shown}: class {name!r}, reference {j}: its mask was empty, which makes the mean undefined; make "
                    "the memory again without that reference"
                )
    memory = memory_from_instance_means(
        [[means[i, j] for j in np.flatnonzero(row)] for i, row in enumerate(upstream.valid)], names
    )
    remarks = [f"{k} classes, up to {s} references each, {width} features"]
    if upstream.means is None:
        remarks.append("not post-processed: instance means made from its features and masks")
    shots = upstream.valid.sum(axis=1)
    remarks += [f"{name}: {count} of {s} references" for name, count in zip(names, shots, strict=True) if count < s]
    if again is not None and upstream.means is not None:
        remarks += _compare(upstream, again, memory, names)
    return memory, remarks


def compare_memories(ours: Memory, theirs: Memory, names: Sequence[str]) -> list[str]:
    """In words, how the prototypes of two memories of the same classes differ: the cosine of every class that does."""
    a, b = (np.asarray(memory.prototypes, np.float64) for memory in (ours, theirs))
    cosines = np.sum(a * b, axis=1)
    differ = [k for k in range(len(names)) if np.abs(a[k] - b[k]).max() > SAME * np.abs(b[k]).max()]
    if not differ:
        return [f"prototypes: the same (largest difference {np.abs(a - b).max():.1e})"]
    return [f"{names[k]}: prototypes differ, cosine {cosines[k]:.6f}" for k in differ]


def _compare(upstream: UpstreamMemory, again: np.ndarray, memory: Memory, names: Sequence[str]) -> list[str]:
    """What changes when the checkpoint's features and masks are averaged again."""
    assert upstream.means is not None and upstream.features is not None and upstream.masks is not None
    remarks = []
    for i, name in enumerate(names):
        for j in np.flatnonzero(upstream.valid[i]):
            if (difference := _relative(again[i, j], upstream.means[i, j])) > SAME:
                remarks.append(f"{name}, reference {j}: instance mean differs by {difference:.1e} when made again")
    rows = [[again[i, j] for j in np.flatnonzero(row)] for i, row in enumerate(upstream.valid)]
    remarks += compare_memories(memory_from_instance_means(rows, names), memory, names)
    if upstream.pooled is not None:
        for i, name in enumerate(names):
            weights = upstream.masks[i].sum(axis=1, dtype=np.float64) * upstream.valid[i]
            pooled = (again[i] * weights[:, None]).sum(axis=0) / max(weights.sum(), 1e-30)
            if (difference := _relative(pooled, upstream.pooled[i])) > SAME:
                remarks.append(f"{name}: pooled mean differs by {difference:.1e} when made again")
    return remarks


def _aggregate(upstream: UpstreamMemory) -> np.ndarray:
    """Instance means `[K, S, C]` from features and masks, one reference at a time; 0 where there is none."""
    assert upstream.features is not None and upstream.masks is not None
    means = np.zeros((*upstream.valid.shape, upstream.features.shape[3]), np.float32)
    with jax.default_matmul_precision("highest"):
        for i, j in zip(*np.nonzero(upstream.valid), strict=True):
            means[i, j] = np.asarray(_instance_mean(upstream.features[i, j], upstream.masks[i, j]))
    return means


_instance_mean = jax.jit(instance_mean)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _width(upstream: UpstreamMemory) -> int:
    array = upstream.means if upstream.means is not None else upstream.features
    assert array is not None
    return array.shape[-1]


def _floats(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.asarray(array, np.float32)
