"""`ntt-jax segment`: detections in plain images, without annotations."""

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ntt_jax.cli import everything_options, models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.errors import InputError
from ntt_jax.images.remote import Address, location
from ntt_jax.runs.paths import check_address
from ntt_jax.text import counted, number_in, show

EPILOG = """\
examples:
  ntt-jax segment --memory memory.safetensors holiday.jpg more_photos/ --out found
  ntt-jax segment --memory memory.safetensors frames/ --classes dog,cat --out found
  ntt-jax segment --memory memory.safetensors photos/ --out found --format labelme --thresholds dog=0.7,cat=0.6

found/detections.json holds everything in COCO format; found/masks one PNG per detection (white on black, the size of
the image), found/overlays each image with its detections drawn on it.

Every photo is segmented once and recorded as it is finished, with all that scored, however low. When the run was
stopped, whatever the reason, the same command goes on where it was; with more photos it does those alone; with another
threshold, other classes, pictures or formats it only writes the files again (docs/segment.md).

A video is a folder of its frames (`ffmpeg -i video.mp4 frames/%06d.png`), which come in the order of their numbers. A
class has one colour in all of them: `ffmpeg -i found/overlays/%06d.png found.mp4`. Each frame is segmented alone.

All masks of photos, without classes and without a memory:
  ntt-jax segment --everything photos/ --out masks

With `--references folder` in place of --memory, the memory is made on the way and kept in found/memory.safetensors;
`ntt-jax fit` says what is read:
  ntt-jax segment photos --references folder --out found"""

PICTURES = ("masks", "overlays")


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "segment", run, "find the objects of a memory in photos and folders", EPILOG)
    parser.add_argument(
        "images",
        type=location,
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="image files, folders of them, their addresses (https://, s3://, ...; with * for many), or a .txt file "
        "with an address on each line",
    )
    options.add_paths(parser, "sam2", "dinov2")
    options.add_paths(parser, "memory", required=False)
    parser.add_argument(
        "--references",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="in place of --memory: photos with masks, boxes or annotation files beside them, as `ntt-jax fit` takes "
        "them; may be given several times",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--copy-to",
        type=location,
        metavar="ADDRESS",
        help="also put what is written there (s3://, gs://, ...): pictures, formats and at last detections.json",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="throw away what DIR holds of an earlier run and segment all photos again",
    )
    parser.add_argument(
        "--score-threshold",
        type=options.fraction,
        metavar="X",
        help=f"leave out detections that score lower (default: what the memory file keeps, or {DEFAULT_THRESHOLD})",
    )
    parser.add_argument(
        "--thresholds",
        metavar="LIST",
        help="one for each class, as bus=0.7,bird=0.6, or a JSON file, as thresholds.json of `ntt-jax tune` or of a "
        "report; other classes take --score-threshold",
    )
    parser.add_argument("--classes", metavar="LIST", help="only these classes of the memory, separated by commas")
    parser.add_argument(
        "--pictures",
        type=_pictures,
        default=PICTURES,
        metavar="LIST",
        help="what to draw beside detections.json: masks, overlays, or none (default: masks,overlays)",
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=(),
        metavar="LIST",
        help="also write what was found as csv, coco, labelme, yolo, yolo-boxes, voc, png or parquet (needs "
        "pyarrow), several with commas (docs/formats.md)",
    )
    parser.add_argument(
        "--polygon-error",
        type=_pixels,
        default=1.0,
        metavar="PIXELS",
        help="how far polygons of formats may be from the borders of masks; 0 keeps every corner (default: 1)",
    )
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_proposals(parser)
    options.add_tiles(parser)
    everything_options.add_everything(parser)
    options.add_compute(parser, cores=True)
    options.add_ray(parser)


