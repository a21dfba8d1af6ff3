"""Folders of references to a memory file's content, with models from files: what `ntt-jax fit` does."""

from pathlib import Path

import jax

from ntt_jax.config import arithmetic
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.notes import Notes
from ntt_jax.references.folder import FoundReferences
from ntt_jax.runs.models import Compute, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, warn, work
from ntt_jax.segmenter.classes import memory_of, to_bank
from ntt_jax.segmenter.learner import Learner


def fit_memory(
    found: FoundReferences,
    *,
    dinov2: Path,
    sam2: Path | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    observer: Observer = SILENT,
) -> MemoryBank:
    """The memory of the references of folders: the one of `Segmenter.fit` and `Segmenter.save`.

    Args:
      found: what `find_references` took of the folders.
      dinov2, sam2: checkpoints; SAM 2 makes masks where a reference is a box.
      compute: how the models run; references are encoded one by one, on the first device.
      exif: as for `Segmenter`.
      observer: hears of progress, and of what is left out or doubtful.

    Raises:
      InputError: a class of which no reference can be used, boxes without SAM 2, unusable checkpoints.
    """
    compute = Compute() if compute is None else compute
    dtype, precision = arithmetic(compute.dtype)
    encoder = load_dinov2(dinov2, dtype)
    masker = load_sam2(sam2, dtype) if sam2 is not None and found.boxes else None
    devices = jax.local_devices() if compute.devices is None else compute.devices
    learner = Learner(masker, encoder, devices=devices, matmul_precision=precision, exif=exif)
    notes = Notes()
    with work(observer, "references", len(found.references), unit="references"):
        classes, unusable = learner.from_folder(found, notes, step=observer.step)
    found.with_left_out(unusable).note(notes)
    for line in notes.lines():
        warn(observer, line)
    provenance = {"encoder_sha256": read_encoder(dinov2)[1], "folder_sha256": found.sha256()}
    return to_bank(classes, memory_of(classes), encoder, provenance)
