"""The job behind `ntt-jax evaluate`: every image of an annotation file segmented, and compared with its annotations."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ntt_jax
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.images.remote import Location
from ntt_jax.memory.bank import load_memory, require_encoder
from ntt_jax.runs import inputs
from ntt_jax.runs.images import check_images, unfinished, write_outcome
from ntt_jax.runs.job import durable, segment_left
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.models import Compute, TargetPass, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, warn
from ntt_jax.runs.paths import make_output_folder
from ntt_jax.tiles.layout import TileConfig
from weight_port.files import sha256


def evaluate(
    out: Path | FolderLock,
    *,
    sam2: Path,
    dinov2: Path,
    memory: Path,
    annotations: Path,
    images: Location,
    config: DetectConfig | None = None,
    tiles: TileConfig | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    scorer: str = "hotcoco",
    files: dict[str, Location | None] | None = None,
    proposals: Path | None = None,
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """Evaluate a memory on a data set; called again after a stop, whatever the reason, it goes on where it was.

    Args:
      out: folder of the run, made if needed, or its lock. It receives results.json and metrics.json.
      sam2, dinov2: converted checkpoints (`ntt_jax.hub.resolve` has those of names). memory: file of the memory.
      annotations: COCO, LVIS or VOC annotations of the images in the folder `images`, which may be elsewhere.
      config: constants of the method, the published ones if None. tiles: how large images are cut; None: not at all
        (docs/tiles.md). compute: how the models run.
      exif: "upright" or "raw", how photos with an orientation are read.
      restart: throw away what the folder holds of an earlier run.
      scorer: library that applies COCO's rules, "hotcoco" or "pycocotools"; the numbers are the same.
      files: more files for run.json, by the names of their options, where `ntt-jax report` finds them.
      proposals: boxes that are SAM 2's prompts (`datasets.box_proposals`), as `config.proposals` says, or in place of
        the points.
      observer: hears of progress, skipped images and warnings.

    Returns:
      The content of metrics.json.

    Raises:
      InputError: an input is unfit, or the folder is in use or holds another run; nothing in it has changed then.
    """
    config, given_boxes = inputs.read_boxes(proposals, config or DetectConfig())
    compute = compute or Compute()
    if isinstance(out, Path):
        make_output_folder(out)
    bank = load_memory(memory)
    require_encoder(bank, *read_encoder(dinov2))
    dataset = inputs.read_dataset(annotations, observer)
    bank, dataset, categories = inputs.match_bank(bank, dataset, observer)
    dataset = inputs.look_at_images(dataset, images, exif, observer, apart=compute.ray is not None)
    check_images(dataset, images)
    boxes = inputs.boxes_by_image(given_boxes, config, dataset, observer)
    ground_truth = prepare_ground_truth(dataset, categories)
    for note in ground_truth.notes:
        warn(observer, note)
    identity = target_identity(
        sam2, dinov2, {"memory": sha256(memory)}, dataset, categories, config, compute.dtype, exif
    )
    identity |= {} if given_boxes is None else {"proposals": given_boxes.sha256}
    identity |= inputs.tiles_identity(tiles, config)
    with durable(out, identity, observer, restart=restart) as run:
        if todo := unfinished(run.records, dataset, images):
            negatives = bank.memory.negatives
            target = TargetPass(
                sam2,
                dinov2,
                np.asarray(bank.memory.prototypes),
                None if negatives is None else np.asarray(negatives),
                config,
                largest_side(dataset),
                tiles=tiles,
            )
            given: dict[str, Location | None]
            given = {"sam2": sam2, "dinov2": dinov2, "memory": memory, "annotations": annotations, "images": images}
            given |= {**(files or {}), **({} if proposals is None else {"proposals": proposals})}
            segment_left(
                run,
                dataset,
                images,
                target,
                todo,
                what="evaluate",
                compute=compute,
                files=given,
                observer=observer,
                boxes=boxes,
            )
        return write_outcome(run, dataset, ground_truth, scorer)


def target_identity(
    sam2: Path,
    dinov2: Path,
    memories: dict[str, Any],
    dataset: CocoDataset,
    categories: Sequence[CocoCategory],
    config: DetectConfig,
    dtype: str,
    exif: str,
) -> dict[str, Any]:
    """What the numbers of a run over images depend on. memories: what the memory or memories are."""
    return {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(sam2),
        "DINOv2 checkpoint": sha256(dinov2),
        **memories,
        "annotation file": dataset.sha256,
        "classes": {str(category.id): category.name for category in categories},
        "detection options": constants(config),
        "dtype": dtype,
        **inputs.exif_identity(exif),
    }


_PUBLISHED = (
    "points_per_side",
    "pred_iou_threshold",
    "nms_iou_threshold",
    "max_candidates",
    "max_detections",
    "classes_per_mask",
    "negative_sigma",
)


def constants(config: DetectConfig) -> dict[str, Any]:
    """The published constants, and those of other rules where they are in use: a run without them is described, and
    goes on, as before there were any."""
    default = DetectConfig()
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name in _PUBLISHED or value != getattr(default, name)
    }


def largest_side(dataset: CocoDataset) -> int:
    """The longest side of any image, in pixels."""
    return max(max(image.height, image.width) for image in dataset.images.values())
