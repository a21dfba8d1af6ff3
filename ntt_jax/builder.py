"""References on the disk to a memory (METHOD stages 1 and 2): reading, cropping, encoding in batches, averaging.

Patch features are reduced to one mean per reference on the device, so however many references there are, what is kept
is `[K, S, C]` and not every patch of every one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ntt_jax.coco import CocoDataset
from ntt_jax.dinov2 import DinoVisionTransformer
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images import read_image
from ntt_jax.memory import Memory, check_reference, encode_references, memory_from_instance_means
from ntt_jax.parallel import AXIS, device_mesh, over_mesh
from ntt_jax.prefetch import map_ahead
from ntt_jax.preprocess import mask_to_grid, reference_crop
from ntt_jax.sampling import Reference, ReferenceSet, check_references


class ReferenceEncoder:
    """`encode_references` compiled for batches of one size on any number of devices.

    Args:
      dinov2: the encoder. batch_size: references per device and step. devices: the default one if None.
      matmul_precision: as for `Predictor`.
    """

    def __init__(
        self,
        dinov2: DinoVisionTransformer,
        *,
        batch_size: int = 1,
        devices: Sequence[Any] | None = None,
        matmul_precision: str = "highest",
    ):
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        mesh = device_mesh(devices)
        self.config = dinov2.config
        self.batch_size = batch_size * mesh.size
        self._precision = matmul_precision
        definition, state = nnx.split(dinov2)
        self._sharded = NamedSharding(mesh, P(AXIS))
        self._state = jax.device_put(state, NamedSharding(mesh, P()))

        def run(state: Any, crops: Array, masks: Array) -> Array:
            return encode_references(nnx.merge(definition, state), crops, masks)

        self._run = jax.jit(over_mesh(run, mesh))

    def __call__(self, crops: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """Mean features `[n, C]` float32 of n <= batch_size crops and grid masks."""
        missing = self.batch_size - len(crops)
        padded = (np.stack([*array, *[np.zeros_like(array[0])] * missing]) for array in (crops, masks))
        with jax.default_matmul_precision(self._precision):
            return np.asarray(self._run(self._state, *jax.device_put(tuple(padded), self._sharded)))[: len(crops)]


def read_reference(
    dataset: CocoDataset, folder: Path, reference: Reference, *, input_size: int, grid: int
) -> tuple[np.ndarray, np.ndarray]:
    """One reference as the encoder gets it: crop `[E, E, 3]` float32 normalised, mask `[g, g]` float32 in [0, 1].

    Raises `InputError`, naming the reference, if its image cannot be read or is not of the size that the annotation
    file says, or its mask vanishes on the patch grid.
    """
    annotation, entry = dataset.annotations[reference.annotation_id], dataset.images[reference.image_id]
    path = dataset.image_path(folder, entry.id)
    name = f"annotation {annotation.id} of {show_path(path)}"
    image = read_image(path)
    if image.shape[:2] != (entry.height, entry.width):
        found, expected = f"{image.shape[1]} x {image.shape[0]}", f"{entry.width} x {entry.height}"
        raise InputError(f"reference {name}: the image is {found} pixels, {show_path(dataset.path)} says {expected}")
    try:
        crop, soft = reference_crop(image, dataset.mask(annotation), annotation.bbox, input_size)
    except InputError as error:
        raise InputError(f"reference {name}: {error}") from None
    mask = mask_to_grid(soft, grid)
    check_reference(mask, name)
    return crop, mask


def build_memory(
    encoder: ReferenceEncoder,
    dataset: CocoDataset,
    folder: Path,
    references: ReferenceSet,
    *,
    step: Callable[[int], None] = lambda count: None,
) -> Memory:
    """The memory of a reference set: `Memory` of K classes in its order, padded to the largest number of references.

    step: called with the number of references encoded since the last call. Raises `InputError` for references that do
    not fit the annotation file or cannot be used, before or while they are encoded; there is no partial memory.
    """
    check_references(references, dataset)
    places = [(k, reference) for k, chosen in enumerate(references.classes) for reference in chosen.references]
    means: list[list[np.ndarray]] = [[] for _ in references.classes]  # per class and reference [C]

    def read(place: tuple[int, Reference]) -> tuple[np.ndarray, np.ndarray]:
        config = encoder.config
        return read_reference(dataset, folder, place[1], input_size=config.input_size, grid=config.grid)

    size = encoder.batch_size
    read_ahead = map_ahead(read, places, ahead=size)
    for start in range(0, len(places), size):
        batch = places[start : start + size]
        crops, masks = zip(*(next(read_ahead) for _ in batch), strict=True)
        for (k, _), mean in zip(batch, encoder(crops, masks), strict=True):
            means[k].append(mean)
        step(len(batch))
    with jax.default_matmul_precision("highest"):
        return memory_from_instance_means(means, [chosen.name for chosen in references.classes])
