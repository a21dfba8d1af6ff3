"""`ntt-jax sample`: choose the reference instances of every class."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import models, options
from ntt_jax.errors import InputError
from ntt_jax.text import counted, show

if TYPE_CHECKING:
    from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
    from ntt_jax.references.sampling import ReferenceSet

EPILOG = """\
examples:
  ntt-jax sample --annotations instances_train2017.json --classes novel --shots 30 --seed 33 --out references.json
  ntt-jax sample --annotations train.json --classes dog,cat --shots 5 --allow-fewer --out references.json
  ntt-jax sample --annotations instances_train2017.json --classes novel --shots 10 --lists cocosplit/seed1 \\
                 --out references.json

A reference is one annotation that is not a crowd, at least 32 pixels wide and high and 10 pixels away from the border
of its image; a class takes at most one from an image. The same annotation file, classes, shots and seed give the same
references as the original PyTorch code. --lists takes references that others have chosen instead: the published
cocosplit and vocsplit lists, or every annotation of a COCO file.

references.json lists image and annotation ids for every class. It is plain text: edit it to choose other references."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "sample", run, "choose the reference instances of every class", EPILOG)
    options.add_paths(parser, "annotations")
    options.add_paths(parser, "images", required=False, note=", for sizes that it lacks", remote=True)
    options.add_exif(parser)
    add_choice(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="references.json", help="file to write")
    parser.add_argument(
        "--coco",
        type=Path,
        metavar="FILE",
        help="also write the references as a COCO file of their own, from any data set: for `ntt-jax masks` where they "
        "have only boxes, or for other people",
    )


def add_choice(parser: Any) -> None:
    """`--classes`, `--shots`, `--seed`, `--lists`, `--allow-fewer`, `--drop-empty`."""
    parser.add_argument(
        "--classes",
        required=True,
        metavar="LIST",
        help="novel (the 20 classes of few-shot COCO), base (the other 60), coco20i-0 to coco20i-3, voc-novel1 to "
        "voc-novel3 and voc-base1 to voc-base3, all (of the file), or names or ids separated by commas",
    )
    parser.add_argument(
        "--shots",
        type=options.whole_number(1, 10**6),
        required=True,
        metavar="N",
        help="references per class",
    )
    parser.add_argument(
        "--seed",
        type=options.whole_number(0, 2**63 - 1),
        default=33,
        metavar="N",
        help="seed of the random choice (default: 33, that of the published 30-shot numbers)",
    )
    parser.add_argument(
        "--lists",
        type=Path,
        metavar="PATH",
        help="take these references and choose none: a folder of cocosplit or vocsplit lists (of one seed), "
        "or a COCO file whose annotations are all references",
    )
    parser.add_argument(
        "--allow-fewer", action="store_true", help="go on when a class has fewer usable references than --shots"
    )
    parser.add_argument(
        "--drop-empty", action="store_true", help="leave out classes without any usable reference, and say which"
    )


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "annotations", "images")
    check_choice(args)
    options.check_output_file(args.out)
    if args.coco is not None:
        options.check_output_file(args.coco, "--coco")


def check_choice(args: argparse.Namespace) -> None:
    """The same for the options of `add_choice`."""
    if args.lists is not None:
        if args.drop_empty:
            raise InputError("--drop-empty: --lists brings its own references; give one or the other")
        (options.check_folder if args.lists.is_dir() else options.check_file)(args.lists, "--lists")


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    from ntt_jax.files import write_json
    from ntt_jax.references.sampling import references_as_coco, save_references

    dataset = models.read_dataset(args.annotations)
    references = choose(args, dataset)
    if args.coco is not None:
        write_json(args.coco, references_as_coco(references, dataset))
    save_references(args.out, references)
    total = sum(len(entry.references) for entry in references.classes)
    source = f"seed {args.seed}" if args.lists is None else f"from {args.lists}"
    classes = counted(len(references.classes), "class", "classes")
    show(f"{args.out}: {counted(total, 'reference')} of {classes} ({source})")


def choose(args: argparse.Namespace, dataset: "CocoDataset") -> "ReferenceSet":
    """The references that the options of `add_choice` ask for; classes that are short are named on stderr."""
    from ntt_jax.datasets.dataset import select_classes
    from ntt_jax.files import describe
    from ntt_jax.references.published_lists import read_reference_lists
    from ntt_jax.references.sampling import sample_references, used_classes

    dataset = sized(args, dataset)
    classes, fewer = select_classes(dataset, args.classes), args.allow_fewer
    if "all" in (part.strip() for part in args.classes.split(",")):
        classes, unused = used_classes(dataset, classes)
        if unused:
            models.warn(f"left out, without any annotation: {', '.join(map(describe, unused))}")
    if args.drop_empty:
        classes = with_references(dataset, classes)
    if args.lists is None:
        references = sample_references(dataset, classes, args.shots, args.seed, allow_fewer=fewer)
    else:
        references = read_reference_lists(args.lists, dataset, classes, args.shots, allow_fewer=fewer)
    if short := references.short_classes():
        counts = ", ".join(f"{name} ({count})" for name, count in short)
        models.warn(f"fewer than {args.shots} references for {counts}")
    return references


def sized(args: argparse.Namespace, dataset: "CocoDataset") -> "CocoDataset":
    """The data set with the sizes that its file lacks, from the images, where their folder is given or beside it."""
    unsized = [image for image in dataset.images.values() if not image.height]
    if not unsized:
        return dataset
    from ntt_jax.datasets.image_files import locate_first

    beside = args.annotations if hasattr(args, "out") and not hasattr(args, "reference_annotations") else None
    folder = getattr(args, "reference_images", None) or args.images
    if folder is None and beside is not None:
        places = [beside.parent, beside.parent / "images", beside.parent.parent / "images"]
        folder = next((f for f in places if locate_first(dataset, [f], unsized[0]) is not None), None)
    if folder is not None:
        dataset = models.look_at_images(args, dataset, folder, [image.id for image in unsized])
    if left := sum(not image.height for image in dataset.images.values()):
        models.warn(f"images of unknown size: {left}; references near their right and lower border are not found out")
    return dataset


def with_references(dataset: "CocoDataset", classes: "tuple[CocoCategory, ...]") -> "tuple[CocoCategory, ...]":
    """The classes that have a usable reference; the others are named on stderr. Raises `InputError` if none has."""
    from ntt_jax.references.sampling import is_valid_reference, why_not

    usable = {
        annotation.category_id
        for annotation in dataset.annotations.values()
        if not annotation.isimpossible and is_valid_reference(annotation, dataset.images[annotation.image_id])
    }
    empty = [f"{c.name} ({why_not(dataset, c.id)})" for c in classes if c.id not in usable]
    if len(empty) == len(classes):
        raise InputError(
            f"--classes: none of them has a usable reference: {', '.join(empty[:20])}; --lists FILE.json takes the "
            "annotations of a COCO file as they are"
        )
    if empty:
        models.warn(f"left out, without a usable reference: {', '.join(empty)}")
    return tuple(category for category in classes if category.id in usable)
