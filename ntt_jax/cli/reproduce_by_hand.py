"""`ntt-jax reproduce voc` and `cd-fsod`: several runs whose mean was published, on data that was fetched by hand."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import masks, models, options, sample
from ntt_jax.cli import run as run_command
from ntt_jax.cli.call import call
from ntt_jax.files import write_json
from ntt_jax.reproduce.by_hand import Task, tasks
from ntt_jax.reproduce.published import ByHand
from ntt_jax.text import show, show_lines


def reproduce(args: argparse.Namespace, benchmark: ByHand, settings: Any, read: Any) -> None:
    """Do all runs and say what their mean is. settings, read: of `cli.reproduce`: what a verdict depends on, and how
    results are read."""
    from ntt_jax.reproduce import verdict

    shots = args.shots or list(benchmark.shots)
    todo, lacking = tasks(benchmark, args.data, shots)
    options.resolve_weights(args)
    out = args.out or args.data / "ntt-jax" / f"{benchmark.name}-{'-'.join(map(str, shots))}shot"
    options.make_output_folder(out)
    found: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(todo, 1):
        models.say(f"{benchmark.name}: {task.name}, run {number} of {len(todo)}")
        found[task.name] = _run(args, task, out / task.name, read)
    kind, measure = "bbox", benchmark.measure
    values = {task.name: found[task.name][kind][measure] for task in todo}
    rows = []
    for number in shots:
        of_shots = [values[task.name] for task in todo if task.shots == number]
        rows.append(verdict.mean_row(number, of_shots, benchmark.by_shots.get(number)))
    whole = set(shots) == set(benchmark.shots)
    if benchmark.overall is not None:
        rows.append(verdict.mean_row(0, list(values.values()), benchmark.overall if whole else None))
    skipped = sum(len(one["skipped"]) for one in found.values())
    known = settings(args, 0, skipped)
    different = verdict.differences(benchmark, {**known, "images": benchmark.images})
    if lacking:
        different.append(f"{', '.join(lacking)} is not there")
    content = verdict.to_json(rows, different, {**known, "images": {n: one["images"] for n, one in found.items()}})
    write_json(out / "reproduce.json", {**content, "runs": values})
    show(f"{benchmark.name}, {known['sam2']} and {known['dinov2']}: {measure} of boxes in percent")
    for name, value in values.items():
        show(f"  {name:<24}{'-' if value is None else f'{100 * value:.2f}':>8}")
    show_lines(verdict.format_table(rows))
    show(verdict.verdict(rows, different))
    show(f"{out / 'reproduce.json'} has all of it")


def _run(args: argparse.Namespace, task: Task, out: Path, read: Any) -> dict[str, Any]:
    """References, their masks, memory and evaluation, by the commands for them; returns what metrics.json holds."""
    options.make_output_folder(out)
    boxes = task.source
    if task.lists is not None:
        boxes = out / "boxes.json"
        chosen = {"annotations": task.source, "classes": task.classes, "shots": task.shots, "lists": task.lists}
        call(args, sample, "sample", {**chosen, "out": out / "chosen.json", "coco": boxes})
    made = out / "masks.json"
    if not made.exists():  # it is written when it is whole
        call(args, masks, "masks", {"sam2": args.sam2, "boxes": boxes, "images": task.images, "out": made})
    few = [] if task.lists is not None else ["--allow-fewer"]
    given = {
        **{"sam2": args.sam2, "dinov2": args.dinov2, "classes": task.classes, "shots": task.shots, "lists": made},
        **{"reference-annotations": made, "reference-images": task.images},
        **{"annotations": task.annotations, "images": task.target_images, "out": out / "run"},
    }
    call(args, run_command, "run", given, few)
    return read(out / "run" / "metrics.json")
