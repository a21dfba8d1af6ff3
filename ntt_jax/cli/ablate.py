"""`ntt-jax ablate`: many memories on the same images in one run."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ntt_jax
from ntt_jax.cli import evaluate, memory, models, options
from ntt_jax.errors import InputError
from ntt_jax.text import show, show_lines

if TYPE_CHECKING:
    from ntt_jax.ablation.detections import SharedDetections
    from ntt_jax.datasets.dataset import CocoCategory, CocoDataset, CocoImage
    from ntt_jax.memory.aggregate import Memory
    from ntt_jax.references.sampling import ReferenceSet
    from ntt_jax.runs.folder import RunFolder

EPILOG = """\
examples:
  ntt-jax ablate --sam2 W --dinov2 W --classes novel --shots 1,2,3,5,10,30 --seeds 10 \\
                 --reference-annotations instances_train2017.json --reference-images train2017 \\
                 --annotations instances_val2017.json --images val2017 --out runs/ablation
  ntt-jax ablate --sam2 W --dinov2 W --memory memory.safetensors \\
                 --annotations instances_val2017.json --images val2017 --out runs/references

The first samples a memory for every number of shots and every seed, as `sample` and `memory` would, and reports mean
and standard deviation over the seeds. The second leaves out each reference of one memory in turn. Each reference and
each image is encoded once, whatever the number of memories; every memory's numbers are those that `evaluate` gives it.