def _pictures(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    if chosen == ("none",):
        return ()
    if unknown := [part for part in chosen if part not in PICTURES]:
        raise argparse.ArgumentTypeError(f"expected masks, overlays, both with a comma, or none, found {unknown[0]!r}")
    return chosen


def _formats(text: str) -> tuple[str, ...]:
    from ntt_jax.formats import check_formats

    try:
        return check_formats(part.strip() for part in text.split(","))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pixels(text: str) -> float:
    value = number_in(text)
    if value is None or not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of pixels, at least 0, found {text!r}")
    return value


def _thresholds(text: str) -> dict[str, float]:
    """What `--thresholds` says. Raises `InputError`."""
    from ntt_jax.detection.thresholds import parse_thresholds, read_thresholds

    if "=" not in text:
        options.check_file(Path(text), "--thresholds")
    try:
        return parse_thresholds(text) if "=" in text and not Path(text).is_file() else read_thresholds(text)
    except InputError as error:
        raise InputError(f"--thresholds: {error}") from None


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "memory")
    everything_options.check_everything(args)
    if not args.everything and (args.memory is None) == (args.references is None):
        raise InputError("give --memory FILE or --references FOLDER, one of the two, or --everything")
    for folder in args.references or ():
        options.check_folder(folder, "--references")
    for path in args.images:
        if isinstance(path, Address):
            check_address(path, "IMAGE_OR_FOLDER")
            continue
        (options.check_folder if path.is_dir() else options.check_file)(path, "IMAGE_OR_FOLDER")
    if args.copy_to is not None:
        from ntt_jax.runs.copies import check_target

        try:
            check_target(args.copy_to)
        except InputError as error:
            raise InputError(f"--copy-to: {error}") from None
    options.check_detection(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    if args.everything:
        _everything(args)
        return
    thresholds = None if args.thresholds is None else _thresholds(args.thresholds)
    found = None
    if args.references is not None:
        from ntt_jax.cli.fit import show_counts
        from ntt_jax.references.folder import find_references

        found = find_references(args.references, exif=args.exif)
        show_counts(found)
    tiles = options.tile_config(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    if found is not None:
        from ntt_jax.segmenter.fitting import fit_into

        args.memory = args.out / "memory.safetensors"
        fit_into(
            args.memory, found, dinov2=args.dinov2, sam2=args.sam2, compute=compute, exif=args.exif, observer=Progress()
        )
    from ntt_jax.runs.segment_job import segment

    args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
    content = segment(
        args.out,
        args.images,
        sam2=args.sam2,
        dinov2=args.dinov2,
        memory=args.memory,
        score_threshold=args.score_threshold if thresholds is None else thresholds,
        default_threshold=DEFAULT_THRESHOLD if args.score_threshold is None else args.score_threshold,
        classes=None if args.classes is None else [name.strip() for name in args.classes.split(",")],
        pictures=args.pictures,
        formats=args.format,
        polygon_error=args.polygon_error,
        config=options.detect_config(args),
        tiles=tiles,
        compute=compute,
        exif=args.exif,
        restart=args.restart,
        copy_to=args.copy_to,
        whole=False,
        proposals=args.proposals,
        observer=Progress(),
    )
    report(args, content)


def _everything(args: argparse.Namespace) -> None:
    """All masks, without classes."""
    args.dinov2 = None  # neither fetched nor read
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.runs.everything_job import segment_everything

    args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
    content = segment_everything(
        args.out,
        args.images,
        sam2=args.sam2,
        settings=everything_options.mask_settings(args),
        score_threshold=args.score_threshold or 0.0,
        pictures=args.pictures,
        formats=args.format,
        polygon_error=args.polygon_error,
        compute=compute,
        exif=args.exif,
        restart=args.restart,
        copy_to=args.copy_to,
        whole=False,
        observer=Progress(),
    )
    report(args, content)


def report(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Say what was found, and warn of what may have been missed."""
    if content["skipped"]:
        models.warn(f"images that could not be read: {len(content['skipped'])}; detections.json lists them")
    if not content["counts"]:
        models.warn("no detections at all; a lower --score-threshold shows weaker ones")
    found, photos = sum(content["counts"].values()), len(content["images"])
    show(f"{args.out}: {counted(found, 'detection')} in {counted(photos, 'image')}")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for category_id, count in Counter(content["counts"]).most_common():
        show(f"  {names[category_id]}: {count}")
