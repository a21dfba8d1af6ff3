"""What jobs read before they begin: annotations, references, negative references, and whether they fit each other."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.config import DetectConfig
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.bank_classes import match_classes
from ntt_jax.datasets.box_proposals import BoxProposals, load_box_proposals
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.datasets.image_files import survey
from ntt_jax.detection.boxes import best_boxes
from ntt_jax.errors import InputError
from ntt_jax.files import read_bytes, show_path
from ntt_jax.images.remote import Location
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.notes import Notes
from ntt_jax.references.build import Negatives
from ntt_jax.references.negatives import negative_set
from ntt_jax.references.sampling import MAX_REFERENCE_BYTES, ReferenceSet, parse_references
from ntt_jax.runs.images import check_images
from ntt_jax.runs.observer import Observer, warn
from ntt_jax.tiles.layout import TileConfig, check_tiles
from ntt_jax.upstream.references import parse_upstream_references


def read_dataset(path: Path, observer: Observer) -> CocoDataset:
    """`load_dataset`; the observer hears what was read in another way than it is written."""
    dataset = load_dataset(path)
    for note in dataset.notes:
        warn(observer, f"{show_path(path)}: {note}")
    return dataset


def look_at_images(
    dataset: CocoDataset,
    folder: Location,
    exif: str,
    observer: Observer,
    image_ids: Collection[int] | None = None,
    *,
    apart: bool = False,
) -> CocoDataset:
    """`image_files.survey`, which may change names, sizes and orientation; the observer hears what it notes."""
    found = survey(dataset, folder, exif=exif, image_ids=image_ids, apart=apart)
    for note in found.notes[len(dataset.notes) :]:
        warn(observer, note)
    return found


def sendable(dataset: CocoDataset, annotation_ids: Collection[int] = ()) -> CocoDataset:
    """A data set that another process can be sent: its images, and of its annotations these."""
    return dataclasses.replace(
        dataset,
        images=dict(dataset.images),
        annotations={id: dataset.annotations[id] for id in annotation_ids},
        categories=dict(dataset.categories),
        image_annotations={},
        files=dict(dataset.files),
        federated=None,
        image_ids={},
        category_ids={},
    )


def read_boxes(path: Path | None, config: DetectConfig) -> tuple[DetectConfig, BoxProposals | None]:
    """The boxes of a file as prompts, and the configuration that takes them: in place of the points, unless it says
    "join". Raises `InputError` if there is no file and the configuration asks for one."""
    if path is None:
        if config.proposals != "none":
            raise InputError(f"proposals={config.proposals}: the method takes boxes as prompts; give --proposals FILE")
        return config, None
    config = config.taking_boxes()
    return config, load_box_proposals(path)


def boxes_by_image(
    boxes: BoxProposals | None,
    config: DetectConfig,
    dataset: CocoDataset,
    observer: Observer,
    names: Mapping[str, int] | None = None,
) -> dict[int, np.ndarray] | None:
    """The boxes of each image of a data set that are used, for `segment_images`; None if there are none to take.

    names: image ids by file name, those of the data set if None. The observer hears what was left out.
    """
    if boxes is None:
        return None
    entries = dataset.images.values()
    sizes = {image.id: (image.height, image.width) for image in entries}
    if names is None:
        names = {name: image.id for image in entries for name in (image.file_name, image.written) if name is not None}
    ids: dict[int | str, int] = {image_id: image_id for image_id in sizes}
    ids |= {written: image_id for image_id, written in dataset.image_ids.items()}
    found, lines = boxes.of_images(sizes, names, ids)
    for line in lines:
        warn(observer, line)
    return {image_id: best_boxes(rows, config) for image_id, rows in found.items()}


def exif_identity(exif: str) -> dict[str, str]:
    """What another reading of orientations than "upright" adds to the description of a run."""
    return {} if exif == "upright" else {"exif": exif}


def tiles_identity(tiles: TileConfig | None, config: DetectConfig) -> dict[str, Any]:
    """What tiles add to the description of a run. Raises `InputError` for tiles together with given boxes."""
    check_tiles(tiles, config)
    return {} if tiles is None else {"tiles": dataclasses.asdict(tiles)}


def read_references(path: Path, dataset: CocoDataset) -> ReferenceSet:
    """Read a reference file, ours or upstream's pickle (recognised by its first byte or its name)."""
    data = read_bytes(path, max_bytes=MAX_REFERENCE_BYTES, what="reference file")
    if data.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return parse_upstream_references(data, path, dataset)
    return parse_references(data, path)


def reference_images(references: ReferenceSet) -> list[int]:
    """Ids of the images of all references, each once."""
    return list(dict.fromkeys(r.image_id for chosen in references.classes for r in chosen.references))


def read_negatives(
    path: Path | None, references: ReferenceSet, folder: Location, exif: str, observer: Observer
) -> Negatives | None:
    """The negative references in a file of annotations, whose images lie in `folder`; None without a file."""
    if path is None:
        return None
    dataset = look_at_images(read_dataset(path, observer), folder, exif, observer)
    notes = Notes()
    chosen = negative_set(dataset, references, notes)
    for note in notes.lines():
        warn(observer, note)
    try:
        check_images(dataset, folder)
    except InputError as error:
        raise InputError(f"{error} with --negative-images") from None
    return Negatives(dataset, folder, chosen)


def match_bank(
    bank: MemoryBank, dataset: CocoDataset, observer: Observer
) -> tuple[MemoryBank, CocoDataset, Sequence[CocoCategory]]:
    """`match_classes`: the memory with the ids of the annotation file, the data set with notes, its classes."""
    bank, categories, notes = match_classes(bank, dataset)
    for note in notes:
        warn(observer, note)
    return bank, dataclasses.replace(dataset, notes=dataset.notes + notes), categories
