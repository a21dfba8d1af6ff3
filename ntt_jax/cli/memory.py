"""`ntt-jax memory`: turn the references into one prototype per class."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import options

EPILOG = """\
example:
  ntt-jax memory --dinov2 dinov2_vitl14.safetensors --annotations instances_train2017.json --images train2017 \\
                 --references references.json --out memory.safetensors

--references is the file that `ntt-jax sample` wrote, or a reference pickle of the original PyTorch code.
memory.safetensors is small (no image is in it) and belongs to the DINOv2 checkpoint it was made with."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "memory", run, "turn the references into one prototype per class", EPILOG)
    options.add_dinov2(parser)
    options.add_dataset(parser)
    parser.add_argument(
        "--references", type=Path, required=True, metavar="references.json", help="which annotations are references"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="memory.safetensors", help="file to write")
    options.add_compute(parser)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_file(args.dinov2, "--dinov2")
    options.check_file(args.annotations, "--annotations")
    options.check_folder(args.images, "--images")
    options.check_file(args.references, "--references")
    options.check_output_file(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
