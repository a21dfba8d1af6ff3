"""`ntt-jax run`: sample, memory and evaluate in one."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import evaluate, options, sample

EPILOG = """\
example:
  ntt-jax run --sam2 sam2_hiera_large.safetensors --dinov2 dinov2_vitl14.safetensors \\
              --reference-annotations instances_train2017.json --reference-images train2017 \\
              --annotations instances_val2017.json --images val2017 \\
              --classes novel --shots 30 --seed 33 --out runs/30shot

RUN_DIR receives references.json, memory.safetensors, results.json and metrics.json, exactly as the three commands
write them one after the other. Stopped, the same command goes on where it was."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "run", run, "sample, memory and evaluate in one", EPILOG)
    options.add_sam2(parser)
    options.add_dinov2(parser)
    parser.add_argument(
        "--reference-annotations",
        type=Path,
        required=True,
        metavar="TRAIN.json",
        help="COCO instance annotations among which the references are chosen",
    )
    parser.add_argument(
        "--reference-images",
        type=Path,
        metavar="DIR",
        help="folder of the images that --reference-annotations names (default: --images)",
    )
    sample.add_choice(parser)
    options.add_dataset(parser)
    evaluate.add_run_folder(parser)
    options.add_detection(parser)
    options.add_compute(parser)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_file(args.sam2, "--sam2")
    options.check_file(args.dinov2, "--dinov2")
    options.check_file(args.reference_annotations, "--reference-annotations")
    options.check_file(args.annotations, "--annotations")
    options.check_folder(args.images, "--images")
    if args.reference_images is not None:
        options.check_folder(args.reference_images, "--reference-images")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
