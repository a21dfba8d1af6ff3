"""The job behind `ntt-jax ablate`: many memories on the same images in one run."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.ablation.detections import SharedDetections
from ntt_jax.ablation.memories import distinct_references, leave_one_out, sample_many, stack_prototypes
from ntt_jax.ablation.predictor import ManyPredictor
from ntt_jax.ablation.scoring import evaluate_shared
from ntt_jax.ablation.tables import by_reference, by_shots
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.bank_classes import same_categories
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset, select_classes
from ntt_jax.errors import InputError
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.files import show_path, write_json
from ntt_jax.images.remote import Location
from ntt_jax.memory.aggregate import Memory
from ntt_jax.memory.bank import load_memory, require_encoder
from ntt_jax.notes import Notes
from ntt_jax.references.sampling import ReferenceSet, check_references, used_classes
from ntt_jax.runs import inputs
from ntt_jax.runs.evaluation_job import largest_side, target_identity
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.images import check_images, skipped_images, unfinished
from ntt_jax.runs.job import durable, segment_left
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.memory_job import describe, encode_left
from ntt_jax.runs.models import Compute, TargetPass, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, warn
from ntt_jax.runs.paths import make_output_folder
from ntt_jax.segmenter.classes import from_bank
from weight_port.files import sha256


@dataclasses.dataclass(frozen=True)
class Shots:
    """Memories of several numbers of shots and seeds, chosen among the annotations of a file.

    images: folder of its images, that of the targets if None. classes: as `select_classes`. allow_fewer: go on when a
    class has fewer usable references than shots.
    """

    annotations: Path
    images: Location | None
    classes: str
    shots: Sequence[int]
    seeds: Sequence[int]
    allow_fewer: bool = False


@dataclasses.dataclass(frozen=True)
class Targets:
    """The images of an ablation and how they are segmented; as the arguments of `runs.evaluate`."""

    sam2: Path
    dinov2: Path
    annotations: Path
    images: Location
    config: DetectConfig
    compute: Compute
    exif: str
    restart: bool
    scorer: str = "hotcoco"


def ablate(
    out: Path,
    memories: Shots | Path,
    *,
    sam2: Path,
    dinov2: Path,
    annotations: Path,
    images: Location,
    config: DetectConfig | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    scorer: str = "hotcoco",
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """Evaluate many memories on the same images; called again after a stop, it goes on where it was.

    Args:
      out: folder of the run. It receives ablation.json.
      memories: those of several numbers of shots and seeds, or one memory file, whose references are left out in turn.
      Other arguments and errors as `runs.evaluate`.

    Returns:
      The content of ablation.json: `{"by_shots", "memories"}` or `{"whole", "without"}`, and "skipped", "provenance".
    """
    config = config or DetectConfig()
    config.require_plain_points("ablate")
    target = Targets(sam2, dinov2, annotations, images, config, compute or Compute(), exif, restart, scorer)
    make_output_folder(out)
    with FolderLock(out) as lock:
        if restart:
            (out / "ablation.json").unlink(missing_ok=True)
        outcome = (
            _of_shots(lock, memories, target, observer)
            if isinstance(memories, Shots)
            else _of_references(lock, memories, target, observer)
        )
        write_json(out / "ablation.json", outcome)
    return outcome


def _of_shots(lock: FolderLock, given: Shots, target: Targets, observer: Observer) -> dict[str, Any]:
    """The outcome for numbers of shots and seeds."""
    dataset = inputs.read_dataset(target.annotations, observer)
    sources, classes, sets = sample(given, observer)
    categories, order = same_classes(classes, dataset, observer)
    choice = {
        "reference annotation file": sources.sha256,
        "shots": list(given.shots),
        "seeds": list(given.seeds),
    }

    def memories() -> dict[str, Any]:
        distinct = distinct_references(list(sets.values()))
        images = given.images or target.images
        memory = encode(lock.folder, target, sources, images, distinct, observer)
        return {"prototypes": stack_prototypes(list(sets.values()), distinct, memory)[:, order]}

    files = {"reference_annotations": given.annotations, "reference_images": given.images}
    metrics, rest = _score(lock, target, dataset, categories, choice, len(sets), memories, files, observer)
    rows = by_shots(list(sets), metrics)
    found = [{"shots": s, "seed": seed, **one} for (s, seed), one in zip(sets, metrics, strict=True)]
    return {"by_shots": rows, "memories": found, **rest}


def sample(
    given: Shots, observer: Observer
) -> tuple[CocoDataset, Sequence[CocoCategory], dict[tuple[int, int], ReferenceSet]]:
    """The annotations to choose among, the classes, and the references by number of shots and seed."""
    sources = inputs.read_dataset(given.annotations, observer)
    classes = select_classes(sources, given.classes)
    if "all" in (part.strip() for part in given.classes.split(",")):
        classes, unused = used_classes(sources, classes)
        if unused:
            warn(observer, f"left out, without any annotation: {', '.join(unused)}")
    sets = sample_many(sources, classes, given.shots, given.seeds, allow_fewer=given.allow_fewer)
    if short := {name for references in sets.values() for name, _ in references.short_classes()}:
        warn(observer, f"fewer than {max(given.shots)} references for {', '.join(sorted(short))}")
    return sources, classes, sets


def _of_references(lock: FolderLock, file: Path, target: Targets, observer: Observer) -> dict[str, Any]:
    """The outcome for one memory without each of its references."""
    bank, dataset = load_memory(file), inputs.read_dataset(target.annotations, observer)
    require_encoder(bank, *read_encoder(target.dinov2))
    bank, dataset, categories = inputs.match_bank(bank, dataset, observer)
    prototypes, lacking = leave_one_out(bank.memory)
    if not lacking:
        raise InputError(f"{show_path(file)}: every class has one reference; there is none to leave out")
    memories = {"prototypes": prototypes}
    if (negatives := bank.memory.negatives) is not None:  # they serve all memories alike
        memories["negatives"] = np.broadcast_to(np.asarray(negatives), (len(prototypes), *negatives.shape))
    choice, count = {"memory": sha256(file)}, len(prototypes)
    files: dict[str, Path | None] = {"memory": file}
    metrics, rest = _score(lock, target, dataset, categories, choice, count, lambda: memories, files, observer)
    origins = [one.origins for one in from_bank(bank).values()]
    return {"whole": metrics[0], "without": by_reference(lacking, metrics, origins), **rest}


def same_classes(
    classes: Sequence[CocoCategory], dataset: CocoDataset, observer: Observer
) -> tuple[list[CocoCategory], list[int]]:
    """The classes of the references as categories of the targets, ascending, and their places among the classes.

    The observer hears which were matched by name alone. Raises `InputError` where a class is missing.
    """
    notes = Notes()
    given = [(category.id, category.name) for category in classes]
    found: list[CocoCategory] = []
    for own, category in zip(classes, same_categories(given, dataset, notes, "references"), strict=True):
        if isinstance(category, int):
            raise InputError(
                f"--annotations: the class {own.id}, {own.name!r} in --reference-annotations, is another one "
                "there or missing; give annotations with the same categories"
            )
        found.append(category)
    if len({category.id for category in found}) != len(found):
        raise InputError("--annotations: two classes of --reference-annotations are one of its categories; rename one")
    for note in notes.lines():
        warn(observer, note)
    order = sorted(range(len(found)), key=lambda place: found[place].id)
    return [found[place] for place in order], order


def _score(
    lock: FolderLock,
    target: Targets,
    dataset: CocoDataset,
    categories: Sequence[CocoCategory],
    choice: dict[str, Any],
    count: int,
    memories: Callable[[], dict[str, Any]],
    files: dict[str, Path | None],
    observer: Observer,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics of every memory on `dataset`, and what else the outcome says. memories: makes the
    `count` memories, arguments of `ManyPredictor`."""
    images, compute = target.images, target.compute
    dataset = inputs.look_at_images(dataset, images, target.exif, observer, apart=target.compute.ray is not None)
    check_images(dataset, images)
    ground_truth = prepare_ground_truth(dataset, categories)
    for note in ground_truth.notes:
        warn(observer, note)
    identity = target_identity(
        target.sam2, target.dinov2, choice, dataset, categories, target.config, compute.dtype, target.exif
    )
    with durable(lock, identity, observer, restart=target.restart) as run:
        if todo := unfinished(run.records, dataset, images):
            made = memories()
            many = TargetPass(
                target.sam2,
                target.dinov2,
                np.asarray(made["prototypes"]),
                made.get("negatives"),
                target.config,
                largest_side(dataset),
                ManyPredictor,
            )
            given = {"sam2": target.sam2, "dinov2": target.dinov2, "annotations": target.annotations, "images": images}
            segment_left(
                run,
                dataset,
                images,
                many,
                todo,
                what=f"ablate, {count} memories",
                compute=compute,
                files=given | files,
                observer=observer,
                record=shared_record,
            )
        metrics = evaluate_shared(ground_truth, lambda: shared_detections(run, dataset), count, scorer=target.scorer)
        return metrics, {"skipped": skipped_images(run, dataset), "provenance": run.identity}


