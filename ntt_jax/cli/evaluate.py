"""`ntt-jax evaluate`: segment every image of an annotation file and compare with its annotations."""

import argparse
import dataclasses
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ntt_jax
from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.text import show

if TYPE_CHECKING:
    from ntt_jax.datasets.dataset import CocoDataset, CocoImage
    from ntt_jax.runs.folder import RunFolder
    from ntt_jax.runs.lock import FolderLock

EPILOG = """\
example:
  ntt-jax evaluate --sam2 sam2_hiera_large.safetensors --dinov2 dinov2_vitl14.safetensors \\
                   --memory memory.safetensors --annotations instances_val2017.json --images val2017 --out runs/30shot

RUN_DIR/results.json holds the detections in COCO results format, RUN_DIR/metrics.json the AP of boxes and masks, by
the rules of the data set that --annotations is found to be (COCO, LVIS, VOC); docs/datasets.md has a command for each.
Finished images are saved as they come. When the run was stopped, whatever the reason, the same command goes on where
it was. An image that is missing or cannot be read is named, counted in metrics.json and left out."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "evaluate", run, "segment the images of an annotation file and compare with its annotations", EPILOG
    )
    options.add_paths(parser, "sam2", "dinov2", "memory", "annotations", "images")
    add_run_folder(parser)
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_compute(parser, cores=True)


def add_run_folder(parser: Any) -> None:
    """`--out` and `--restart`."""
    parser.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="folder of this run")
    parser.add_argument(
        "--restart", action="store_true", help="throw away what RUN_DIR holds of an earlier run and start over"
    )


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "memory", "annotations", "images")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    from ntt_jax.runs.lock import FolderLock

    with FolderLock(args.out) as lock:
        evaluate(args, lock, models.read_dataset(args.annotations), args.memory)


def evaluate(args: argparse.Namespace, lock: "FolderLock", dataset: "CocoDataset", memory: Path) -> None:
    """Evaluate the memory file `memory` on `dataset` in the locked folder, as the options of this command say."""
    from ntt_jax.datasets.bank_classes import match_classes
    from ntt_jax.evaluation import prepare_ground_truth
    from ntt_jax.memory.bank import load_memory, require_encoder
    from ntt_jax.runs import images as runner
    from ntt_jax.runs.folder import RunFolder
    from weight_port.files import sha256

    options.divide_cpu(args.cores)
    bank = load_memory(memory)
    require_encoder(bank, *models.read_encoder(args.dinov2))
    bank, categories, notes = match_classes(bank, dataset)
    for note in notes:
        models.warn(note)
    dataset = dataclasses.replace(dataset, notes=dataset.notes + notes)
    dataset = models.look_at_images(args, dataset, args.images)
    runner.check_images(dataset, args.images)
    ground_truth = prepare_ground_truth(dataset, categories)
    for note in ground_truth.notes:
        models.warn(note)
    config = options.detect_config(args)
    identity = {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(args.sam2),
        "DINOv2 checkpoint": sha256(args.dinov2),
        "memory": sha256(memory),
        "annotation file": dataset.sha256,
        "classes": {str(category.id): category.name for category in categories},
        "detection options": dataclasses.asdict(config),
        "dtype": args.dtype,
        **models.exif_identity(args),
    }
    with RunFolder(lock, identity, restart=args.restart) as run:
        args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
        if run.records.dropped:
            models.warn("the last record of an earlier start was cut off; that image is done again")
        todo = runner.unfinished(run.records, dataset, args.images)
        if todo:

            def load(devices: list[Any], largest_side: int) -> Any:
                return models.load_predictor(args, bank, config, devices, largest_side)

            segment(args, run, dataset, todo, load, "evaluate")
        report(args.out, runner.write_outcome(run, dataset, ground_truth))


def segment(
    args: argparse.Namespace,
    run: "RunFolder",
    dataset: "CocoDataset",
    todo: set[int],
    load: Callable[[list[Any], int], Any],
    what: str,
    record: "Callable[[CocoImage, Any], dict[str, Any]] | None" = None,
) -> None:
    """Segment the images that are in `todo` and record what is found; note the start in run.json.

    load: makes the target pass for these devices and this largest side of an image. what: for the progress. record: as
    for `runner.segment_images`.
    """
    from ntt_jax.runs import images as runner

    devices, started = options.start_jax(args), time.time()
    largest = max(max(image.height, image.width) for image in dataset.images.values())
    predictor = load(devices, largest)
    groups = runner.groups_to_do(list(dataset.images.values()), lambda image: image.id in todo, args.batch_size)
    total = len(dataset.images)
    with Progress(what, total, done=total - len(todo)) as progress:
        try:
            runner.segment_images(
                run,
                dataset,
                args.images,
                predictor,
                images=list(chain.from_iterable(groups)),
                todo=todo,
                window=args.batch_size * len(devices),
                observer=progress,
                record=record,
            )
        finally:
            run.note_start(models.describe_start(args, devices, started, progress.steps))


def report(folder: Path, metrics: dict[str, Any]) -> None:
    """Print what a person wants to know first; warn of what they may have missed."""
    if skipped := metrics["skipped"]:
        models.warn(
            f"{len(skipped)} of {metrics['images']} images were skipped and count as missed; metrics.json lists them"
        )
    if not metrics["detections"]:
        models.warn("no detections at all; check --memory and the thresholds")
    show(f"{folder}: {metrics['detections']} detections in {metrics['images']} images")
    for kind, words in (("bbox", "boxes"), ("segm", "masks"), ("semantic", "classes of pixels")):
        numbers = metrics.get(kind, {})  # boxes alone where the data set has no masks
        shown = [f"{name} {_percent(numbers[name])}" for name in _SHOWN if name in numbers]
        if shown:
            show(f"  {words}  {'  '.join(shown)}")


_SHOWN = ("AP", "AP50", "AP75", "AP50_area", "APr", "APc", "APf", "mIoU")


def _percent(value: float | None) -> str:
    return " n/a" if value is None else f"{100 * value:4.1f}"
