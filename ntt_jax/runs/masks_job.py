"""The job behind `ntt-jax masks`: instance masks from boxes or points, by SAM 2's own prompts."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import ntt_jax
from ntt_jax.compiled.prompt_masker import PromptMasker
from ntt_jax.config import arithmetic
from ntt_jax.datasets.dataset import CocoImage
from ntt_jax.files import make_folder, show_path, write_json
from ntt_jax.images.drawing import overlay, prompt_marks, save_picture
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.remote import Location
from ntt_jax.images.rle import Rle, encode_masks
from ntt_jax.loading import load_sam2
from ntt_jax.references.prompted import PromptedAnnotations, load_prompted, with_masks
from ntt_jax.runs import inputs
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.images import check_images, read_checked
from ntt_jax.runs.job import durable, parts_folder
from ntt_jax.runs.models import Compute
from ntt_jax.runs.observer import SILENT, Observer, warn, work
from ntt_jax.runs.paths import make_output_folder
from weight_port.files import sha256


@dataclass(frozen=True)
class MadeMasks:
    """What `make_masks` wrote and left out.

    content: of the file. made, empty, doubtful: positions of annotations with a new mask, with an empty one, and with
    one that SAM 2 rates below 0.5. images: how many were to do; skipped: how many of them could not be used. kept:
    annotations that keep their mask; crowds: crowds, which are left as they are.
    """

    content: dict[str, Any]
    made: list[int]
    empty: list[int]
    doubtful: list[int]
    images: int
    skipped: int
    kept: int
    crowds: int


def make_masks(
    out: Path,
    *,
    sam2: Path,
    boxes: Path,
    images: Location,
    pictures: Path | None = None,
    replace: bool = False,
    compute: Compute | None = None,
    exif: str = "upright",
    observer: Observer = SILENT,
) -> MadeMasks:
    """Write the annotations of `boxes` with masks to `out`; called again after a stop, it goes on where it was.

    Args:
      sam2: converted checkpoint. boxes: COCO annotations with boxes or points, whose images lie in `images`.
      pictures: folder for pictures of the masks. replace: make new masks of annotations that have one.
      compute, exif, observer: as `evaluate`; one image at a time, on one device.

    Raises:
      InputError: an input is unfit, or the same file is being made.
    """
    compute = compute or Compute()
    prompted = load_prompted(boxes, replace=replace)
    for note in prompted.dataset.notes:
        warn(observer, f"{show_path(boxes)}: {note}")
    dataset = inputs.look_at_images(prompted.dataset, images, exif, observer, prompted.prompts)
    prompted = dataclasses.replace(prompted, dataset=dataset)
    if prompted.prompts:
        check_images(prompted.dataset, images)
    identity = {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(sam2),
        "annotation file": prompted.sha256,
        "dtype": compute.dtype,
        "pictures": None if pictures is None else str(pictures.resolve()),
        "replace": replace,
        **inputs.exif_identity(exif),
    }
    parts = parts_folder(out, identity)
    make_output_folder(parts)
    with durable(parts, identity, observer) as run:
        _mask_left(run, sam2, prompted, images, pictures, compute, observer)
        records = [run.records.read(image_id) for image_id in prompted.prompts]
    masks: dict[int, tuple[Rle, float]] = {}
    for record in records:
        for index, counts, predicted_iou in record.get("masks", ()):
            image = prompted.dataset.images[record["image_id"]]
            masks[index] = Rle(size=[image.height, image.width], counts=counts), predicted_iou
    content = with_masks(prompted, masks)
    write_json(out, content)
    shutil.rmtree(parts, ignore_errors=True)
    return _outcome(prompted, content, records)


def _mask_left(
    run: RunFolder,
    sam2: Path,
    prompted: PromptedAnnotations,
    folder: Location,
    pictures: Path | None,
    compute: Compute,
    observer: Observer,
) -> None:
    """Make and record the masks of every image that has no record yet."""
    todo = [prompted.dataset.images[image_id] for image_id in prompted.prompts if image_id not in run.records]
    if not todo:
        return
    dtype, precision = arithmetic(compute.dtype)
    masker = PromptMasker(load_sam2(sam2, dtype), matmul_precision=precision)
    total = len(prompted.prompts)
    with work(observer, "masks", total, done=total - len(todo)):
        ahead = map_ahead(lambda image: read_checked(prompted.dataset, folder, image), todo, ahead=4)
        for image, pixels in zip(todo, ahead, strict=True):
            if isinstance(pixels, str):
                observer.note(f"skipped: {pixels}")
                record: dict[str, Any] = {"image_id": image.id, "skipped": pixels}
            else:
                record = {"image_id": image.id, "masks": _masks(masker, prompted, image, pixels, pictures)}
            run.records.append([record])
            observer.step()


def _masks(
    masker: PromptMasker, prompted: PromptedAnnotations, image: CocoImage, pixels: np.ndarray, pictures: Path | None
) -> list[list[Any]]:
    """Position, run lengths and predicted IoU of each mask of one image; draws them where that is asked for."""
    indices, prompts = zip(*prompted.prompts[image.id], strict=True)
    masks, ious = masker(pixels, prompts)
    if pictures is not None:
        names = prompted.names(indices)
        captions = [f"{name} {iou:.2f}" for name, iou in zip(names, ious, strict=True)]
        colours = list(range(len(indices)))  # one for each object: neighbours of a class must be told apart
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        points = [
            (*xy, label == 1) for prompt in prompts for xy, label in zip(prompt.points, prompt.labels, strict=True)
        ]
        drawn = prompt_marks(overlay(pixels, masks, colours, captions), boxes, points)
        path = pictures / PurePosixPath(image.file_name.replace("\\", "/")).with_suffix(".png")
        make_folder(path.parent, pictures)
        save_picture(path, drawn)
    return [[i, r["counts"], float(iou)] for i, r, iou in zip(indices, encode_masks(masks), ious, strict=True)]


def _outcome(prompted: PromptedAnnotations, content: dict[str, Any], records: list[dict[str, Any]]) -> MadeMasks:
    annotations = content["annotations"]
    asked = {i: image_id for image_id, some in prompted.prompts.items() for i, _ in some}
    made = [i for i in asked if annotations[i].get("segmentation")]
    missed = {record["image_id"] for record in records if "skipped" in record}
    return MadeMasks(
        content,
        made,
        empty=[i for i in asked if i not in made and asked[i] not in missed],
        doubtful=[i for i in made if annotations[i]["predicted_iou"] < 0.5],
        images=len(prompted.prompts),
        skipped=len(missed),
        kept=prompted.kept,
        crowds=prompted.crowds,
    )