RUN_DIR/ablation.json holds all numbers of `evaluate` for every memory and class, by the rules of the data set. Stopped,
the same command goes on."""

MAX_MEMORIES = 10_000


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "ablate", run, "compare numbers of shots, seeds or references in one run", EPILOG
    )
    options.add_paths(parser, "sam2", "dinov2")
    group = parser.add_argument_group("either: memories of several numbers of shots and seeds")
    group.add_argument("--shots", type=whole_numbers, metavar="LIST", help="references per class, as 1,5,10,30")
    group.add_argument(
        "--seeds", type=options.whole_number(1, 1000), default=10, metavar="N", help="how many seeds (default: 10)"
    )
    group.add_argument(
        "--seed",
        type=options.whole_number(0, 2**31),
        default=33,
        metavar="N",
        help="the first of them, the others count on from it (default: 33)",
    )
    group.add_argument(
        "--classes", metavar="LIST", help="as for `ntt-jax sample`: novel, base, fold1 to fold4, all, names or ids"
    )
    options.add_paths(group, "reference_annotations", "reference_images", required=False)
    group.add_argument(
        "--allow-fewer", action="store_true", help="go on when a class has fewer usable references than shots"
    )
    group = parser.add_argument_group("or: one memory without each of its references")
    options.add_paths(group, "memory", required=False)
    options.add_paths(parser, "annotations", "images")
    evaluate.add_run_folder(parser)
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_compute(parser)


def whole_numbers(text: str) -> list[int]:
    """An argparse type: whole numbers with commas between them, ascending."""
    parse = options.whole_number(1, 10**6)
    numbers = [parse(part.strip()) for part in text.split(",")]
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"expected each number once, found {text!r}")
    return sorted(numbers)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "memory")
    needed = {"--shots": args.shots, "--classes": args.classes, "--reference-annotations": args.reference_annotations}
    if args.memory is not None:
        more = {"--reference-images": args.reference_images, "--allow-fewer": args.allow_fewer or None}
        if given := [name for name, value in {**needed, **more}.items() if value is not None]:
            raise InputError(f"{given[0]}: --memory brings its own references; give one or the other")
    elif missing := [name for name, value in needed.items() if value is None]:
        raise InputError(f"give {', '.join(missing)} too (or --memory, to leave out its references one by one)")
    else:
        options.check_paths(args, "reference_annotations", "reference_images")
        if len(args.shots) * args.seeds > MAX_MEMORIES:
            raise InputError(f"--shots, --seeds: {len(args.shots) * args.seeds} memories, at most {MAX_MEMORIES}")
    options.check_paths(args, "annotations", "images")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    from ntt_jax.files import write_json
    from ntt_jax.runs.lock import FolderLock

    with FolderLock(args.out) as lock:
        args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
        if args.restart:
            (args.out / "ablation.json").unlink(missing_ok=True)
        outcome = (_of_shots if args.memory is None else _of_references)(args, lock)
        write_json(args.out / "ablation.json", outcome)
        report(args.out, outcome)


def _of_shots(args: argparse.Namespace, lock: Any) -> dict[str, Any]:
    """The outcome for numbers of shots and seeds."""
    from ntt_jax.ablation.memories import distinct_references, sample_many, stack_prototypes
    from ntt_jax.ablation.tables import by_shots
    from ntt_jax.datasets.dataset import select_classes
    from ntt_jax.references.sampling import used_classes

    sources, dataset = models.read_dataset(args.reference_annotations), models.read_dataset(args.annotations)
    seeds = range(args.seed, args.seed + args.seeds)
    classes = select_classes(sources, args.classes)
    if "all" in (part.strip() for part in args.classes.split(",")):
        classes, unused = used_classes(sources, classes)
        if unused:
            models.warn(f"left out, without any annotation: {', '.join(unused)}")
    categories = _same_classes(classes, dataset)
    sets = sample_many(sources, classes, args.shots, seeds, allow_fewer=args.allow_fewer)
    short = {name for references in sets.values() for name, _ in references.short_classes()}
    if short:
        models.warn(f"fewer than {max(args.shots)} references for {', '.join(sorted(short))}")
    choice = {"reference annotation file": sources.sha256, "shots": args.shots, "seeds": list(seeds)}

    def memories() -> dict[str, Any]:
        distinct = distinct_references(list(sets.values()))
        return {"prototypes": stack_prototypes(list(sets.values()), distinct, encode(args, sources, distinct))}

    metrics, rest = _score(args, lock, dataset, categories, choice, len(sets), memories)
    rows = by_shots(list(sets), metrics)
    found = [{"shots": s, "seed": seed, **one} for (s, seed), one in zip(sets, metrics, strict=True)]
    return {"by_shots": rows, "memories": found, **rest}


def _of_references(args: argparse.Namespace, lock: Any) -> dict[str, Any]:
    """The outcome for one memory without each of its references."""
    import numpy as np

    from ntt_jax.ablation.memories import leave_one_out
    from ntt_jax.ablation.tables import by_reference
    from ntt_jax.datasets.bank_classes import match_classes
    from ntt_jax.memory.bank import load_memory, require_encoder
    from ntt_jax.segmenter.classes import from_bank
    from weight_port.files import sha256

    bank, dataset = load_memory(args.memory), models.read_dataset(args.annotations)
    require_encoder(bank, *models.read_encoder(args.dinov2))
    bank, categories, notes = match_classes(bank, dataset)
    for note in notes:
        models.warn(note)
    options.start_jax(args)
    prototypes, lacking = leave_one_out(bank.memory)
    if not lacking:
        raise InputError(f"{args.memory}: every class has one reference; there is none to leave out")
    choice, memories = {"memory": sha256(args.memory)}, {"prototypes": prototypes}
    if (negatives := bank.memory.negatives) is not None:  # they serve all memories alike
        memories["negatives"] = np.broadcast_to(np.asarray(negatives), (len(prototypes), *negatives.shape))
    metrics, rest = _score(args, lock, dataset, categories, choice, len(prototypes), lambda: memories)
    origins = [one.origins for one in from_bank(bank).values()]
    return {"whole": metrics[0], "without": by_reference(lacking, metrics, origins), **rest}


def _same_classes(classes: "Sequence[CocoCategory]", dataset: "CocoDataset") -> "list[CocoCategory]":
    """The classes of the references as categories of the targets. Raises `InputError` where the two disagree."""
    for category in classes:
        if dataset.categories.get(category.id) != category:
            raise InputError(
                f"--annotations: the class {category.id}, {category.name!r} in --reference-annotations, is another one "
                "there or missing; give annotations with the same categories"
            )
    return list(classes)


def _score(
    args: argparse.Namespace,
    lock: Any,
    dataset: "CocoDataset",
    categories: "Sequence[CocoCategory]",
    choice: dict[str, Any],
    count: int,
    memories: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics of every memory on `dataset`, and what else the outcome says. memories: makes the
    `count` memories, arguments of `ManyPredictor`."""
    from ntt_jax.ablation.scoring import evaluate_shared
    from ntt_jax.evaluation import prepare_ground_truth
    from ntt_jax.runs import images as runner
    from ntt_jax.runs.folder import RunFolder
    from weight_port.files import sha256

    dataset = models.look_at_images(args, dataset, args.images)
    runner.check_images(dataset, args.images)
    ground_truth = prepare_ground_truth(dataset, categories)
    for note in ground_truth.notes:
        models.warn(note)
    config = options.detect_config(args)
    identity = {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(args.sam2),
        "DINOv2 checkpoint": sha256(args.dinov2),
        **choice,
        "annotation file": dataset.sha256,
        "classes": {str(category.id): category.name for category in categories},
        "detection options": dataclasses.asdict(config),
        "dtype": args.dtype,
        **models.exif_identity(args),
    }
    with RunFolder(lock, identity, restart=args.restart) as run:
        todo = runner.unfinished(run.records, dataset, args.images)
        if todo:
            _segment(args, run, dataset, memories(), todo)

        def found() -> "Iterator[SharedDetections]":
            return shared_detections(run, dataset)

        metrics = evaluate_shared(ground_truth, found, count)
        return metrics, {"skipped": runner.skipped_images(run, dataset), "provenance": run.identity}


