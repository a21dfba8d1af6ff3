"""The job behind `ntt-jax run`: references, a memory of them, and its evaluation, in one folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntt_jax.config import DetectConfig
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.images.remote import Location
from ntt_jax.memory.bank import MemoryBank, load_memory
from ntt_jax.references.build import Negatives
from ntt_jax.references.sampling import ReferenceSet, load_references, save_references
from ntt_jax.runs import inputs
from ntt_jax.runs.evaluation_job import evaluate
from ntt_jax.runs.folder import ADVICE, differences
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.memory_job import build_memory_of, describe
from ntt_jax.runs.models import Compute, read_encoder
from ntt_jax.runs.observer import SILENT, Observer
from ntt_jax.runs.paths import make_output_folder
from ntt_jax.tiles.layout import TileConfig


def run_few_shot(
    out: Path,
    *,
    sam2: Path,
    dinov2: Path,
    reference_annotations: Path,
    reference_images: Location | None,
    choose: Callable[[CocoDataset], ReferenceSet],
    annotations: Path,
    images: Location,
    negatives: Path | None = None,
    negative_images: Location | None = None,
    config: DetectConfig | None = None,
    tiles: TileConfig | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    scorer: str = "hotcoco",
    proposals: Path | None = None,
    observer: Observer = SILENT,
    told: Callable[[MemoryBank], None] = lambda bank: None,
) -> dict[str, Any]:
    """Choose references, make their memory and evaluate it; returns the content of metrics.json.

    choose: the references among the annotations of `reference_annotations`. reference_images: their folder, `images` if
    None. told: called with a memory that has just been made. Other arguments and errors as `evaluate` and
    `build_memory`. `out` also receives references.json and memory.safetensors.
    """
    compute = compute or Compute()
    inputs.read_boxes(proposals, config or DetectConfig())  # before any work is done
    make_output_folder(out)
    references_file, memory_file = out / "references.json", out / "memory.safetensors"
    with FolderLock(out) as lock:
        sources = inputs.read_dataset(reference_annotations, observer)
        references = choose(sources)
        if references_file.exists() and not restart:
            if load_references(references_file) != references:
                raise InputError(
                    f"{references_file}: made from another reference annotation file or with other --classes, --shots "
                    f"or --seed; {ADVICE}"
                )
        else:
            save_references(references_file, references)
        folder = reference_images or images
        negative_references = inputs.read_negatives(negatives, references, negative_images or folder, exif, observer)
        current = not restart and _is_current(
            memory_file, dinov2, sources, references, negative_references, compute.dtype, exif
        )
        if not current:
            memory_file.unlink(missing_ok=True)
            bank = build_memory_of(
                memory_file,
                dinov2,
                sources,
                folder,
                references,
                negative_references,
                compute,
                exif,
                restart=restart,
                observer=observer,
            )
            told(bank)
        return evaluate(
            lock,
            sam2=sam2,
            dinov2=dinov2,
            memory=memory_file,
            annotations=annotations,
            images=images,
            config=config,
            tiles=tiles,
            compute=compute,
            exif=exif,
            restart=restart,
            scorer=scorer,
            files={
                "memory": None,
                "reference_annotations": reference_annotations,
                "reference_images": reference_images,
            },
            proposals=proposals,
            observer=observer,
        )


def _is_current(
    memory_file: Path,
    dinov2: Path,
    sources: CocoDataset,
    references: ReferenceSet,
    negatives: Negatives | None,
    dtype: str,
    exif: str,
) -> bool:
    """Whether an earlier start has made this memory; `InputError` if it has made another one."""
    if not memory_file.exists():
        return False
    source_sha256 = read_encoder(dinov2).source_sha256
    made = dict(load_memory(memory_file).provenance)
    made.pop("encoder_weights", None)  # follows from encoder_sha256
    if changed := differences(made, describe(sources, references, source_sha256, negatives, dtype, exif)):
        raise InputError(f"{memory_file}: made with another {changed}; {ADVICE}")
    return True
