"""`ntt-jax export`: the target pass as programs that run without this package."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import options
from ntt_jax.text import counted, show

EPILOG = """\
example:
  ntt-jax export --sam2 W --dinov2 W --memory memory.safetensors --out exported

  cd exported && python -c "import load, numpy, PIL.Image
  print(load.Exported('.')(numpy.asarray(PIL.Image.open('photo.jpg').convert('RGB'))))"

The folder holds serialized JAX programs for CPUs and NVIDIA GPUs, the weights of both models, the prototypes of the
memory's classes, and load.py, which needs jax, flatbuffers, safetensors, numpy and Pillow, and not ntt-jax. The
detection rules are part of the programs, the classes are not: another memory of the same encoder may take their place
(docs/export.md)."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "export", run, "the target pass as JAX programs that run without ntt-jax", EPILOG
    )
    options.add_paths(parser, "sam2", "dinov2", "memory")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
    options.add_detection(parser)
    options.add_compute(parser, batches=False)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "memory")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    options.start_jax(args)
    from ntt_jax.config import arithmetic
    from ntt_jax.export import export_folder
    from ntt_jax.loading import load_dinov2, load_sam2
    from ntt_jax.memory.bank import load_memory, require_encoder
    from ntt_jax.runs.models import read_encoder

    bank = load_memory(args.memory)
    require_encoder(bank, *read_encoder(args.dinov2))
    dtype, precision = arithmetic(args.dtype)
    args.resume_hint = f"{args.out} is not complete: it has no export.json"
    info = export_folder(
        args.out,
        load_sam2(args.sam2, dtype),
        load_dinov2(args.dinov2, dtype),
        bank,
        options.detect_config(args),
        matmul_precision=precision,
        extra={"dtype": args.dtype},
    )
    classes = counted(len(bank.class_names), "class", "classes")
    show(f"{args.out}: {classes}, programs for {' and '.join(info['platforms'])}")
