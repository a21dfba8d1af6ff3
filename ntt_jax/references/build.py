"""References on the disk to a memory (METHOD stages 1 and 2): reading, cropping, encoding in batches, averaging.

Patch features are reduced to one mean per reference on the device, so however many references there are, what is kept
is `[K, S, C]` and not every patch of every one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.preprocess import mask_to_grid, reference_crop
from ntt_jax.images.remote import Location
from ntt_jax.memory.aggregate import Memory, check_reference, memory_from_instance_means
from ntt_jax.references.sampling import Reference, ReferenceSet, check_references


def read_reference(
    dataset: CocoDataset, folder: Location, reference: Reference, *, input_size: int, grid: int
) -> tuple[np.ndarray, np.ndarray]:
    """One reference as the encoder gets it: crop `[E, E, 3]` float32 normalised, mask `[g, g]` float32 in [0, 1].

    Raises `InputError`, naming the reference, if its image cannot be read or is not of the size that the annotation
    file says, or its mask vanishes on the patch grid.
    """
    annotation = dataset.annotations[reference.annotation_id]
    name = f"annotation {annotation.id} of {show_path(dataset.image_path(folder, reference.image_id))}"
    image = dataset.read_image(folder, reference.image_id)
    try:
        crop, soft = reference_crop(image, dataset.mask(annotation), annotation.bbox, input_size)
    except InputError as error:
        raise InputError(f"reference {name}: {error}") from None
    mask = mask_to_grid(soft, grid)
    check_reference(mask, name)
    return crop, mask


Place = tuple[int, Reference]
"""A reference of the class of this index."""


class Negatives(NamedTuple):
    """Negative references (`negatives.negative_set`), their annotation file, and the folder of its images."""

    dataset: CocoDataset
    folder: Location
    references: ReferenceSet


def places(references: ReferenceSet) -> list[Place]:
    """All references of all classes in their order, which numbers them."""
    return [(k, reference) for k, chosen in enumerate(references.classes) for reference in chosen.references]


_Source = tuple[CocoDataset, Location, Reference]


def sources(
    dataset: CocoDataset, folder: Location, references: ReferenceSet, negatives: Negatives | None
) -> list[_Source]:
    """Where every reference is read from, then every negative one: their order numbers them."""
    all_ = [(dataset, folder, reference) for _, reference in places(references)]
    if negatives is not None:
        all_ += [(negatives.dataset, negatives.folder, reference) for _, reference in places(negatives.references)]
    return all_


def encode_all(encoder: ReferenceEncoder, chosen: Sequence[_Source]) -> Iterator[list[np.ndarray]]:
    """The mean feature `[C]` float32 of every reference in order, batch by batch of the encoder.

    Raises `InputError`, naming the reference, for one that cannot be used (`read_reference`).
    """
    config, size = encoder.config, encoder.batch_size

    def read(source: _Source) -> tuple[np.ndarray, np.ndarray]:
        return read_reference(*source, input_size=config.input_size, grid=config.grid)

    read_ahead = map_ahead(read, chosen, ahead=size)
    for start in range(0, len(chosen), size):
        crops, masks = zip(*(next(read_ahead) for _ in chosen[start : start + size]), strict=True)
        yield list(encoder(crops, masks))


def collect_memory(
    references: ReferenceSet, means: Iterable[np.ndarray], negatives: ReferenceSet | None = None
) -> Memory:
    """The memory of references, and negative ones, from the mean feature `[C]` of each, in their order.

    Raises `InputError` as `memory_from_instance_means`.
    """
    remaining = iter(means)

    def per_class(chosen: ReferenceSet) -> list[list[np.ndarray]]:
        return [[next(remaining) for _ in one.references] for one in chosen.classes]

    own, names = per_class(references), [chosen.name for chosen in references.classes]
    with published_numbers("highest"):
        return memory_from_instance_means(own, names, () if negatives is None else per_class(negatives))


def build_memory(
    encoder: ReferenceEncoder,
    dataset: CocoDataset,
    folder: Path,
    references: ReferenceSet,
    *,
    negatives: Negatives | None = None,
    step: Callable[[int], None] = lambda count: None,
) -> Memory:
    """The memory of a reference set: `Memory` of K classes in its order, padded to the largest number of references.

    negatives: negative references of the same classes. step: called with the number of references encoded since the
    last call. Raises `InputError` for references that do not fit the annotation file or cannot be used, before or while
    they are encoded; there is no partial memory.
    """
    check_references(references, dataset)
    means: list[np.ndarray] = []
    for batch in encode_all(encoder, sources(dataset, folder, references, negatives)):
        means += batch
        step(len(batch))
    return collect_memory(references, means, None if negatives is None else negatives.references)
