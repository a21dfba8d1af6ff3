"""`ntt-jax evaluate`: segment every image of an annotation file and compare with its annotations."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import options

EPILOG = """\
example:
  ntt-jax evaluate --sam2 sam2_hiera_large.safetensors --dinov2 dinov2_vitl14.safetensors \\
                   --memory memory.safetensors --annotations instances_val2017.json --images val2017 --out runs/30shot

RUN_DIR/results.json holds the detections in COCO results format, RUN_DIR/metrics.json the AP of boxes and masks.
Finished images are saved as they come. When the run was stopped, whatever the reason, the same command goes on where
it was. An image that is missing or cannot be read is named, counted in metrics.json and left out."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "evaluate", run, "segment the images of an annotation file and compare with its annotations", EPILOG
    )
    options.add_sam2(parser)
    options.add_dinov2(parser)
    options.add_memory(parser)
    options.add_dataset(parser)
    add_run_folder(parser)
    options.add_detection(parser)
    options.add_compute(parser)


def add_run_folder(parser: Any) -> None:
    """`--out` and `--restart`."""
    parser.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="folder of this run")
    parser.add_argument(
        "--restart", action="store_true", help="throw away what RUN_DIR holds of an earlier run and start over"
    )


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_file(args.sam2, "--sam2")
    options.check_file(args.dinov2, "--dinov2")
    options.check_file(args.memory, "--memory")
    options.check_file(args.annotations, "--annotations")
    options.check_folder(args.images, "--images")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
