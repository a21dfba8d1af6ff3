"""Options of the commands that take `--ray`, one after the other: with it the files are those without it, to the byte.

    python scripts/ray_options.py                 # all: some minutes
    python scripts/ray_options.py tiles boxes     # those whose name has one of these words

Each line is one command of made scenes and tiny models with random weights, run by one process and then by the workers
of one cluster on this machine. All files that both wrote are compared, but for those that say when and how a run went
(run.json, records, copied.txt). Ends with status 1 if any differs. Needs the `test` extra and a checkout.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

OF_THE_START = ("run.json", "finished.records", "copied.txt", "lock")
RULES: dict[str, dict[str, Any]] = {
    "merges and powers": {"merge": "diffusion", "iou_power": 0.5, "softmax_temperature": 0.1, "hubness": "centre"},
    "stability, csls": {"stability_power": 1, "stability_threshold": 0.1, "hubness": "csls", "merge": "plain"},
    "refining by boxes": {"refine": "box"},
    "refining by masks": {"refine": "mask_and_box"},
    "more points": {"extra_points": 4},
    "thresholds of classes": {"class_thresholds": [0.1, 0.2, 0.3]},
}


def commands(world: Any, folder: Path) -> Iterator[tuple[str, list[str], bool]]:
    """What to run: a name, the command without `--out` and `--ray`, and whether it writes one file, no folder."""
    import cli_files

    def options(**given: Any) -> list[str]:
        return cli_files.arguments({"compilation_cache": world.cache, **given})

    both = {"sam2": world.sam2, "dinov2": world.dinov2}
    target = {**both, "memory": world.memory, "cores": 1, "points_per_side": 6}
    data = {"annotations": cli_files.write_scenes(world.folder, 7, 5), "images": world.images}
    sources = {"reference_annotations": world.train, "reference_images": world.images}
    sampled = {**sources, "classes": "all", "shots": 2}
    boxes = boxes_of(data["annotations"], folder / "boxes.json")
    named = boxes_of(data["annotations"], folder / "named.json", by_name=True)
    negatives = negatives_of(world, folder / "negatives.json")
    thresholds = folder / "thresholds.json"
    thresholds.write_text(json.dumps({"square": 0.2, "disc": 0.1}))

    def evaluate(**given: Any) -> list[str]:
        return ["evaluate", *options(**{**target, **data, "batch_size": 2, **given})]

    yield "memory", ["memory", *options(dinov2=world.dinov2, **memory_of(world), batch_size=2)], True
    with_negatives = {**memory_of(world), "negatives": negatives, "negative_images": world.images}
    yield "memory --negatives", ["memory", *options(dinov2=world.dinov2, **with_negatives)], True
    yield "evaluate", evaluate(), False
    yield "evaluate, groups of 3", evaluate(batch_size=3), False
    yield "evaluate, bfloat16", evaluate(dtype="bfloat16"), False
    yield "evaluate --exif raw", evaluate(exif="raw"), False
    yield "evaluate, constants", evaluate(**CONSTANTS), False
    yield "evaluate --scorer", evaluate(scorer="pycocotools"), False
    yield "evaluate, boxes", evaluate(proposals=boxes), False
    yield "evaluate, boxes and points", evaluate(proposals=boxes, proposals_mode="join"), False
    yield "evaluate --tiles 2", evaluate(tiles=2), False
    yield "evaluate --tile-size", evaluate(tile_size=48, tile_overlap=0.4), False
    for name, rules in RULES.items():
        method = folder / f"{name}.json"
        method.write_text(json.dumps(rules))
        yield f"evaluate --method: {name}", evaluate(method=method), False
    yield "run --negatives", ["run", *options(**run_of(target), **data, **sampled, negatives=negatives)], False
    yield (
        "run, boxes and tiles refused",
        ["run", *options(**run_of(target), **data, **sampled, proposals=boxes, tiles=2)],
        False,
    )
    yield "run --tiles", ["run", *options(**run_of(target), **data, **sampled, tiles=2)], False
    few = {**sampled, "shots": "1,2", "seeds": 2, "points_per_side": 6, **both, **data}
    yield "ablate, seeds", ["ablate", *options(**few)], False
    yield "ablate, references", ["ablate", *options(**both, **data, memory=world.memory, points_per_side=6)], False
    tune = {"grid": "quick", "search": "one"}
    labelled = {"annotations": world.val, "images": world.images}  # more of them, to divide
    yield "tune", ["tune", *options(**both, **labelled, memory=world.memory, points_per_side=6, **tune)], False
    photos = [str(path) for path in sorted(world.images.glob("scene5_*"))]

    def segment(**given: Any) -> list[str]:
        return ["segment", *photos, *options(**{**target, "score_threshold": 0.1, **given})]

    formats = "csv,coco,labelme,yolo,yolo-boxes,voc,png,parquet"
    yield "segment, formats", segment(format=formats, polygon_error=0.5), False
    yield "segment --thresholds", segment(thresholds=thresholds, classes="disc,square"), False
    yield "segment, boxes", segment(proposals=named), False
    yield "segment --tiles", segment(tiles=2, pictures="masks"), False
    references = {"references": reference_folder(world, folder / "references"), "memory": None}
    yield "segment --references", segment(**references), False
    everything = {"everything": True, "sam2": world.sam2, "points_per_side": 6, "cores": 1, "pred_iou_thresh": 0.0}
    everything |= {"stability_score_thresh": 0.0}
    yield "segment --everything", ["segment", *photos, *options(**everything)], False
    yield "segment --everything, crops", ["segment", *photos, *options(**everything, crop_n_layers=1)], False


CONSTANTS = {"pred_iou_threshold": 0.1, "nms_iou_threshold": 0.9, "max_detections": 7, "classes_per_mask": 2}


def memory_of(world: Any) -> dict[str, Path]:
    """The options of `memory` that name files."""
    return {"annotations": world.train, "images": world.images, "references": world.references}


def run_of(target: dict[str, Any]) -> dict[str, Any]:
    """The options of a target pass without a memory."""
    return {name: value for name, value in target.items() if name != "memory"}


def boxes_of(annotations: Path, path: Path, by_name: bool = False) -> Path:
    """The true boxes of the scenes as proposals."""
    content = json.loads(annotations.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    entries = []
    for number, one in enumerate(content["annotations"]):
        image = {"file_name": names[one["image_id"]]} if by_name else {"image_id": one["image_id"]}
        entries.append({**image, "bbox": one["bbox"], "score": 0.5 + number / 100})
    path.write_text(json.dumps(entries))
    return path


def negatives_of(world: Any, path: Path) -> Path:
    """Objects of the references' images as what another class is mistaken for."""
    content = json.loads(world.train.read_text())
    ids = [category["id"] for category in content["categories"]]
    content["annotations"] = content["annotations"][:6]
    for one in content["annotations"]:
        one["category_id"] = ids[(ids.index(one["category_id"]) + 1) % len(ids)]
    path.write_text(json.dumps(content))
    return path


