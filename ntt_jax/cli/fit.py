"""`ntt-jax fit`: a memory from folders of photos with masks, boxes or annotation files beside them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import memory, options
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.text import counted, show

if TYPE_CHECKING:
    from ntt_jax.references.folder import FoundReferences

EPILOG = """\
examples:
  ntt-jax fit references --dry-run
  ntt-jax fit references --out memory.safetensors
  ntt-jax segment photos --memory memory.safetensors --out found

What is read in the folders and below them (docs/fit.md has the details):
  masks     bus1_bus.png, bus1_bus_2.png, bus/bus1.png or masks/bus/bus1.png for the photo bus1.jpg
  LabelMe   bus1.json: polygons, rectangles, circles and masks
  COCO      annotations.json: masks, or boxes
  VOC       Annotations/bus1.xml: boxes, and masks where SegmentationObject has them
  YOLO      labels/bus1.txt: boxes or polygons, with classes.txt, obj.names or data.yaml

SAM 2 makes a mask of each box. Where every reference has a mask, --sam2 is not loaded."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "fit", run, "make a memory from folders of photos with masks, boxes or annotations", EPILOG
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="folders of photos with their masks or annotation files"
    )
    options.add_paths(parser, "sam2", "dinov2")
    parser.add_argument("--out", type=Path, metavar="memory.safetensors", help="file to write")
    parser.add_argument(
        "--dry-run", action="store_true", help="only list what would be taken, and why the rest is not; loads no model"
    )
    add_choice(parser)
    options.add_exif(parser)
    options.add_compute(parser, batches=False)


def add_choice(parser: Any) -> None:
    """Which references are taken: `--classes`, `--shots`, `--seed`, `--instances`."""
    parser.add_argument("--classes", metavar="LIST", help="only these classes, separated by commas (default: all)")
    parser.add_argument(
        "--shots",
        type=options.whole_number(1, 10**6),
        metavar="N",
        help="at most N references of each class, one from each photo first (default: all)",
    )
    parser.add_argument(
        "--seed",
        type=options.whole_number(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="seed of that choice (default: 0)",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="a mask file may number several instances; each becomes a reference",
    )


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2")
    for folder in args.folders:
        options.check_folder(folder, "FOLDER")
    if args.out is None and not args.dry_run:
        raise InputError("--out: name the memory file to write, or list what would be taken with --dry-run")
    if args.out is not None:
        options.check_output_file(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    from ntt_jax.references.folder import find_references

    classes = None if args.classes is None else [name.strip() for name in args.classes.split(",")]
    found = find_references(
        args.folders, classes=classes, shots=args.shots, seed=args.seed, instances=args.instances, exif=args.exif
    )
    if args.dry_run:
        show_found(found)
        return
    show_counts(found)
    if not found.boxes:
        args.sam2 = None  # not needed: nor fetched
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.memory.bank import save_memory
    from ntt_jax.segmenter.fitting import fit_memory

    args.resume_hint = "nothing was written"
    made = fit_memory(found, dinov2=args.dinov2, sam2=args.sam2, compute=compute, exif=args.exif, observer=Progress())
    save_memory(args.out, made)
    memory.report(args.out, made)


def show_counts(found: "FoundReferences") -> None:
    """Say how many references there are of which kind."""
    boxes = f"; SAM 2 makes the masks of {counted(found.boxes, 'box', 'boxes')}" if found.boxes else ""
    photos = len({one.photo for one in found.references})
    references = counted(len(found.references), "reference")
    classes = counted(len(found.category_ids), "class", "classes")
    show(f"{references} of {classes} in {counted(photos, 'photo')}{boxes}")


def show_found(found: "FoundReferences") -> None:
    """List every reference, everything that is left out with the reason, and the classes with their counts."""
    rows = [("class", "given", "photo", "from")]
    for one in found.references:
        number = f" object {one.number}" if one.number else ""
        rows.append((one.class_name, one.kind, found.shown(one.photo), found.shown(one.source) + number))
    widths = [min(max(len(row[i]) for row in rows), 60) for i in range(3)]
    for row in rows:
        show("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]))
    for one in found.left_out:
        show(f"{'read' if one.read else 'left out'}: {found.place(one)}: {one.reason}")
    if found.bare:
        first = found.shown(found.bare[0])
        show(f"photos without a reference: {len(found.bare)} (the first: {first})")
    show_counts(found)
    for (name, references), number in zip(found.table().items(), found.category_ids.values(), strict=True):
        boxes = sum(one.mask is None for one in references)
        kinds = [f"{count} {word}" for count, word in ((len(references) - boxes, "masks"), (boxes, "boxes")) if count]
        show(f"  {number} {name}: {', '.join(kinds)}")
