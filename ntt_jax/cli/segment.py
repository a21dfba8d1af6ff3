"""`ntt-jax segment`: detections in plain images, without annotations."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import options

EPILOG = """\
examples:
  ntt-jax segment --sam2 W --dinov2 W --memory memory.safetensors holiday.jpg more_photos/ --out found
  ntt-jax segment --sam2 W --dinov2 W --memory memory.safetensors frames/ --classes dog,cat --out found

found/detections.json holds everything in COCO format; found/masks one PNG per detection (white on black, the size of
the image), found/overlays each image with its detections drawn on it."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "segment", run, "detections in plain images and folders", EPILOG)
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="image files or folders of them",
    )
    options.add_sam2(parser)
    options.add_dinov2(parser)
    options.add_memory(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--score-threshold",
        type=options.fraction,
        default=0.5,
        metavar="X",
        help="leave out detections that score lower (default: 0.5)",
    )
    parser.add_argument("--classes", metavar="LIST", help="only these classes of the memory, separated by commas")
    options.add_detection(parser)
    options.add_compute(parser)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_file(args.sam2, "--sam2")
    options.check_file(args.dinov2, "--dinov2")
    options.check_file(args.memory, "--memory")
    for path in args.images:
        (options.check_folder if path.is_dir() else options.check_file)(path, "IMAGE_OR_FOLDER")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
