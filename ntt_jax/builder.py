"""References on the disk to a memory (METHOD stages 1 and 2): reading, cropping, encoding in batches, averaging.

Patch features are reduced to one mean per reference on the device, so however many references there are, what is kept
is `[K, S, C]` and not every patch of every one.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from ntt_jax.run_folder import RunFolder
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


Place = tuple[int, Reference]
"""A reference of the class of this index."""


def places(references: ReferenceSet) -> list[Place]:
    """All references of all classes in their order, which numbers them."""
    return [(k, reference) for k, chosen in enumerate(references.classes) for reference in chosen.references]


def encode_places(
    encoder: ReferenceEncoder, dataset: CocoDataset, folder: Path, chosen: Sequence[Place]
) -> Iterator[list[np.ndarray]]:
    """The mean feature `[C]` float32 of every reference in order, batch by batch of the encoder.

    Raises `InputError`, naming the reference, for one that cannot be used (`read_reference`).
    """
    config, size = encoder.config, encoder.batch_size

    def read(place: Place) -> tuple[np.ndarray, np.ndarray]:
        return read_reference(dataset, folder, place[1], input_size=config.input_size, grid=config.grid)

    read_ahead = map_ahead(read, chosen, ahead=size)
    for start in range(0, len(chosen), size):
        crops, masks = zip(*(next(read_ahead) for _ in chosen[start : start + size]), strict=True)
        yield list(encoder(crops, masks))


def collect_memory(references: ReferenceSet, means: Iterable[np.ndarray]) -> Memory:
    """The memory of references from the mean feature `[C]` of each, in their order.

    Raises `InputError` as `memory_from_instance_means`.
    """
    per_class: list[list[np.ndarray]] = [[] for _ in references.classes]
    for (k, _), mean in zip(places(references), means, strict=True):
        per_class[k].append(mean)
    with jax.default_matmul_precision("highest"):
        return memory_from_instance_means(per_class, [chosen.name for chosen in references.classes])


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
    means: list[np.ndarray] = []
    for batch in encode_places(encoder, dataset, folder, places(references)):
        means += batch
        step(len(batch))
    return collect_memory(references, means)


def record_means(
    run: RunFolder,
    encoder: ReferenceEncoder,
    dataset: CocoDataset,
    folder: Path,
    references: ReferenceSet,
    *,
    share: Sequence[int],
    todo: set[int],
    step: Callable[[int], None],
) -> None:
    """Encode the references of these numbers (`places`) and append a record of each that is in `todo` to `run.records`.

    The durable half of `build_memory`: whatever ends it early, finished batches are saved. `recorded_memory` is the
    other half.
    """
    everything, numbers = places(references), list(share)
    for batch in encode_places(encoder, dataset, folder, [everything[number] for number in numbers]):
        done, numbers = numbers[: len(batch)], numbers[len(batch) :]
        records = [
            {"reference": number, "mean": base64.b64encode(mean.astype("<f4").tobytes()).decode()}
            for number, mean in zip(done, batch, strict=True)
            if number in todo
        ]
        run.records.append(records)
        step(len(records))


def recorded_memory(run: RunFolder, references: ReferenceSet) -> Memory:
    """The memory of references that have all been recorded: bit for bit that of `build_memory`."""
    records = (run.records.read(number) for number in range(len(places(references))))
    return collect_memory(references, (np.frombuffer(base64.b64decode(r["mean"]), "<f4") for r in records))
