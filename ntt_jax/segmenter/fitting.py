"""Folders of references to a memory file's content, with models from files: what `ntt-jax fit` does."""

from pathlib import Path
from typing import Any

import jax

from ntt_jax.config import arithmetic
from ntt_jax.errors import InputError
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import MemoryBank, load_memory, save_memory
from ntt_jax.notes import Notes
from ntt_jax.references.folder import FoundReferences
from ntt_jax.runs.models import Compute, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, warn, work
from ntt_jax.segmenter.classes import memory_of, to_bank
from ntt_jax.segmenter.learner import Learner
from weight_port.port import read_converted


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
    bank = to_bank(classes, memory_of(classes), encoder, _identity(found, dinov2, sam2, compute, exif))
    if dtype != "float32":  # of the checkpoint, which every command can compare, not of the rounded model
        bank.provenance["encoder_weights"] = read_encoder(dinov2).weights()
    return bank


def fit_into(
    path: Path,
    found: FoundReferences,
    *,
    dinov2: Path,
    sam2: Path | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    observer: Observer = SILENT,
) -> MemoryBank:
    """`fit_memory` into the file `path`, unless that holds the memory of these references and models already.

    Raises `InputError` as `fit_memory`, and if the file cannot be written.
    """
    compute = Compute() if compute is None else compute
    identity = _identity(found, dinov2, sam2, compute, exif)
    try:
        bank = load_memory(path)
        if {key: bank.provenance.get(key) for key in identity} == identity:
            return bank
    except InputError:  # not there, or damaged
        pass
    bank = fit_memory(found, dinov2=dinov2, sam2=sam2, compute=compute, exif=exif, observer=observer)
    save_memory(path, bank)
    return bank


def _identity(found: FoundReferences, dinov2: Path, sam2: Path | None, compute: Compute, exif: str) -> dict[str, Any]:
    """What a memory depends on, for its provenance."""
    identity = {"folder_sha256": found.sha256(), "encoder_sha256": read_encoder(dinov2).source_sha256}
    if sam2 is not None and found.boxes:
        identity["sam2_sha256"] = read_converted(sam2).metadata.get("source_sha256", "")
    return {
        **identity,
        "dtype": compute.dtype,
        "exif": exif,
    }