def _segment(
    args: argparse.Namespace, run: "RunFolder", dataset: "CocoDataset", memories: dict[str, Any], todo: set[int]
) -> None:
    """Segment the images `todo` with all memories and record what each found."""
    from ntt_jax.ablation.predictor import ManyPredictor

    def load(devices: list[Any], largest_side: int) -> Any:
        return models.make_predictor(
            ManyPredictor, args, options.detect_config(args), devices, largest_side, **memories
        )

    def record(image: "CocoImage", found: "SharedDetections") -> dict[str, Any]:
        return dataclasses.replace(found, image_id=image.id).to_json()

    what = f"ablate, {len(memories['prototypes'])} memories"
    evaluate.segment(args, run, dataset, todo, load, what, record)


def shared_detections(run: "RunFolder", dataset: "CocoDataset") -> "Iterator[SharedDetections]":
    """The recorded detections by ascending image id, read from the disk one by one; skipped images are left out."""
    from ntt_jax.ablation.detections import SharedDetections
    from ntt_jax.files import show_path

    for image_id in sorted(dataset.images):
        if not run.records.skipped(image_id):
            where = f"{show_path(run.folder)}: record of image {image_id}"
            yield SharedDetections.from_json(run.records.read(image_id), where)


def encode(args: argparse.Namespace, dataset: "CocoDataset", references: "ReferenceSet") -> "Memory":
    """The memory of all references, kept in RUN_DIR/references as they are encoded."""
    from ntt_jax.references.sampling import check_references
    from ntt_jax.runs.folder import RunFolder
    from ntt_jax.runs.lock import FolderLock
    from ntt_jax.runs.memory import recorded_memory

    images = args.reference_images or args.images
    dataset = models.look_at_images(args, dataset, images, memory.reference_images(references))
    check_references(references, dataset)
    folder = args.out / "references"
    options.make_output_folder(folder)
    _, source_sha256 = models.read_encoder(args.dinov2)
    identity = memory.describe(args, dataset, references, source_sha256)
    numbers = range(sum(len(chosen.references) for chosen in references.classes))
    with FolderLock(folder) as lock, RunFolder(lock, identity, restart=args.restart, key="reference") as run:
        todo = {number for number in numbers if number not in run.records}
        if todo:
            memory.encode(args, run, dataset, images, references, numbers, todo)
        return recorded_memory(run, references)


def report(folder: Path, outcome: dict[str, Any]) -> None:
    """Print the tables; warn of what a person may have missed."""
    from ntt_jax.ablation import tables as ablation_tables

    if skipped := outcome["skipped"]:
        models.warn(f"{len(skipped)} images were skipped and count as missed; ablation.json lists them")
    if "by_shots" in outcome:
        rows = outcome["by_shots"]
        words = ablation_tables.headline(rows[0])[1]
        show(f"{folder}: mean and standard deviation over the seeds, in percent")
        show_lines(ablation_tables.shots_table(rows))
        show(f"AP of {words} by class and number of shots")
        show_lines(ablation_tables.class_table(rows))
    else:
        kind, words = ablation_tables.headline(outcome["whole"])
        show(f"{folder}: AP of {words} {ablation_tables.percent(outcome['whole'][kind]['AP'])} with all references")
        show_lines(ablation_tables.reference_table(outcome["without"]))
