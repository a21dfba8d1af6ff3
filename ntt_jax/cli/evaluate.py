"""`ntt-jax evaluate`: segment every image of an annotation file and compare with its annotations."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.text import counted, show

EPILOG = """\
example:
  ntt-jax evaluate --sam2 sam2_hiera_large --dinov2 dinov2_vitl14 \\
                   --memory memory.safetensors --annotations instances_val2017.json --images val2017 --out runs/30shot

RUN_DIR/results.json holds the detections in COCO results format, RUN_DIR/metrics.json the AP of boxes and masks, by
the rules of the data set that --annotations is found to be (COCO, LVIS, VOC); docs/datasets.md has a command for each.
Finished images are saved one by one. When stopped for any reason, the same command continues where it was. An image
that is missing or cannot be read is named, counted in metrics.json and left out."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "evaluate", run, "segment the images of an annotation file and compare with its annotations", EPILOG
    )
    options.add_paths(parser, "sam2", "dinov2", "memory", "annotations", "images", remote=True)
    add_run_folder(parser)
    add_scorer(parser)
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_proposals(parser)
    options.add_tiles(parser)
    options.add_compute(parser, cores=True)
    options.add_ray(parser)


def add_run_folder(parser: Any) -> None:
    """`--out` and `--restart`."""
    parser.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="folder of this run")
    parser.add_argument(
        "--restart", action="store_true", help="throw away what RUN_DIR holds of an earlier run and start over"
    )


def add_scorer(parser: Any) -> None:
    """`--scorer`."""
    parser.add_argument(
        "--scorer",
        choices=("hotcoco", "pycocotools"),
        default="hotcoco",
        help="library that applies COCO's rules; the numbers are the same, pycocotools takes many times as long",
    )


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "memory", "annotations", "images")
    options.check_detection(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    tiles = options.tile_config(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.runs.evaluation_job import evaluate

    args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
    metrics = evaluate(
        args.out,
        sam2=args.sam2,
        dinov2=args.dinov2,
        memory=args.memory,
        annotations=args.annotations,
        images=args.images,
        config=options.detect_config(args),
        tiles=tiles,
        compute=compute,
        exif=args.exif,
        restart=args.restart,
        proposals=args.proposals,
        scorer=args.scorer,
        observer=Progress(),
    )
    report(args.out, metrics)


def report(folder: Path, metrics: dict[str, Any]) -> None:
    """Print what a person wants to know first; warn of what they may have missed."""
    if skipped := metrics["skipped"]:
        models.warn(
            f"images skipped, which count as missed: {len(skipped)} of {metrics['images']}; metrics.json lists them"
        )
    if not metrics["detections"]:
        models.warn("no detections at all; check --memory and the thresholds")
    show(f"{folder}: {counted(metrics['detections'], 'detection')} in {counted(metrics['images'], 'image')}")
    for kind, words in (("bbox", "boxes"), ("segm", "masks"), ("semantic", "classes of pixels")):
        numbers = metrics.get(kind, {})  # boxes alone where the data set has no masks
        shown = [f"{name} {_percent(numbers[name])}" for name in _SHOWN if name in numbers]
        if shown:
            show(f"  {words}  {'  '.join(shown)}")


_SHOWN = ("AP", "AP50", "AP75", "AP50_area", "APr", "APc", "APf", "mIoU")


def _percent(value: float | None) -> str:
    return " n/a" if value is None else f"{100 * value:4.1f}"
