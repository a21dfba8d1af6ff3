"""The means of references as records of a run, and the memory that they make."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.remote import Location
from ntt_jax.images.trial import fatal
from ntt_jax.memory.aggregate import Memory
from ntt_jax.references.build import Negatives, collect_memory, encode_all, places, sources
from ntt_jax.references.sampling import Reference, ReferenceSet
from ntt_jax.runs.folder import RunFolder


def record_means(
    run: RunFolder,
    encoder: ReferenceEncoder,
    dataset: CocoDataset,
    folder: Location,
    references: ReferenceSet,
    *,
    negatives: Negatives | None = None,
    numbers: Sequence[int],
    todo: set[int],
    step: Callable[[int], None],
) -> None:
    """Encode the references of these numbers (`places`, then those of the negatives) and record those in `todo`.

    The durable half of `build_memory`: each is appended to `run.records`, so whatever ends it early, finished batches
    are saved. `recorded_memory` is the other half.
    """
    everything, numbers = sources(dataset, folder, references, negatives), list(numbers)
    for batch in encode_all(encoder, [everything[number] for number in numbers]):
        done, numbers = numbers[: len(batch)], numbers[len(batch) :]
        records = [_record(number, mean) for number, mean in zip(done, batch, strict=True) if number in todo]
        run.records.append(records)
        step(len(records))


@dataclass(frozen=True)
class ReferenceWork:
    """Groups of numbered references as work that another process can be sent: `record_means` without a folder."""

    encoder: Callable[[Any], ReferenceEncoder]
    dataset: CocoDataset
    folder: Location
    references: ReferenceSet
    negatives: Negatives | None

    def load(self, compute: Any) -> ReferenceEncoder:
        """The compiled encoder."""
        return self.encoder(compute)

    def read(self, group: Sequence[int], apart: bool) -> None:
        """Nothing yet, `do` reads. apart: raises `InputError` for an image that ends the process that reads it."""
        for dataset, folder, reference in self._sources(group) if apart else ():
            path = dataset.image_path(folder, reference.image_id)
            if (how := fatal(path)) is not None:
                raise InputError(f"{show_path(path)}: a process that reads it {how}")

    def do(self, models: ReferenceEncoder, group: Sequence[int], read: None) -> list[dict[str, Any]]:
        """One record for each reference of a group."""
        batches = encode_all(models, self._sources(group))
        return [_record(number, mean) for number, mean in zip(group, chain.from_iterable(batches), strict=True)]

    def lost(self, group: Sequence[int], reason: str) -> list[dict[str, Any]]:
        """Raises `InputError`: a memory needs every reference."""
        dataset, folder, reference = self._sources(group)[0]
        raise InputError(f"{show_path(dataset.image_path(folder, reference.image_id))}: {reason}")

    def _sources(self, group: Sequence[int]) -> list[tuple[CocoDataset, Location, Reference]]:
        everything = sources(self.dataset, self.folder, self.references, self.negatives)
        return [everything[number] for number in group]


def _record(number: int, mean: np.ndarray) -> dict[str, Any]:
    return {"reference": number, "mean": base64.b64encode(mean.astype("<f4").tobytes()).decode()}


def recorded_memory(run: RunFolder, references: ReferenceSet, negatives: ReferenceSet | None = None) -> Memory:
    """The memory of references that have all been recorded: bit for bit that of `build_memory`."""
    count = len(places(references)) + (0 if negatives is None else len(places(negatives)))
    records = (run.records.read(number) for number in range(count))
    means = (np.frombuffer(base64.b64decode(record["mean"]), "<f4") for record in records)
    return collect_memory(references, means, negatives)
