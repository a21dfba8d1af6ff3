"""`ntt-jax reproduce`: a published table on this machine, from nothing to the verdict."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import ablate, models, options
from ntt_jax.cli import run as run_command
from ntt_jax.cli.call import call
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.reproduce.published import BENCHMARKS, BY_HAND, Benchmark

if TYPE_CHECKING:
    from ntt_jax.reproduce.coco import Coco
    from ntt_jax.reproduce.verdict import Row

EPILOG = """\
examples:
  ntt-jax reproduce coco-30shot --data coco --download
  ntt-jax reproduce coco-30shot --data coco --shots 1,2,3,5,10,30 --seeds 10       the paper's whole table, in one pass
  ntt-jax reproduce coco20i-0 --data coco
  ntt-jax reproduce voc --data voc                  3 splits, 1, 2, 3, 5 and 10 shots; fetched by hand
  ntt-jax reproduce cd-fsod --data cdfsod           6 data sets, 1, 5 and 10 shots; fetched by hand

For COCO, DIR is COCO 2017 in its usual layout: annotations/instances_{train,val}2017.json, val2017, train2017.
--download first says how much space is needed, then fetches what is missing from COCO's own servers: the annotations,
val2017 (0.8 GB), and those images of train2017 that serve as references. For VOC and CD-FSOD the command says what is
missing and where to fetch it. After an interruption the same command goes on. It ends with a table of published and
found numbers and says what differs from the published run.

One number of shots and one seed is `ntt-jax run`, several are `ntt-jax ablate`, with the same files in --out."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "reproduce", run, "compute a published table on this machine", EPILOG)
    parser.add_argument(
        "benchmark",
        choices=(*BENCHMARKS, *BY_HAND),
        metavar="BENCHMARK",
        help=", ".join((*BENCHMARKS, *BY_HAND)),
    )
    options.add_paths(parser, "sam2", "dinov2")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data: docs/reproduce.md")
    parser.add_argument("--download", action="store_true", help="fetch what is missing of it")
    parser.add_argument(
        "--shots",
        type=ablate.whole_numbers,
        metavar="LIST",
        help="references per class, as 1,5,30 (default: 30 of coco-30shot, 1 of COCO-20i, else all published ones)",
    )
    parser.add_argument(
        "--seeds", type=options.whole_number(1, 1000), default=1, metavar="N", help="how many seeds (default: 1)"
    )
    parser.add_argument(
        "--seed",
        type=options.whole_number(0, 2**31),
        default=33,
        metavar="N",
        help="the first of them (default: 33, the published one)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN_DIR", help="folder of this run (default: one in DIR/ntt-jax by its settings)"
    )
    options.add_detection(parser)
    options.add_compute(parser, cores=True)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    if args.benchmark in BY_HAND and args.download:
        raise InputError(
            f"--download: the data of {args.benchmark} must be fetched by hand: {BY_HAND[args.benchmark].sources}"
        )
    if args.benchmark in BY_HAND and args.seeds > 1:
        raise InputError(f"--seeds: the references of {args.benchmark} are lists; there is nothing to draw")
    options.check_paths(args, "sam2", "dinov2")
    if args.download:
        options.make_output_folder(args.data, "--data")
    options.check_folder(args.data, "--data")


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    args.resume_hint = "what is finished is saved; the same command goes on from there"
    if args.benchmark in BY_HAND:
        from ntt_jax.cli.reproduce_by_hand import reproduce

        reproduce(args, BY_HAND[args.benchmark], _settings, _read)
        return
    benchmark = BENCHMARKS[args.benchmark]
    shots = args.shots or [benchmark.shots]
    options.resolve_weights(args)
    from ntt_jax.datasets import load_dataset
    from ntt_jax.files import write_json
    from ntt_jax.reproduce import verdict
    from ntt_jax.reproduce.coco import Coco

    coco = Coco(args.data)
    prepare(args, benchmark, coco, shots)
    several = len(shots) > 1 or args.seeds > 1
    out = args.out or args.data / "ntt-jax" / _name(args, benchmark, shots, several)
    options.make_output_folder(out)
    rows, skipped = (_ablate if several else _run)(args, benchmark, coco, shots, out)
    settings = _settings(args, len(load_dataset(coco.val_annotations).images), skipped)
    different = verdict.differences(benchmark, settings)
    write_json(out / "reproduce.json", verdict.to_json(rows, different, settings))
    print(
        f"\n{args.benchmark}, {settings['sam2']} and {settings['dinov2']}, {settings['images']} images: AP in percent"
    )
    print(verdict.format_table(rows))
    print(verdict.verdict(rows, different))
    print(f"{out / 'reproduce.json'} has all of it")


