"""The job behind `ntt-jax segment`: photos without annotations, whatever their number, and files of what is found.

Every photo is segmented once. Its record holds all that scored, however low, under a hash of the photo's bytes: photos
may be added, renamed and moved, and only those whose content is new are segmented. Thresholds, classes, pictures and
formats choose among what is recorded, so others cost no new pass.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ntt_jax
from ntt_jax.config import DEFAULT_THRESHOLD, DetectConfig
from ntt_jax.datasets.dataset import CocoDataset, CocoImage, make_dataset
from ntt_jax.detection.thresholds import by_class, class_indices, of_memory
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.formats import check_formats
from ntt_jax.images.photos import find_photos
from ntt_jax.images.polygons import POLYGON_ERROR
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.reading import open_image_size
from ntt_jax.images.remote import Address, Location, is_pattern
from ntt_jax.images.trial import headers_apart
from ntt_jax.memory.bank import MemoryBank, load_memory, require_encoder
from ntt_jax.runs import inputs
from ntt_jax.runs.copies import check_target, copy_out, written
from ntt_jax.runs.evaluation_job import constants
from ntt_jax.runs.images import unfinished
from ntt_jax.runs.job import durable, segment_left
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.models import Compute, TargetPass, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, warn
from ntt_jax.runs.paths import make_output_folder
from ntt_jax.runs.segment_output import PICTURES, Categories, Found, Shown, check_pictures, write_output
from ntt_jax.tiles.layout import TileConfig
from weight_port.files import sha256


def segment(
    out: Path | FolderLock,
    photos: Sequence[Location],
    *,
    sam2: Path,
    dinov2: Path,
    memory: Path,
    score_threshold: float | Mapping[str, float] | None = None,
    default_threshold: float = DEFAULT_THRESHOLD,
    classes: Collection[str] | None = None,
    pictures: Collection[str] = PICTURES,
    formats: Collection[str] = (),
    polygon_error: float = POLYGON_ERROR,
    config: DetectConfig | None = None,
    tiles: TileConfig | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    copy_to: Address | None = None,
    whole: bool = True,
    proposals: Path | None = None,
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """Segment photos and write what is found; called again after a stop, whatever the reason, it goes on where it was.

    Args:
      out: folder of the run, made if needed, or its lock. It receives detections.json and the pictures.
      photos: files and folders of photos, here or elsewhere (`images.photos.find_photos`). The output folder may be
        one, or lie in one.
      sam2, dinov2: converted checkpoints (`ntt_jax.hub.resolve` has those of names). memory: file of the memory.
      score_threshold: what scores lower is not written; a number, or numbers by class name, where classes that are not
        named take `default_threshold`. None: the thresholds that the memory file keeps.
      classes: names of the classes to write, all if None. The others compete all the same.
      pictures: "masks", "overlays", both, or none.
      formats: names of `ntt_jax.formats.FORMATS`, to be written as well. polygon_error: how far, in pixels, their
        polygons may be from the borders of masks.
      config, tiles, compute, exif, observer: as for `evaluate`. restart: throw away what the folder holds of an earlier
        run.
      copy_to: where else to put what is written, each file whole (`copies.copy_out`).
      whole: return all annotations; otherwise their number by category id in their place, under "counts", and memory
        does not grow with what is found.
      proposals: as for `evaluate`; the boxes name photos by their file_name.

    Returns:
      The content of detections.json.

    Raises:
      InputError: an input is unfit, no photo can be read, or the folder is in use or holds the run of another memory,
        other models or other constants; nothing in it has changed then.
    """
    config, given_boxes = inputs.read_boxes(proposals, config or DetectConfig())
    compute = compute or Compute()
    pictures, formats = check_pictures(pictures), check_formats(formats)
    bank = load_memory(memory)
    require_encoder(bank, *read_encoder(dinov2))
    if score_threshold is None and (score_threshold := of_memory(bank.provenance, bank.class_names)):
        said = ", ".join(f"{name} {value:g}" for name, value in score_threshold.items())
        observer.note(f"thresholds of the memory file: {said}")
    shown = Shown(
        by_class(score_threshold, bank.class_names, default=default_threshold),
        None if classes is None else tuple(class_indices(classes, bank.class_names, "classes")),
        pictures,
        formats,
        polygon_error,
    )
    identity = run_identity(sam2, dinov2, bank, config, compute.dtype, exif) | inputs.tiles_identity(tiles, config)
    identity |= {} if given_boxes is None else {"proposals": given_boxes.sha256}
    memories = bank.memory.prototypes, bank.memory.negatives
    arrays = [None if array is None else np.asarray(array) for array in memories]
    files: dict[str, Location | None] = {"sam2": sam2, "dinov2": dinov2, "memory": memory}
    return segment_photos(
        out,
        photos,
        TargetPass(sam2, dinov2, arrays[0], arrays[1], config, largest_side=640, tiles=tiles),
        bank,
        shown,
        identity=identity,
        files=files | ({} if proposals is None else {"proposals": proposals}),
        boxes=lambda dataset, ids: inputs.boxes_by_image(given_boxes, config, dataset, observer, ids),
        compute=compute,
        exif=exif,
        restart=restart,
        copy_to=copy_to,
        whole=whole,
        observer=observer,
    )


def segment_photos(
    out: Path | FolderLock,
    photos: Sequence[Location],
    target: Any,
    classes: MemoryBank | Categories,
    shown: Shown,
    *,
    identity: dict[str, Any],
    files: Mapping[str, Location | None],
    boxes: Callable[[CocoDataset, dict[str, int]], Any] = lambda dataset, ids: None,
    compute: Compute,
    exif: str,
    restart: bool,
    copy_to: Address | None,
    whole: bool = True,
    observer: Observer,
) -> dict[str, Any]:
    """Every photo through a target pass (`runs.models.TargetPass`) once, and files of what is found.

    classes: that the labels of detections stand for. shown: what is written. identity: what the records depend on.
    files: what the pass was given, by the names of its options. boxes: of the photos as a data set and their ids, the
    proposals of each. Other arguments, result and errors as `segment`.
    """
    if copy_to is not None:
        check_target(copy_to)
    if isinstance(out, Path):
        make_output_folder(out)
    folder = out if isinstance(out, Path) else out.folder
    names = find_photos(photos, folder, lambda line: warn(observer, line))
    with durable(out, identity, observer, restart=restart) as run:
        dataset, ids, unread = as_dataset(names, exif, apart=compute.ray is not None)
        for reason in unread.values():
            observer.note(f"skipped: {reason}")
        proposals = boxes(dataset, ids)
        if todo := unfinished(run.records, dataset, Path()):
            given = {**files, "images": photos[0] if len(photos) == 1 and _is_folder(photos[0]) else None}
            segment_left(
                run,
                dataset,
                Path(),
                target,
                todo,
                what="segment",
                compute=compute,
                files=given,
                observer=observer,
                boxes=proposals,
            )
        unread |= {
            name: str(run.records.read(image_id)["skipped"])
            for name, image_id in ids.items()
            if run.records.skipped(image_id)
        }
        if len(unread) == len(names):
            first = next(unread[name] for name in names)
            raise InputError(f"none of the {len(names)} images could be read; the first: {first}")
        found = Found(run, {name: (path, ids.get(name, -1)) for name, path in names.items()}, unread, exif)
        content = write_output(folder, found, classes, shown, observer, whole=whole)
        if copy_to is not None:
            copy_out(folder, written(folder, shown.pictures, shown.formats, "detections.json"), copy_to, observer)
        return content


def run_identity(
    sam2: Path, dinov2: Path, bank: MemoryBank, config: DetectConfig, dtype: str, exif: str
) -> dict[str, Any]:
    """What the records of a run depend on, beside the photos: two runs with equal ones may share a folder."""
    return {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(sam2),
        "DINOv2 checkpoint": sha256(dinov2),
        "memory": memory_digest(bank),
        "detection options": constants(config),
        "dtype": dtype,
        **inputs.exif_identity(exif),
    }


def as_dataset(
    names: Mapping[str, Location], exif: str, *, apart: bool = False
) -> tuple[CocoDataset, dict[str, int], dict[str, str]]:
    """Photos as a data set without annotations, the image id of each name, and why other photos cannot be read.

    The id of a photo comes from its bytes, so that photos of equal content are one image. That of one elsewhere, which
    is fetched by whoever segments it, comes from its address and what its store says of its content; its size is not
    known yet. apart: another process looks at photos, so that one that kills its reader does not kill this one.
    """
    images: dict[int, CocoImage] = {}
    files: dict[int, str | Address] = {}
    ids: dict[str, int] = {}
    unread: dict[str, str] = {}
    looks = _looks([place for place in names.values() if isinstance(place, Path)], exif, apart)
    for name, place in names.items():
        looked = (address_id(place), (0, 0)) if isinstance(place, Address) else next(looks)
        if isinstance(looked, str):
            unread[name] = looked
            continue
        image_id, (height, width) = looked
        ids[name] = image_id
        images.setdefault(image_id, CocoImage(image_id, name, height, width))
        files.setdefault(image_id, place if isinstance(place, Address) else os.path.abspath(place))
    dataset = dataclasses.replace(make_dataset("photos", "", images, {}, {}), files=files, exif=exif)
    return dataset, ids, unread


def _looks(paths: Sequence[Path], exif: str, apart: bool) -> Iterator[tuple[int, tuple[int, int]] | str]:
    """The id of each photo and its height and width, or in one line why it cannot be read."""
    if not apart:
        yield from map_ahead(lambda path: _look(path, exif), paths, ahead=8)
        return
    for found in headers_apart(paths, hashed=True):
        yield found if isinstance(found, str) else (_as_id(found[0]), found[1].size(exif))


def _look(path: Path, exif: str) -> tuple[int, tuple[int, int]] | str:
    try:
        return photo_id(path), open_image_size(path, exif=exif)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{show_path(path)}: {error.strerror or error}"


def _is_folder(place: Location) -> bool:
    return not is_pattern(place) if isinstance(place, Address) else place.is_dir()


def photo_id(path: Path) -> int:
    """A number below 2^63 that stands for the bytes of a file: the beginning of their SHA-256."""
    return _as_id(sha256(path))


def address_id(address: Address) -> int:
    """A number as `photo_id` that stands for an address and what its store says of the content there."""
    return _as_id(hashlib.sha256(b"address\0" + address.identity.encode("utf-8", "surrogateescape")).hexdigest())


def _as_id(digest: str) -> int:
    return int(digest[:16], 16) >> 1


def memory_digest(bank: MemoryBank) -> str:
    """SHA-256 of what a memory's detections depend on: prototypes, negatives and class ids; no names, no thresholds."""
    digest = hashlib.sha256(repr(bank.category_ids).encode())
    for array in (bank.memory.prototypes, bank.memory.negatives):
        digest.update(b"none" if array is None else repr(np.shape(array)).encode() + np.asarray(array, "<f4").tobytes())
    return digest.hexdigest()
