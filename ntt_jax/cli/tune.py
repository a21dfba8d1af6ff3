"""`ntt-jax tune`: record proposals once, try many rules on them, keep the best as a file."""

import argparse
import json
from pathlib import Path
from typing import Any

from ntt_jax.cli import ablate, evaluate, models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, read_bytes
from ntt_jax.text import show, show_lines

EPILOG = """\
examples:
  ntt-jax tune --sam2 W --dinov2 W --memory memory.safetensors \\
               --annotations my_photos.json --images my_photos --out runs/tune
  ntt-jax tune --sam2 W --dinov2 W --classes novel --shots 1,5 --seeds 8 \\
               --reference-annotations instances_train2017.json --reference-images train2017 \\
               --annotations labelled.json --images photos --out runs/tune --search random --trials 300
  ntt-jax segment --method runs/tune/method.json --thresholds runs/tune/thresholds.json ...

Each image goes through the models once; RUN_DIR keeps its proposals, so that another --search, --grid or memory costs
no new pass. The images are divided into those to choose on and those to report on, at random. What comes out is
method.json (the best constants, for --method), thresholds.json (from which score on to believe a detection of each
class) and tune.json (everything that was tried). docs/tune.md says how to read it."""

GRIDS = ("rules", "quick", "merge", "score")
SEARCHES = ("greedy", "one", "grid", "random", "none")
MAX_GRID_BYTES = 2**20


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "tune", run, "find better rules for labelled images of one's own", EPILOG)
    options.add_paths(parser, "sam2", "dinov2")
    ablate.add_memories(parser)
    group = parser.add_argument_group("or: memories from files")
    group.add_argument(
        "--memory", type=Path, nargs="+", metavar="memory.safetensors", help="files that `ntt-jax memory` wrote"
    )
    options.add_paths(parser, "annotations", "images", remote=True)
    evaluate.add_run_folder(parser)
    options.add_exif(parser)
    group = parser.add_argument_group("what is tried")
    group.add_argument(
        "--search",
        choices=SEARCHES,
        default="greedy",
        help="greedy: the best change, then the best one beside it, until none helps beyond the noise; one: every "
        "change by itself; grid: all combinations; random: --trials mixtures; none: only --compare (default: greedy)",
    )
    group.add_argument(
        "--grid",
        type=grid,
        default="rules",
        metavar="NAME|FILE",
        help=f"rules to try: {', '.join(GRIDS)}, or a JSON file with a list of values by constant, as "
        '{"iou_power": [0.5, 1], "merge": ["plain", "diffusion"]} (default: rules)',
    )
    group.add_argument(
        "--trials", type=options.whole_number(1, 10_000), default=100, metavar="N", help="of --search random"
    )
    group.add_argument(
        "--compare", type=method, nargs="+", default=[], metavar="FILE", help="methods to try beside (method.json)"
    )
    group = parser.add_argument_group("how it is judged")
    group.add_argument(
        "--metric", choices=("segm", "bbox"), default="segm", help="AP of masks or boxes is to grow (default: segm)"
    )
    group.add_argument(
        "--choose-share",
        type=options.fraction,
        default=0.5,
        metavar="X",
        help="share of the images to choose on; the others are to report on (default: 0.5)",
    )
    group.add_argument(
        "--division-seed",
        type=options.whole_number(0, 2**31),
        default=0,
        metavar="N",
        help="of the division of the images, a random search and the intervals (default: 0)",
    )
    group.add_argument(
        "--threshold-for",
        type=threshold_target,
        default=("f1", 0.0),
        metavar="f1|precision=X|recall=X",
        help="what thresholds.json is to give for each class: the best F1 (the default), or at least this precision or "
        "recall",
    )
    options.add_detection(parser)
    options.add_compute(parser)
    options.add_ray(parser)


def grid(text: str) -> Any:
    """An argparse type: the name of a grid, or the JSON in a file."""
    if text in GRIDS:
        return text
    try:
        return parse_json(read_bytes(text, max_bytes=MAX_GRID_BYTES, what="grid"), text, what="grid", strict=True)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error}; expected {', '.join(GRIDS)} or a JSON file") from None


def method(text: str) -> tuple[str, DetectConfig]:
    """An argparse type: a file of constants, with its name."""
    try:
        return text, DetectConfig.from_file(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def threshold_target(text: str) -> tuple[str, float]:
    """An argparse type: what thresholds are for."""
    kind, _, number = text.partition("=")
    if kind == "f1" and not number:
        return "f1", 0.0
    if kind not in ("precision", "recall"):
        raise argparse.ArgumentTypeError(f"expected f1, precision=X or recall=X, found {text!r}")
    return kind, options.fraction(number)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2")
    for path in args.memory or []:
        options.check_path(path, "memory")
    if not 0 < args.choose_share < 1:
        raise InputError(f"--choose-share: expected a number between 0 and 1, found {args.choose_share:g}")
    if args.search == "none" and not args.compare:
        raise InputError("--search none: give the methods to try with --compare")
    ablate.check_memories(args, "--memory, files of memories")
    options.check_paths(args, "annotations", "images")
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.tuning.job import Plan, tune
    from ntt_jax.tuning.operating_points import Target
    from ntt_jax.tuning.search import grid_of, rules_of

    rules = rules_of(args.grid) if isinstance(args.grid, str) else grid_of(args.grid, "--grid")
    args.resume_hint = f"what is recorded is saved in {args.out}; the same command goes on from there"
    outcome = tune(
        args.out,
        args.memory or ablate.shots(args),
        sam2=args.sam2,
        dinov2=args.dinov2,
        annotations=args.annotations,
        images=args.images,
        config=options.detect_config(args),
        plan=Plan(
            search=args.search,
            rules=rules,
            trials=args.trials,
            methods=dict(args.compare),
            metric=args.metric,
            share=args.choose_share,
            seed=args.division_seed,
            target=Target(*args.threshold_for),
        ),
        compute=compute,
        exif=args.exif,
        restart=args.restart,
        observer=Progress(),
    )
    report(args.out, outcome)


def report(folder: Path, outcome: dict[str, Any]) -> None:
    """Print the tables; warn of what a person may have missed."""
    from ntt_jax.tuning import tables

    if skipped := outcome["skipped"]:
        models.warn(f"images skipped, which count as missed: {len(skipped)}; tune.json lists them")
    images, kind = outcome["images"], outcome["metric"]
    words = {"segm": "masks", "bbox": "boxes"}[kind]
    show(f"{folder}: AP of {words} in percent, chosen on {images['choose']} images, reported on {images['report']}")
    show_lines(tables.trial_table(outcome))
    show_lines(tables.gain_lines(outcome))
    show_lines(tables.threshold_table(outcome))
    show(f"chosen: {json.dumps(outcome['chosen']['method'])}")
    show(f"use it with --method {folder / 'method.json'}")