def reference_folder(world: Any, folder: Path) -> Path:
    """Photos with an annotation file beside them, as `ntt-jax fit` takes them."""
    folder.mkdir()
    content = json.loads(world.train.read_text())
    for image in content["images"]:
        (folder / image["file_name"]).write_bytes((world.images / image["file_name"]).read_bytes())
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def written(out: Path) -> dict[str, bytes]:
    """The files below a folder by name, or one file, but for those that tell of the start."""
    if out.is_file():
        return {"file": out.read_bytes()}
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in files
        if not path.name.endswith(OF_THE_START) and not path.name.startswith(".")
    }


def call(command: list[str]) -> tuple[int, str, float]:
    """Exit status, last line said on stderr, seconds."""
    from ntt_jax.cli import main

    said, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    lines = said.getvalue().strip().splitlines()
    return status, lines[-1] if lines else "", time.monotonic() - started


def compare(command: list[str], place: Path, one_file: bool) -> tuple[bool, str]:
    """Whether a command does the same with and without `--ray`, and what happened in words."""
    outs = [place / name / ("memory.safetensors" if one_file else "out") for name in ("alone", "together")]
    for out in outs:
        out.parent.mkdir(parents=True)
    plain = call([*command, "--out", str(outs[0])])
    ray = call([*command, "--out", str(outs[1]), "--ray", "auto"])
    if plain[0] or ray[0]:
        same = plain[:2] == ray[:2] and plain[0] == 2
        return same, f"both refused: {plain[1]}" if same else f"status {plain[0]} {plain[1]}; {ray[0]} {ray[1]}"
    files, theirs = map(written, outs)
    differing = sorted(name for name in files.keys() | theirs.keys() if files.get(name) != theirs.get(name))
    size = sum(map(len, files.values()))
    if differing or not files:
        return False, f"DIFFER: {', '.join(differing[:5])}"
    return True, f"{len(files)} files, {size:,} bytes equal ({plain[2]:.0f} and {ray[2]:.0f} s)"


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only what has one of these words in its name")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="at once (default: 2)")
    args = parser.parse_args()
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # which the first command would settle for all others
    os.environ |= {"RAY_worker_niceness": "0", "RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import cli_files
    import ray

    well = True
    with tempfile.TemporaryDirectory() as name:
        world = cli_files.make_world(Path(name))
        world.cache.mkdir(mode=0o700)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        ray.init("local", num_cpus=args.workers, **quiet)
        try:
            for number, (title, command, one_file) in enumerate(commands(world, Path(name))):
                if args.words and not any(word in title for word in args.words):
                    continue
                same, said = compare(command, Path(name) / str(number), one_file)
                well &= same
                print(f"{'same' if same else 'NOT '}  {title}: {said}", flush=True)
        finally:
            ray.shutdown()
    print("ALL THE SAME" if well else "NOT ALL THE SAME", flush=True)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
