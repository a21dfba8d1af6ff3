"""`ntt-jax memory`: turn the references into one prototype per class."""

import argparse
import glob
import hashlib
import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ntt_jax
from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.text import show

if TYPE_CHECKING:
    from ntt_jax.datasets.dataset import CocoDataset
    from ntt_jax.references.build import Negatives
    from ntt_jax.references.sampling import ReferenceSet
    from ntt_jax.runs.folder import RunFolder

EPILOG = """\
example:
  ntt-jax memory --dinov2 dinov2_vitl14.safetensors --annotations instances_train2017.json --images train2017 \\
                 --references references.json --out memory.safetensors

--references is the file that `ntt-jax sample` wrote, or a reference pickle of the original PyTorch code.
memory.safetensors is small (no image is in it) and belongs to the DINOv2 checkpoint it was made with. Finished
references are kept beside it until it is complete: when stopped, the same command goes on where it was.

--negatives names instances that look like a class and are none: COCO annotations with masks, whose category is the
class that they are mistaken for. What looks more like them than like the class then scores lower. `ntt-jax negatives`
chooses some among the mistakes of a first run."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "memory", run, "turn the references into one prototype per class", EPILOG)
    options.add_paths(parser, "dinov2", "annotations", "images", "references")
    add_negatives(parser)
    options.add_exif(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="memory.safetensors", help="file to write")
    options.add_compute(parser)


def add_negatives(parser: Any) -> None:
    """`--negatives` and `--negative-images`."""
    parser.add_argument(
        "--negatives",
        type=Path,
        metavar="N.json",
        help="COCO annotations of what looks like a class and is none (default: no negative references)",
    )
    parser.add_argument(
        "--negative-images",
        type=Path,
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
    dataset = models.read_dataset(args.annotations)
    references = load(args.references, dataset)
    negatives = load_negatives(args, references, args.images)
    build(args, dataset, args.images, references, args.out, negatives)


def load(path: Path, dataset: "CocoDataset") -> "ReferenceSet":
    """Read a reference file, ours or upstream's pickle (recognised by its first byte or its name)."""
    from ntt_jax.files import read_bytes
    from ntt_jax.references.sampling import MAX_REFERENCE_BYTES, parse_references
    from ntt_jax.upstream.references import parse_upstream_references

    data = read_bytes(path, max_bytes=MAX_REFERENCE_BYTES, what="reference file")
    if data.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return parse_upstream_references(data, path, dataset)
    return parse_references(data, path)


def load_negatives(args: argparse.Namespace, references: "ReferenceSet", images: Path) -> "Negatives | None":
    """The negative references that the options of `add_negatives` name. images: folder of the references' images."""
    if args.negatives is None:
        return None
    from ntt_jax.references.build import Negatives
    from ntt_jax.references.negatives import negative_set
    from ntt_jax.runs.images import check_images

    folder = args.negative_images or images
    dataset = models.look_at_images(args, models.read_dataset(args.negatives), folder)
    chosen = negative_set(dataset, references)
    try:
        check_images(dataset, folder)
    except InputError as error:
        raise InputError(f"{error} with --negative-images") from None
    return Negatives(dataset, folder, chosen)


