"""`ntt-jax memory`: turn the references into one prototype per class."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import options
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.images.remote import location
from ntt_jax.text import counted, show

if TYPE_CHECKING:
    from ntt_jax.memory.bank import MemoryBank

EPILOG = """\
example:
  ntt-jax memory --dinov2 dinov2_vitl14 --annotations instances_train2017.json --images train2017 \\
                 --references references.json --out memory.safetensors

--references is the file that `ntt-jax sample` wrote, or a reference pickle of the original PyTorch code.
memory.safetensors is small (no image is in it) and belongs to the DINOv2 checkpoint it was made with. Finished
references are kept beside it until it is complete: when stopped, the same command goes on where it was.

--negatives names hard negatives, objects that look like a class but do not belong to it: COCO annotations with masks,
whose category is the class that they are mistaken for. What looks more like them than like the class scores lower.
`ntt-jax negatives` chooses some among the mistakes of a first run."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "memory", run, "turn the references into one prototype per class", EPILOG)
    options.add_paths(parser, "dinov2", "annotations", "images", "references", remote=True)
    add_negatives(parser)
    options.add_exif(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="memory.safetensors", help="file to write")
    options.add_compute(parser)
    options.add_ray(parser)


def add_negatives(parser: Any) -> None:
    """`--negatives` and `--negative-images`."""
    parser.add_argument(
        "--negatives",
        type=Path,
        metavar="N.json",
        help="COCO annotations of hard negatives, objects that only look like a class (default: none)",
    )
    parser.add_argument(
        "--negative-images",
        type=location,
        metavar="DIR",
        help="folder of the images that --negatives names (default: that of the references)",
    )


def check_negatives(args: argparse.Namespace) -> None:
    """Raise `InputError` for options of `add_negatives` that cannot work."""
    options.check_paths(args, "negatives", "negative_images")
    if args.negative_images is not None and args.negatives is None:
        raise InputError("--negative-images: are those of --negatives; give that too")


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "dinov2", "annotations", "images", "references")
    check_negatives(args)
    options.check_output_file(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.runs.memory_job import build_memory

    args.resume_hint = "what is finished is saved; the same command goes on from there"
    bank = build_memory(
        args.out,
        dinov2=args.dinov2,
        annotations=args.annotations,
        images=args.images,
        references=args.references,
        negatives=args.negatives,
        negative_images=args.negative_images,
        compute=compute,
        exif=args.exif,
        observer=Progress(),
    )
    report(args.out, bank)


def report(out: Path, bank: "MemoryBank") -> None:
    """Say what a memory was made of."""
    negatives = sum(bank.negative_shots)
    more = f", {counted(negatives, 'negative one')}" if negatives else ""
    classes = counted(len(bank.class_names), "class", "classes")
    show(f"{out}: {classes}, {counted(sum(bank.shots), 'reference')}{more}, {bank.encoder.name}")
    for name, count, negative in zip(bank.class_names, bank.shots, bank.negative_shots, strict=True):
        show(f"  {name}: {count}" + (f", {negative} negative" if negatives else ""))
