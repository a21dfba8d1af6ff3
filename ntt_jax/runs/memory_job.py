"""The job behind `ntt-jax memory`: references encoded one by one, and the memory file made of them."""

import functools
import glob
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import ntt_jax
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.images.remote import Location
from ntt_jax.memory.aggregate import Memory
from ntt_jax.memory.bank import MemoryBank, save_memory
from ntt_jax.references.build import Negatives, places
from ntt_jax.references.sampling import ReferenceSet, check_references
from ntt_jax.runs import inputs
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.images import groups_to_do
from ntt_jax.runs.job import durable, parts_folder, record_from_cluster
from ntt_jax.runs.memory import ReferenceWork, record_means, recorded_memory
from ntt_jax.runs.models import Compute, load_encoder, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, work
from ntt_jax.runs.paths import make_output_folder


def build_memory(
    out: Path,
    *,
    dinov2: Path,
    annotations: Path,
    images: Location,
    references: Path,
    negatives: Path | None = None,
    negative_images: Location | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    observer: Observer = SILENT,
) -> MemoryBank:
    """Encode references and write the memory file `out`; called again after a stop, it goes on where it was.

    Args:
      dinov2: converted checkpoint. annotations, images: of the references. references: the file that names them.
      negatives: annotations of negative references; negative_images: their folder, `images` if None.
      compute, exif, restart, observer: as `evaluate`.

    Returns:
      What the file holds.

    Raises:
      InputError: an input is unfit, a reference cannot be used, or the same memory is being made.
    """
    dataset = inputs.read_dataset(annotations, observer)
    chosen = inputs.read_references(references, dataset)
    negative_references = inputs.read_negatives(negatives, chosen, negative_images or images, exif, observer)
    return build_memory_of(
        out,
        dinov2,
        dataset,
        images,
        chosen,
        negative_references,
        compute or Compute(),
        exif,
        restart=restart,
        observer=observer,
    )


def build_memory_of(
    out: Path,
    dinov2: Path,
    dataset: CocoDataset,
    images: Location,
    references: ReferenceSet,
    negatives: Negatives | None,
    compute: Compute,
    exif: str,
    *,
    restart: bool,
    observer: Observer,
) -> MemoryBank:
    """`build_memory` of what has been read."""
    encoder, source_sha256, weights = read_encoder(dinov2)
    apart = compute.ray is not None
    dataset = inputs.look_at_images(dataset, images, exif, observer, inputs.reference_images(references), apart=apart)
    check_references(references, dataset)
    provenance = describe(dataset, references, source_sha256, negatives, compute.dtype, exif)
    # What is encoded waits beside the memory file, under a name that no other memory of this name has.
    parts = parts_folder(out, provenance)
    make_output_folder(parts)
    try:
        with durable(parts, provenance, observer, restart=restart, key="reference") as run:
            memory = encode_left(run, dinov2, dataset, images, references, negatives, compute, observer)
            names, ids = zip(*((chosen.name, chosen.category_id) for chosen in references.classes), strict=True)
            bank = MemoryBank(memory, names, ids, encoder, {**provenance, "encoder_weights": weights()})
            save_memory(out, bank)
    except InputError:
        if not any(path.stat().st_size for path in parts.glob("*.records")):
            shutil.rmtree(parts, ignore_errors=True)
        raise
    for left in out.parent.glob(f"{glob.escape(out.name)}.{'[0-9a-f]' * 12}.parts"):
        shutil.rmtree(left, ignore_errors=True)
    return bank


def encode_left(
    run: RunFolder,
    dinov2: Path,
    dataset: CocoDataset,
    images: Location,
    references: ReferenceSet,
    negatives: Negatives | None,
    compute: Compute,
    observer: Observer,
) -> Memory:
    """Encode and record the references that have no record yet, then make the memory of all."""
    negative_set = None if negatives is None else negatives.references
    numbers = range(len(places(references)) + (len(places(negative_set)) if negative_set else 0))
    if todo := {number for number in numbers if number not in run.records}:
        groups = groups_to_do(numbers, todo.__contains__, compute.batch_size)
        encoder = load_encoder(dinov2, compute) if compute.ray is None else None
        with work(observer, "memory", len(todo), unit="references"):
            if encoder is None:
                own = inputs.sendable(dataset, _annotations(references))
                if negatives is not None:
                    theirs = inputs.sendable(negatives.dataset, _annotations(negatives.references))
                    negatives = negatives._replace(dataset=theirs)
                sent = ReferenceWork(functools.partial(load_encoder, dinov2), own, images, references, negatives)
                record_from_cluster(run, sent, groups, todo, compute, observer)
                return recorded_memory(run, references, negative_set)
            record_means(
                run,
                encoder,
                dataset,
                images,
                references,
                negatives=negatives,
                numbers=list(chain.from_iterable(groups)),
                todo=todo,
                step=observer.step,
            )
    return recorded_memory(run, references, negative_set)


def _annotations(references: ReferenceSet) -> list[int]:
    return [reference.annotation_id for _, reference in places(references)]


def describe(
    dataset: CocoDataset,
    references: ReferenceSet,
    encoder_sha256: str,
    negatives: Negatives | None,
    dtype: str,
    exif: str,
) -> dict[str, Any]:
    """Where a memory comes from: the same inputs give the same description."""

    def listed(some: ReferenceSet) -> dict[str, Any]:
        return {str(c.category_id): [[r.image_id, r.annotation_id] for r in c.references] for c in some.classes}

    more: dict[str, Any] = {}
    if negatives is not None:
        more = {"negatives_sha256": negatives.dataset.sha256, "negatives": listed(negatives.references)}
    return {
        "encoder_sha256": encoder_sha256,
        "annotations_sha256": dataset.sha256,
        "references": listed(references),
        **more,
        "shots": references.shots,
        "seed": references.seed,
        "dtype": dtype,
        **inputs.exif_identity(exif),
        "tool": f"ntt-jax {ntt_jax.__version__}",
    }