def build(
    args: argparse.Namespace,
    dataset: "CocoDataset",
    images: Path,
    references: "ReferenceSet",
    out: Path,
    negatives: "Negatives | None" = None,
) -> None:
    """Encode the references with `--dinov2` and write the memory file `out`."""
    from ntt_jax.memory.bank import MemoryBank, save_memory
    from ntt_jax.references.build import places
    from ntt_jax.references.sampling import check_references
    from ntt_jax.runs.folder import RunFolder
    from ntt_jax.runs.lock import FolderLock
    from ntt_jax.runs.memory import recorded_memory

    encoder, source_sha256 = models.read_encoder(args.dinov2)
    dataset = models.look_at_images(args, dataset, images, reference_images(references))
    check_references(references, dataset)
    provenance = describe(args, dataset, references, source_sha256, negatives)
    unlike = None if negatives is None else negatives.references
    numbers = range(len(places(references)) + (len(places(unlike)) if unlike else 0))
    # What is encoded waits beside the memory file, under a name that no other memory of this name has.
    parts = parts_folder(out, provenance)
    options.make_output_folder(parts)
    restart = getattr(args, "restart", False)  # an option of `run`
    try:
        with (
            FolderLock(parts) as lock,
            RunFolder(lock, provenance, restart=restart, key="reference") as run,
        ):
            args.resume_hint = "what is finished is saved; the same command goes on from there"
            todo = {number for number in numbers if number not in run.records}
            if todo:
                encode(args, run, dataset, images, references, numbers, todo, negatives)
            names, ids = zip(*((chosen.name, chosen.category_id) for chosen in references.classes), strict=True)
            save_memory(out, MemoryBank(recorded_memory(run, references, unlike), names, ids, encoder, provenance))
    except InputError:
        if not any(path.stat().st_size for path in parts.glob("*.records")):
            shutil.rmtree(parts, ignore_errors=True)
        raise
    for left in out.parent.glob(f"{glob.escape(out.name)}.{'[0-9a-f]' * 12}.parts"):
        shutil.rmtree(left, ignore_errors=True)
    more = f", {len(places(unlike))} negative ones" if unlike else ""
    show(f"{out}: {len(names)} classes, {len(places(references))} references{more}, {encoder.name}")
    for k, chosen in enumerate(references.classes):
        more = f", {len(unlike.classes[k].references)} negative" if unlike else ""
        show(f"  {chosen.name}: {len(chosen.references)}{more}")


def reference_images(references: "ReferenceSet") -> list[int]:
    """Ids of the images of all references, each once."""
    return list(dict.fromkeys(r.image_id for chosen in references.classes for r in chosen.references))


def parts_folder(out: Path, provenance: dict[str, Any]) -> Path:
    """The folder in which the references encoded so far wait for the others."""
    digest = hashlib.sha256(json.dumps(provenance).encode()).hexdigest()[:12]
    return out.with_name(f"{out.name}.{digest}.parts")


def encode(
    args: argparse.Namespace,
    run: "RunFolder",
    dataset: "CocoDataset",
    images: Path,
    references: "ReferenceSet",
    numbers: "Sequence[int]",
    todo: set[int],
    negatives: "Negatives | None" = None,
) -> None:
    """Encode the numbered references that are to do, with those of their groups, and record them."""
    devices = options.start_jax(args)
    from ntt_jax.runs.images import groups_to_do
    from ntt_jax.runs.memory import record_means

    encoder = models.load_encoder(args, devices)
    groups = groups_to_do(numbers, todo.__contains__, args.batch_size)
    with Progress("memory", len(todo), unit="references") as progress:
        record_means(
            run,
            encoder,
            dataset,
            images,
            references,
            negatives=negatives,
            numbers=list(chain.from_iterable(groups)),
            todo=todo,
            step=progress.step,
        )


def describe(
    args: argparse.Namespace,
    dataset: "CocoDataset",
    references: "ReferenceSet",
    encoder_sha256: str,
    negatives: "Negatives | None" = None,
) -> dict[str, Any]:
    """Where a memory comes from: the same inputs give the same description."""

    def listed(some: "ReferenceSet") -> dict[str, Any]:
        return {str(c.category_id): [[r.image_id, r.annotation_id] for r in c.references] for c in some.classes}

    more: dict[str, Any] = {}
    if negatives is not None:
        more = {"negatives_sha256": negatives.dataset.sha256, "negatives": listed(negatives.references)}
    return {
        "encoder_sha256": encoder_sha256,
        "annotations_sha256": dataset.sha256,
        "references": listed(references),
        **more,
        "shots": references.shots,
        "seed": references.seed,
        "dtype": args.dtype,
        **models.exif_identity(args),
        "tool": f"ntt-jax {ntt_jax.__version__}",
    }