def prepare(args: argparse.Namespace, benchmark: Benchmark, coco: "Coco", shots: list[int]) -> None:
    """Check the data and, with `--download`, fetch what is missing. Raises `InputError` that says what is missing."""
    from ntt_jax.datasets import load_dataset
    from ntt_jax.datasets.class_lists import CLASS_LISTS
    from ntt_jax.datasets.dataset import select_classes
    from ntt_jax.reproduce import coco as data

    def lacks(what: str) -> InputError:
        return InputError(f"--data: {what}; --download fetches that from {data.coco_url()}")

    if coco.lacks_annotations():
        if not args.download:
            raise lacks(f"{coco.val_annotations} or {coco.train_annotations} is not there")
        # Before the first byte comes; which images are lacking is known when the annotations are here.
        expected = [data.ANNOTATIONS] if coco.val_images.is_dir() else [data.ANNOTATIONS, data.VAL_IMAGES]
        images = max(shots) * args.seeds * len(CLASS_LISTS[benchmark.classes])
        data.require_space(coco.folder, expected, images, models.say)
        data.fetch_archive(coco, data.ANNOTATIONS)
    targets = load_dataset(coco.val_annotations)
    sources = load_dataset(coco.train_annotations)
    from ntt_jax.ablation.memories import sample_many

    seeds = range(args.seed, args.seed + args.seeds)
    sets = sample_many(sources, select_classes(sources, benchmark.classes), shots, seeds)
    chosen = sorted({one.image_id for references in sets.values() for c in references.classes for one in c.references})
    val = data.missing_images(targets, coco.val_images, targets.images)
    train = data.missing_images(sources, coco.train_images, chosen)
    if (val or train) and not args.download:
        raise lacks(
            f"{len(val)} of {len(targets.images)} images are not in {coco.val_images}, and {len(train)} of the "
            f"{len(chosen)} with references are not in {coco.train_images}"
        )
    if val or train:
        data.require_space(coco.folder, [data.VAL_IMAGES] if val else [], len(train), models.say)
    if val:
        data.fetch_archive(coco, data.VAL_IMAGES)
        if val := data.missing_images(targets, coco.val_images, targets.images):
            name = targets.images[val[0]].file_name
            raise InputError(f"--data: {len(val)} images (the first is {name}) are not in COCO's archive of val2017")
    if train:
        from ntt_jax.runs.observer import work

        progress = Progress()
        with work(progress, "download", len(chosen), done=len(chosen) - len(train)):
            data.fetch_images(coco, sources, train, progress.step)
    models.say(f"COCO: {len(targets.images)} images to segment, {len(chosen)} with references: all there")


def _name(args: argparse.Namespace, benchmark: Benchmark, shots: list[int], several: bool) -> str:
    seeds = f"seeds{args.seed}-{args.seed + args.seeds - 1}" if several else f"seed{args.seed}"
    return f"{benchmark.classes}-{'-'.join(map(str, shots))}shot-{seeds}"


def _run(
    args: argparse.Namespace, benchmark: Benchmark, coco: "Coco", shots: list[int], out: Path
) -> "tuple[list[Row], int]":
    """One memory, by `ntt-jax run`."""
    from ntt_jax.reproduce import verdict

    _call(args, run_command, "run", benchmark, coco, ["--shots", str(shots[0])], out)
    metrics = _read(out / "metrics.json")
    seeds = [args.seed]
    rows = [verdict.row(benchmark, shots[0], seeds, kind, metrics[kind]["AP"], None) for kind in verdict.WORDS]
    return rows, len(metrics["skipped"])


def _ablate(
    args: argparse.Namespace, benchmark: Benchmark, coco: "Coco", shots: list[int], out: Path
) -> "tuple[list[Row], int]":
    """Many memories in one pass, by `ntt-jax ablate`."""
    from ntt_jax.reproduce import verdict

    more = ["--shots", ",".join(map(str, shots)), "--seeds", str(args.seeds)]
    _call(args, ablate, "ablate", benchmark, coco, more, out)
    outcome = _read(out / "ablation.json")
    seeds = list(range(args.seed, args.seed + args.seeds))
    rows = [
        verdict.row(benchmark, one["shots"], seeds, kind, one[kind]["AP"]["mean"], one[kind]["AP"]["std"])
        for one in outcome["by_shots"]
        for kind in verdict.WORDS
    ]
    return rows, len(outcome["skipped"])


def _call(
    args: argparse.Namespace, command: Any, name: str, benchmark: Benchmark, coco: "Coco", more: list[str], out: Path
) -> None:
    """Run another command on COCO with the options of this one."""
    given = {
        "sam2": args.sam2,
        "dinov2": args.dinov2,
        "classes": benchmark.classes,
        "seed": args.seed,
        "reference-annotations": coco.train_annotations,
        "reference-images": coco.train_images,
        "annotations": coco.val_annotations,
        "images": coco.val_images,
        "out": out,
    }
    call(args, command, name, given, more)


def _settings(args: argparse.Namespace, images: int, skipped: int) -> dict[str, Any]:
    """What the verdict depends on."""
    from weight_port.store import read_safetensors

    weights: dict[str, Any] = {}
    for kind in ("sam2", "dinov2"):
        metadata = read_safetensors(getattr(args, kind))[1]
        weights[kind] = _json(metadata["config"])["name"]
        weights[f"{kind}_source_sha256"] = metadata.get("source_sha256")
    return {
        **weights,
        "dtype": args.dtype,
        "detection": options.detect_config(args).changes(),
        "images": images,
        "skipped": skipped,
    }


def _read(path: Path) -> Any:
    from ntt_jax.files import parse_json, read_bytes

    return parse_json(read_bytes(path, max_bytes=2**30, what="results"), path, what="results")


def _json(text: str | bytes) -> Any:
    import json

    return json.loads(text)
