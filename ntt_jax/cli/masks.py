"""`ntt-jax masks`: instance masks from boxes or points, by SAM 2's own prompts."""

import argparse
import dataclasses
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import ntt_jax
from ntt_jax.cli import memory, models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.config import arithmetic
from ntt_jax.text import show

if TYPE_CHECKING:
    import numpy as np

    from ntt_jax.compiled.prompt_masker import PromptMasker
    from ntt_jax.datasets.dataset import CocoImage
    from ntt_jax.references.prompted import PromptedAnnotations
    from ntt_jax.runs.folder import RunFolder

EPILOG = """\
examples:
  ntt-jax masks --sam2 W --boxes boxes.json --images train --out masks.json --pictures check/
  ntt-jax sample --annotations masks.json --classes all --shots 5 --out references.json

boxes.json is COCO annotations without masks: each annotation has a "bbox", or "points": [[x, y], ...] on the object
([x, y, 0]: beside it), or both. masks.json is the same file with masks, ready for the other commands; "predicted_iou"
is how good SAM 2 expects each one to be. Look at the pictures: a wrong mask makes a wrong class.

When stopped, the same command goes on where it was."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "masks", run, "make instance masks from boxes or points", EPILOG)
    options.add_paths(parser, "sam2")
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="A.json", help="COCO annotations with boxes or points"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images it names")
    parser.add_argument("--out", type=Path, required=True, metavar="masks.json", help="file to write")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also draw the masks over the images, to check")
    parser.add_argument(
        "--replace", action="store_true", help="make new masks of annotations that have one (default: keep those)"
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
    from ntt_jax.files import write_json
    from ntt_jax.images.rle import Rle
    from ntt_jax.references.prompted import load_prompted, with_masks
    from ntt_jax.runs import images as runner
    from ntt_jax.runs.folder import RunFolder
    from ntt_jax.runs.lock import FolderLock
    from weight_port.files import sha256

    prompted = load_prompted(args.boxes, replace=args.replace)
    for note in prompted.dataset.notes:
        models.warn(f"{args.boxes}: {note}")
    dataset = models.look_at_images(args, prompted.dataset, args.images, prompted.prompts)
    prompted = dataclasses.replace(prompted, dataset=dataset)
    if prompted.prompts:
        runner.check_images(prompted.dataset, args.images)
    identity = {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(args.sam2),
        "annotation file": prompted.sha256,
        "dtype": args.dtype,
        "pictures": None if args.pictures is None else str(args.pictures.resolve()),
        "replace": args.replace,
        **models.exif_identity(args),
    }
    parts = memory.parts_folder(args.out, identity)
    options.make_output_folder(parts)
    with FolderLock(parts) as lock, RunFolder(lock, identity) as folder:
        args.resume_hint = "what is finished is saved; the same command goes on from there"
        _make(args, folder, prompted)
        records = [folder.records.read(image_id) for image_id in prompted.prompts]
    masks: dict[int, tuple[Rle, float]] = {}
    for record in records:
        for index, counts, predicted_iou in record.get("masks", ()):
            image = prompted.dataset.images[record["image_id"]]
            masks[index] = Rle(size=[image.height, image.width], counts=counts), predicted_iou
    content = with_masks(prompted, masks)
    write_json(args.out, content)
    shutil.rmtree(parts, ignore_errors=True)
    report(args, prompted, content, records)


def _make(args: argparse.Namespace, run: "RunFolder", prompted: "PromptedAnnotations") -> None:
    """Make and record the masks of every image that has no record yet."""
    todo = [prompted.dataset.images[image_id] for image_id in prompted.prompts if image_id not in run.records]
    if not todo:
        return
    options.start_jax(args)
    from ntt_jax.compiled.prompt_masker import PromptMasker
    from ntt_jax.images.prefetch import map_ahead
    from ntt_jax.loading import load_sam2
    from ntt_jax.runs import images as runner

    dtype, precision = arithmetic(args.dtype)
    masker = PromptMasker(load_sam2(args.sam2, dtype), matmul_precision=precision)
    total = len(prompted.prompts)
    with Progress("masks", total, done=total - len(todo)) as progress:
        ahead = map_ahead(lambda image: runner.read_checked(prompted.dataset, args.images, image), todo, ahead=4)
        for image, pixels in zip(todo, ahead, strict=True):
            if isinstance(pixels, str):
                progress.note(f"skipped: {pixels}")
                record: dict[str, Any] = {"image_id": image.id, "skipped": pixels}
            else:
                record = {"image_id": image.id, "masks": _masks(args, masker, prompted, image, pixels)}
            run.records.append([record])
            progress.step()


def _masks(
    args: argparse.Namespace,
    masker: "PromptMasker",
    prompted: "PromptedAnnotations",
    image: "CocoImage",
    pixels: "np.ndarray",
) -> list[list[Any]]:
    """Position, run lengths and predicted IoU of each mask of one image; draws them where that is asked for."""
    from ntt_jax.files import make_folder
    from ntt_jax.images.rle import encode_masks

    indices, prompts = zip(*prompted.prompts[image.id], strict=True)
    masks, ious = masker(pixels, prompts)
    if args.pictures is not None:
        from ntt_jax.images.drawing import overlay, prompt_marks, save_picture

        names = prompted.names(indices)
        captions = [f"{name} {iou:.2f}" for name, iou in zip(names, ious, strict=True)]
        colours = list(range(len(indices)))  # one for each object: neighbours of a class must be told apart
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        points = [
            (*xy, label == 1) for prompt in prompts for xy, label in zip(prompt.points, prompt.labels, strict=True)
        ]
        drawn = prompt_marks(overlay(pixels, masks, colours, captions), boxes, points)
        path = args.pictures / PurePosixPath(image.file_name.replace("\\", "/")).with_suffix(".png")
        make_folder(path.parent, args.pictures)
        save_picture(path, drawn)
    return [[i, r["counts"], float(iou)] for i, r, iou in zip(indices, encode_masks(masks), ious, strict=True)]


def report(
    args: argparse.Namespace, prompted: "PromptedAnnotations", content: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    """Say what was made, and what was not."""
    asked = {i: image_id for image_id, some in prompted.prompts.items() for i, _ in some}
    made = [i for i in asked if content["annotations"][i].get("segmentation")]
    show(f"{args.out}: {len(made)} masks in {len(prompted.prompts)} images")
    if prompted.kept:
        show(f"  {prompted.kept} annotations keep the mask they had (--replace makes new ones)")
    if prompted.crowds:
        show(f"  {prompted.crowds} crowds are left as they are")
    if skipped := sum("skipped" in record for record in records):
        models.warn(f"{skipped} images could not be used; their annotations have no mask")
    missed = {record["image_id"] for record in records if "skipped" in record}
    empty = [i for i in asked if i not in made and asked[i] not in missed]
    if empty:
        ids = [content["annotations"][i]["id"] for i in empty]
        shown = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
        models.warn(f"{len(empty)} masks are empty, of annotations {shown}; check their boxes")
    doubtful = [i for i in made if content["annotations"][i]["predicted_iou"] < 0.5]
    if doubtful:
        models.warn(f"{len(doubtful)} masks are rated below 0.5 by SAM 2; look at them before using them")
