"""`ntt-jax segment`: detections in plain images, without annotations."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.text import close_names, show

if TYPE_CHECKING:
    from ntt_jax.memory.bank import MemoryBank

EPILOG = """\
examples:
  ntt-jax segment --sam2 W --dinov2 W --memory memory.safetensors holiday.jpg more_photos/ --out found
  ntt-jax segment --sam2 W --dinov2 W --memory memory.safetensors frames/ --classes dog,cat --out found

found/detections.json holds everything in COCO format; found/masks one PNG per detection (white on black, the size of
the image), found/overlays each image with its detections drawn on it.

A video is a folder of its frames (`ffmpeg -i video.mp4 frames/%06d.png`), which come in the order of their numbers. A
class has one colour in all of them: `ffmpeg -i found/overlays/%06d.png found.mp4`. Each frame is segmented alone."""

PICTURES = ("masks", "overlays")


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
    options.add_paths(parser, "sam2", "dinov2", "memory")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--score-threshold",
        type=options.fraction,
        default=0.5,
        metavar="X",
        help="leave out detections that score lower (default: 0.5)",
    )
    parser.add_argument("--classes", metavar="LIST", help="only these classes of the memory, separated by commas")
    parser.add_argument(
        "--pictures",
        type=_pictures,
        default=PICTURES,
        metavar="LIST",
        help="what to draw beside detections.json: masks, overlays, or none (default: masks,overlays)",
    )
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_compute(parser, cores=True)


def _pictures(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    if chosen == ("none",):
        return ()
    if unknown := [part for part in chosen if part not in PICTURES]:
        raise argparse.ArgumentTypeError(f"expected masks, overlays, both with a comma, or none, found {unknown[0]!r}")
    return chosen


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "memory")
    for path in args.images:
        (options.check_folder if path.is_dir() else options.check_file)(path, "IMAGE_OR_FOLDER")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    from ntt_jax.memory.bank import load_memory, require_encoder
    from ntt_jax.runs.models import TargetPass, read_encoder
    from ntt_jax.runs.observer import work
    from ntt_jax.segmenter.folder import find_images, segment_files

    names = find_images(args.images, args.out, models.warn)
    compute = options.compute(args)
    bank = load_memory(args.memory)
    require_encoder(bank, *read_encoder(args.dinov2))
    chosen = choose_classes(bank, args.classes)
    args.resume_hint = f"pictures of the finished images are in {args.out}; the same command does all of them again"
    prototypes, negatives = bank.memory.prototypes, bank.memory.negatives
    target = TargetPass(args.sam2, args.dinov2, prototypes, negatives, options.detect_config(args), largest_side=640)
    predictor, progress = target.load(compute), Progress()
    with work(progress, "segment", len(names)):
        content = segment_files(
            predictor,
            names,
            bank,
            args.out,
            classes=chosen,
            threshold=args.score_threshold,
            pictures=args.pictures,
            observer=progress,
            exif=args.exif,
        )
    report(args, content)


def choose_classes(bank: "MemoryBank", names: str | None) -> set[int]:
    """Class indices of the comma-separated `names`, all if None. Raises `InputError` with the close matches."""
    if names is None:
        return set(range(len(bank.class_names)))
    chosen = set()
    for name in (part.strip() for part in names.split(",")):
        if name not in bank.class_names:
            close = close_names(name, bank.class_names)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(bank.class_names[:20])}"
            raise InputError(f"--classes: the memory has no class {name!r}; {hint}")
        chosen.add(bank.class_names.index(name))
    return chosen


def report(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Say what was found, and warn of what may have been missed."""
    if content["skipped"]:
        models.warn(f"{len(content['skipped'])} images could not be read; detections.json lists them")
    if not content["annotations"]:
        models.warn("no detections at all; a lower --score-threshold shows weaker ones")
    show(f"{args.out}: {len(content['annotations'])} detections in {len(content['images'])} images")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for category_id, count in Counter(a["category_id"] for a in content["annotations"]).most_common():
        show(f"  {names[category_id]}: {count}")
