"""`ntt-jax report`: one HTML page about a finished run."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ntt_jax.cli import models, options
from ntt_jax.text import counted, show

EPILOG = """\
examples:
  ntt-jax report runs/30shot
  ntt-jax report runs/30shot --images /data/val2017 --max-images 500 --out 30shot.html
  ntt-jax report demo_out --shots 5

The page is one file that opens from the disk, without a network: metrics and tables of classes, precision over recall,
what goes wrong and which classes are confused, a gallery with annotations beside detections, the references and what
the doctor thinks of them (see `ntt-jax references --help`), the memory, and where everything comes from.

Of a folder of `ntt-jax tune` the page shows the chosen rules, all that was tried, and the thresholds of the classes.
Of a folder of `ntt-jax segment` the page shows counts and areas of the classes, their scores, and the photos.

thresholds.json in RUN_DIR holds each class's score threshold with the best F1, for `ntt-jax segment --thresholds`.

Where the files of a run are is noted in its run.json, so options are needed only for what has moved since, or what the
run did not see: the annotations and images of the references, where they are others than those of the targets."""


OPTIONS = ("annotations", "images", "memory", "references", "reference_annotations", "reference_images")
"""Files of a run that may be named."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "report", run, "make one HTML page about a finished run", EPILOG)
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="--out folder of evaluate, run, demo, segment or tune"
    )
    parser.add_argument(
        "--out", type=Path, metavar="report.html", help="file to write (default: report.html in RUN_DIR)"
    )
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the name of RUN_DIR)")
    parser.add_argument(
        "--max-images",
        type=options.whole_number(0, 10**5),
        default=200,
        metavar="N",
        help="images in the gallery, spread evenly over those with objects or detections (default: 200)",
    )
    parser.add_argument(
        "--shots",
        type=options.whole_number(1, 10**6),
        metavar="N",
        help="which of the demo's runs (default: the one with the most references)",
    )
    group = parser.add_argument_group("files, where run.json does not say or they have moved")
    options.add_paths(group, *OPTIONS, required=False, remote=True)
    parser.add_argument(
        "--dinov2",
        metavar="W",
        help="the memory's DINOv2, by name or any checkpoint: also show components and clusters of the references' "
        "patches",
    )
    parser.set_defaults(dtype="float32", devices=None, cores=None, compilation_cache=None)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    if args.out is not None:
        options.check_output_file(args.out)
    options.check_folder(args.run_dir, "RUN_DIR")
    options.check_paths(args, "dinov2")
    options.resolve_weights(args)
    from ntt_jax.files import write_json
    from ntt_jax.report import run_files as report_files
    from ntt_jax.report.page import write_report

    given = {name: getattr(args, name) for name in OPTIONS}
    if report_files.is_found(args.run_dir, args.shots):
        report_found(args)
        return
    if report_files.is_tuned(args.run_dir, args.shots):
        report_tuned(args)
        return
    files = report_files.find_files(args.run_dir, given, args.shots)
    out = args.out or args.run_dir / f"report{files.suffix}.html"
    options.check_output_file(out)
    report = report_files.load_report(files, args.title, args.max_images)
    if args.dinov2 is not None:
        report = dataclasses.replace(report, patches=models.show_patches(args, report.bank, report.sources))
    metrics, thresholds = write_report(out, report)
    best = args.run_dir / report.thresholds
    write_json(best, thresholds)
    for note in report.notes:
        models.warn(note)
    size = out.stat().st_size / 1e6
    show(
        f"{out}: {counted(metrics['detections'], 'detection')} in {counted(metrics['images'], 'image')} ({size:.1f} MB)"
    )
    count = len(thresholds["thresholds"])
    if count:
        words = counted(count, "class", "classes")
        show(f"{best}: the score threshold with the best F1 for {words}; ntt-jax segment ... --thresholds {best}")


def report_found(args: argparse.Namespace) -> None:
    """The page of a folder that `segment` wrote."""
    from ntt_jax.report.found import write_found_report
    from ntt_jax.report.run_files import load_found

    out = args.out or args.run_dir / "report.html"
    options.check_output_file(out)
    options.check_paths(args, "images")
    found = load_found(args.run_dir, args.images, args.title, args.max_images)
    counts = write_found_report(out, found)
    for note in found.notes:
        models.warn(note)
    size = out.stat().st_size / 1e6
    show(f"{out}: {counts['detections']} detections in {counts['images']} images ({size:.1f} MB)")


def report_tuned(args: argparse.Namespace) -> None:
    """The page of a folder that `tune` wrote."""
    from ntt_jax.report.tuned import write_tuned_report

    out = args.out or args.run_dir / "report.html"
    options.check_output_file(out)
    tune = write_tuned_report(out, args.run_dir, args.title)
    show(f"{out}: {tune['configurations']} configurations tried ({out.stat().st_size / 1e6:.1f} MB)")
