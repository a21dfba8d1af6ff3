"""`ntt-jax masks`: instance masks from boxes or points, by SAM 2's own prompts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.images.remote import location
from ntt_jax.text import counted, show

if TYPE_CHECKING:
    from ntt_jax.runs.masks_job import MadeMasks

EPILOG = """\
examples:
  ntt-jax masks --sam2 W --boxes boxes.json --images train --out masks.json --pictures check/
  ntt-jax sample --annotations masks.json --classes all --shots 5 --out references.json

boxes.json is COCO annotations without masks: each annotation has a "bbox", or "points": [[x, y], ...] on the object
([x, y, 0]: not on it), or both. masks.json is the same file with masks, ready for the other commands; "predicted_iou"
is how good SAM 2 expects each one to be. Look at the pictures: a wrong mask makes a wrong class.

When stopped, the same command continues where it was."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "masks", run, "make instance masks from boxes or points", EPILOG)
    options.add_paths(parser, "sam2")
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="A.json", help="COCO annotations with boxes or points"
    )
    parser.add_argument(
        "--images", type=location, required=True, metavar="DIR", help="folder of the images that --boxes names"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="masks.json", help="file to write")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also draw the masks over the images, to check")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="also replace the masks of annotations that have one (default: keep them)",
    )
    options.add_exif(parser)
    options.add_compute(parser, batches=False)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "boxes", "images")
    options.check_output_file(args.out)
    if args.pictures is not None:
        options.make_output_folder(args.pictures, "--pictures")


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.runs.masks_job import make_masks

    args.resume_hint = "what is finished is saved; the same command goes on from there"
    made = make_masks(
        args.out,
        sam2=args.sam2,
        boxes=args.boxes,
        images=args.images,
        pictures=args.pictures,
        replace=args.replace,
        compute=compute,
        exif=args.exif,
        observer=Progress(),
    )
    report(args.out, made)


def report(out: Path, made: "MadeMasks") -> None:
    """Say what was made, and what was not."""
    show(f"{out}: {counted(len(made.made), 'mask')} in {counted(made.images, 'image')}")
    if made.kept:
        show(f"  masks kept as they are: {made.kept} (--replace makes new ones)")
    if made.crowds:
        show(f"  crowds left as they are: {made.crowds}")
    if made.skipped:
        models.warn(f"images that could not be used: {made.skipped}; their annotations have no mask")
    if made.empty:
        ids = [made.content["annotations"][i]["id"] for i in made.empty]
        shown = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
        models.warn(f"empty masks: {len(made.empty)}, of annotations {shown}; check their boxes")
    if made.doubtful:
        models.warn(f"masks that SAM 2 rates below 0.5: {len(made.doubtful)}; look at them before using them")
