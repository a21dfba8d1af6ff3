"""`ntt-jax ablate`: many memories on the same images in one run."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import evaluate, models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.text import show, show_lines

EPILOG = """\
examples:
  ntt-jax ablate --sam2 W --dinov2 W --classes novel --shots 1,2,3,5,10,30 --seeds 10 \\
                 --reference-annotations instances_train2017.json --reference-images train2017 \\
                 --annotations instances_val2017.json --images val2017 --out runs/ablation
  ntt-jax ablate --memory memory.safetensors \\
                 --annotations instances_val2017.json --images val2017 --out runs/references

The first samples a memory for every number of shots and every seed, as `sample` and `memory` would, and reports mean
and standard deviation over the seeds. The second leaves out each reference of one memory in turn. Each reference and
each image is encoded once, whatever the number of memories. `evaluate` gives every memory the same numbers.

RUN_DIR/ablation.json holds all numbers of `evaluate` for every memory and class, by the rules of the data set. When
stopped, the same command continues where it was."""

MAX_MEMORIES = 10_000


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "ablate", run, "compare numbers of shots, seeds or references in one run", EPILOG
    )
    options.add_paths(parser, "sam2", "dinov2")
    add_memories(parser)
    group = parser.add_argument_group("or: one memory without each of its references")
    options.add_paths(group, "memory", required=False)
    options.add_paths(parser, "annotations", "images", remote=True)
    evaluate.add_run_folder(parser)
    evaluate.add_scorer(parser)
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_compute(parser)
    options.add_ray(parser)


def add_memories(parser: Any) -> None:
    """The options of memories of several numbers of shots and seeds."""
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
    options.add_paths(group, "reference_annotations", "reference_images", required=False, remote=True)
    group.add_argument(
        "--allow-fewer", action="store_true", help="go on when a class has fewer usable references than shots"
    )


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
    check_memories(args)
    options.check_paths(args, "annotations", "images")
    options.make_output_folder(args.out)


def check_memories(
    args: argparse.Namespace, otherwise: str = "--memory, to leave out its references one by one"
) -> None:
    """Raise `InputError` unless the memories are given in one of both ways."""
    needed = {"--shots": args.shots, "--classes": args.classes, "--reference-annotations": args.reference_annotations}
    if args.memory is not None:
        more = {"--reference-images": args.reference_images, "--allow-fewer": args.allow_fewer or None}
        if given := [name for name, value in {**needed, **more}.items() if value is not None]:
            raise InputError(f"{given[0]}: --memory brings its own references; give one or the other")
    elif missing := [name for name, value in needed.items() if value is None]:
        raise InputError(f"give {', '.join(missing)} too (or {otherwise})")
    else:
        options.check_paths(args, "reference_annotations", "reference_images")
        if len(args.shots) * args.seeds > MAX_MEMORIES:
            raise InputError(f"--shots, --seeds: {len(args.shots) * args.seeds} memories, at most {MAX_MEMORIES}")


def shots(args: argparse.Namespace) -> Any:
    """The memories that the options of `add_memories` describe."""
    from ntt_jax.ablation.job import Shots

    seeds = range(args.seed, args.seed + args.seeds)
    return Shots(args.reference_annotations, args.reference_images, args.classes, args.shots, seeds, args.allow_fewer)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.ablation.job import ablate

    memories = shots(args) if args.memory is None else args.memory
    args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
    outcome = ablate(
        args.out,
        memories,
        sam2=args.sam2,
        dinov2=args.dinov2,
        annotations=args.annotations,
        images=args.images,
        config=options.detect_config(args),
        compute=compute,
        exif=args.exif,
        restart=args.restart,
        scorer=args.scorer,
        observer=Progress(),
    )
    report(args.out, outcome)


def report(folder: Path, outcome: dict[str, Any]) -> None:
    """Print the tables; warn of what a person may have missed."""
    from ntt_jax.ablation import tables as ablation_tables

    if skipped := outcome["skipped"]:
        models.warn(f"images skipped, which count as missed: {len(skipped)}; ablation.json lists them")
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