def shared_record(image_id: int, found: SharedDetections) -> dict[str, Any]:
    """The record of an image."""
    return dataclasses.replace(found, image_id=image_id).to_json()


def shared_detections(run: RunFolder, dataset: CocoDataset) -> Iterator[SharedDetections]:
    """The recorded detections by ascending image id, read from the disk one by one; skipped images are left out."""
    for image_id in sorted(dataset.images):
        if not run.records.skipped(image_id):
            where = f"{show_path(run.folder)}: record of image {image_id}"
            yield SharedDetections.from_json(run.records.read(image_id), where)


def encode(
    out: Path, target: Targets, dataset: CocoDataset, images: Location, references: ReferenceSet, observer: Observer
) -> Memory:
    """The memory of all references, kept in OUT/references as they are encoded."""
    ids, apart = inputs.reference_images(references), target.compute.ray is not None
    dataset = inputs.look_at_images(dataset, images, target.exif, observer, ids, apart=apart)
    check_references(references, dataset)
    folder, compute = out / "references", target.compute
    make_output_folder(folder)
    source_sha256 = read_encoder(target.dinov2).source_sha256
    identity = describe(dataset, references, source_sha256, None, compute.dtype, target.exif)
    with durable(folder, identity, observer, restart=target.restart, key="reference") as run:
        return encode_left(run, target.dinov2, dataset, images, references, None, compute, observer)
