"""`ntt-jax negatives`: the worst mistakes of a run as negative references."""

import argparse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import models, options
from ntt_jax.text import counted, show

if TYPE_CHECKING:
    from ntt_jax.evaluation.results import ImageDetections
    from ntt_jax.images.remote import Location
    from ntt_jax.report.run_files import Scored

EPILOG = """\
example: a run over images of the training set, its mistakes, and a memory that knows them
  ntt-jax evaluate  --sam2 W --dinov2 W --memory memory.safetensors \\
                    --annotations instances_some_train2017.json --images train2017 --out runs/first
  ntt-jax negatives runs/first --out negatives.json --pictures check/
  ntt-jax memory    --dinov2 W --annotations instances_train2017.json --images train2017 \\
                    --references references.json --negatives negatives.json --out memory_n.safetensors

A mistake is a detection that lies on no object of its class. The highest scoring ones of each class
are taken, one from an image. Never use images that you report numbers on. Look at the pictures: a detection of an
object that is not annotated is no mistake; delete its annotation from negatives.json."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "negatives", run, "turn the worst mistakes of a run into negative references", EPILOG
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="--out folder of evaluate or run")
    parser.add_argument("--out", type=Path, required=True, metavar="negatives.json", help="file to write")
    parser.add_argument(
        "--per-class",
        type=options.whole_number(1, 10**4),
        default=5,
        metavar="N",
        help="at most N of each class (default: 5)",
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also draw them over the images, to check")
    group = parser.add_argument_group("files, where run.json does not say or they have moved")
    options.add_paths(group, "annotations", "images", required=False, remote=True)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    options.check_output_file(args.out)
    if args.pictures is not None:
        options.make_output_folder(args.pictures, "--pictures")
    from ntt_jax.files import write_json
    from ntt_jax.references.negatives import as_coco, false_positives
    from ntt_jax.report import run_files as report_files

    files = report_files.find_files(args.run_dir, {"annotations": args.annotations, "images": args.images}, None)
    images = report_files.find_images(files) if args.pictures is not None else None
    scored = report_files.load_scored(files)
    chosen = false_positives(scored.ground_truth, scored.detections, args.per_class)
    write_json(args.out, as_coco(chosen, scored.dataset, [c.id for c in scored.ground_truth.categories]))
    if args.pictures is not None and images is not None:
        draw(args.pictures, images, scored, chosen)
    counts = [
        sum(int((found.labels == k).sum()) for _, found in chosen) for k in range(len(scored.ground_truth.categories))
    ]
    if not any(counts):
        models.warn(f"the run made no mistake that could serve; {args.out.name} lists none")
    show(f"{args.out}: {counted(sum(counts), 'negative reference')} in {counted(len(chosen), 'image')}")
    for category, count in zip(scored.ground_truth.categories, counts, strict=True):
        show(f"  {category.name}: {count}")


def draw(folder: Path, images: "Location", scored: "Scored", chosen: "list[ImageDetections]") -> None:
    """Each image with its negative references drawn on it. Raises `InputError` for one that cannot be read."""
    from ntt_jax.files import make_folder
    from ntt_jax.images.drawing import save_picture
    from ntt_jax.runs.segment_output import draw_overlay

    names = tuple(f"not {category.name}" for category in scored.ground_truth.categories)
    for image_id, found in chosen:
        name = PurePosixPath(scored.dataset.images[image_id].file_name.replace("\\", "/"))
        path = folder / name.with_suffix(".png")
        make_folder(path.parent, folder)
        image = scored.dataset.read_image(images, image_id)
        save_picture(path, draw_overlay(image, found, names))
