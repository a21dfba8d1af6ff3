"""The job behind `ntt-jax tune`: proposals recorded once; rules chosen on some of the images, reported on others."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ntt_jax
from ntt_jax.ablation.job import Shots, Targets
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.files import show_path, write_json
from ntt_jax.images.remote import Location
from ntt_jax.runs import inputs
from ntt_jax.runs.evaluation_job import largest_side
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.images import check_images, skipped_images, unfinished
from ntt_jax.runs.job import durable, segment_left
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.models import Compute, TargetPass, read_encoder
from ntt_jax.runs.observer import SILENT, Observer, warn
from ntt_jax.runs.paths import make_output_folder
from ntt_jax.runs.records import LINE_BYTES, MAX_RECORD
from ntt_jax.text import counted
from ntt_jax.tuning.experiment import Experiment, halves, interval, paired, resamples
from ntt_jax.tuning.memories import of_files, of_shots
from ntt_jax.tuning.operating_points import Target, operating_points
from ntt_jax.tuning.proposals import MAX_CANDIDATES, Proposals
from ntt_jax.tuning.recorder import ProposalRecorder
from ntt_jax.tuning.scoring import positives
from ntt_jax.tuning.search import RULES, Change, Trial, greedy, one_at_a_time, product, random_mixtures, trial
from weight_port.files import sha256

OUTPUTS = ("tune.json", "method.json", "thresholds.json")
SHOWN, SHOWN_RESAMPLES = 30, 100
"""Rows of the table whose gain gets an interval, the best ones, and the resamples that it is made of."""


@dataclass(frozen=True)
class Plan:
    """What is tried and how it is judged.

    search: one of `SEARCHES`, or "none": only `methods`. rules: changes by rule (`search.GRIDS`). trials: of a
    random search. methods: more configurations by name, tried beside. metric: "segm" or "bbox", whose AP is to grow.
    share: of the images, to choose on; the others are to report on. seed: of that division, of a random search and of
    the bootstraps. resamples: of each bootstrap. target: what the thresholds are to give.
    """

    search: str = "greedy"
    rules: Mapping[str, Sequence[Change]] = field(default_factory=lambda: RULES)
    trials: int = 100
    methods: Mapping[str, DetectConfig] = field(default_factory=dict)
    metric: str = "segm"
    share: float = 0.5
    seed: int = 0
    resamples: int = 300
    target: Target = field(default_factory=Target)


def tune(
    out: Path,
    memories: Shots | Sequence[Path],
    *,
    sam2: Path,
    dinov2: Path,
    annotations: Path,
    images: Location,
    config: DetectConfig | None = None,
    plan: Plan | None = None,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """Find better rules for a data set; called again after a stop, or with another plan, no image is recorded twice.

    Args:
      out: folder of the run. It receives tune.json, method.json (the chosen constants) and thresholds.json.
      memories: those of several numbers of shots and seeds, or memory files.
      config: the constants to start from. Proposals are recorded with its points_per_side and pred_iou_threshold.
      plan: what is tried and how it is judged.
      Other arguments and errors as `runs.evaluate`. `InputError` too for LVIS, whose rules are not COCO's.

    Returns:
      The content of tune.json.
    """
    config, plan, compute = config or DetectConfig(), plan or Plan(), compute or Compute()
    for one in (config, *plan.methods.values()):
        one.require_plain_points("tune")
    if config.points_per_side**2 > MAX_CANDIDATES:
        raise InputError(f"points_per_side: {config.points_per_side}, but at most {MAX_CANDIDATES} points are recorded")
    target = Targets(sam2, dinov2, annotations, images, config, compute, exif, restart)
    make_output_folder(out)
    with FolderLock(out) as lock:
        if restart:
            for name in OUTPUTS:
                (out / name).unlink(missing_ok=True)
        dataset = inputs.read_dataset(annotations, observer)
        if dataset.protocol == "lvis":
            raise InputError(f"{show_path(annotations)}: LVIS is not judged by COCO's rules, which tune applies")
        if isinstance(memories, Shots):
            dataset, categories, origin, make = of_shots(out, memories, target, dataset, observer)
        else:
            dataset, categories, origin, make = of_files(memories, target, dataset, observer)
        dataset = inputs.look_at_images(dataset, images, exif, observer, apart=compute.ray is not None)
        check_images(dataset, images)
        ground_truth = prepare_ground_truth(dataset, categories)
        for note in ground_truth.notes:
            warn(observer, note)
        if plan.metric not in ground_truth.kinds:
            raise InputError(f"{show_path(annotations)}: has no masks to compare; choose by boxes (--metric bbox)")
        if not positives(ground_truth, plan.metric).any():
            raise InputError(
                f"{show_path(annotations)}: no object of the memory's classes to judge by (crowds do not count)"
            )
        check_parts(division(len(ground_truth.image_ids), plan), positives(ground_truth, plan.metric))
        with durable(lock, recording_identity(target, dataset), observer, restart=restart) as run:
            record_left(run, target, dataset, observer)
            skipped = skipped_images(run, dataset)
            count = len(dataset.images) - len(skipped)
            made, short = make(), {}
            experiment = Experiment(
                lambda: recorded(run, dataset, short), count, ground_truth, made, config, observer=observer
            )
            outcome, chosen = choose(experiment, plan)
            outcome |= {"skipped": skipped, "shortened": _shortened(short, dataset, observer)}
            outcome["provenance"] = {**run.identity, **origin}
        if chosen.config == config:
            warn(observer, "nothing that was tried is better beyond the noise: method.json has the constants as given")
        elif outcome["chosen"]["gain"][plan.metric]["interval"] is None:
            warn(observer, "one image to report on has objects: nothing says how sure the gain is")
        elif outcome["chosen"]["within_noise"]:
            warn(observer, "the gain is within noise: the constants as given may serve as well on other images")
        thresholds = {one["class"]: one["threshold"] for one in outcome["thresholds"] if one["threshold"] is not None}
        write_json(out / "tune.json", outcome)
        write_json(out / "thresholds.json", {"thresholds": thresholds})
        write_json(out / "method.json", chosen.config.changes())
    return outcome


def recording_identity(target: Targets, dataset: CocoDataset) -> dict[str, Any]:
    """What recorded proposals depend on: neither memories nor classes, and no constant but two."""
    return {
        "ntt-jax": ntt_jax.__version__,
        "work": "proposals",
        "SAM 2 checkpoint": sha256(target.sam2),
        "DINOv2 checkpoint": sha256(target.dinov2),
        "annotation file": dataset.sha256,
        "points_per_side": target.config.points_per_side,
        "pred_iou_threshold": target.config.pred_iou_threshold,
        "dtype": target.compute.dtype,
        **inputs.exif_identity(target.exif),
    }


def record_left(run: RunFolder, target: Targets, dataset: CocoDataset, observer: Observer) -> None:
    """Record the proposals of all images that have no record yet."""
    if not (todo := unfinished(run.records, dataset, target.images)):
        return
    encoder = read_encoder(target.dinov2).config
    recorder = TargetPass(
        target.sam2,
        target.dinov2,
        np.zeros((1, encoder.embed_dim), np.float32),  # not looked at
        None,
        target.config,
        largest_side(dataset),
        ProposalRecorder,
    )
    segment_left(
        run,
        dataset,
        target.images,
        recorder,
        todo,
        what="record",
        compute=target.compute,
        files={
            "sam2": target.sam2,
            "dinov2": target.dinov2,
            "annotations": target.annotations,
            "images": target.images,
        },
        observer=observer,
        record=proposal_record,
    )


def proposal_record(image_id: int, found: Proposals) -> dict[str, Any]:
    """The record of an image. Candidates for which it has no room are left out, those of the lowest predicted IoUs."""
    return dataclasses.replace(found, image_id=image_id).fitted(MAX_RECORD - LINE_BYTES)


def recorded(run: RunFolder, dataset: CocoDataset, short: dict[int, int] | None = None) -> Iterator[Proposals]:
    """The recorded proposals by ascending image id, read from the disk one by one; skipped images are left out.

    short: where given, receives how many candidates are missing from records that had no room for them, by image id.
    """
    for image_id in sorted(dataset.images):
        if not run.records.skipped(image_id):
            where = f"{show_path(run.folder)}: record of image {image_id}"
            found = Proposals.from_json(run.records.read(image_id), where)
            if short is not None and found.left_out:
                short[image_id] = found.left_out
            yield found


def _shortened(short: Mapping[int, int], dataset: CocoDataset, observer: Observer) -> list[dict[str, Any]]:
    """Say of which images not all candidates were recorded."""
    if short:
        warn(
            observer,
            f"{counted(len(short), 'image')} with more candidates than a record holds: at most {max(short.values())} of"
            " the lowest predicted IoUs were left out; fewer --points-per-side or a higher --pred-iou-threshold record"
            " all (tune.json names the images)",
        )
    return [
        {"image_id": image_id, "file_name": dataset.images[image_id].file_name, "left_out": count}
        for image_id, count in sorted(short.items())
    ]


def division(images: int, plan: Plan) -> np.ndarray:
    """`halves`, which both have images. Raises `InputError` otherwise."""
    parts = halves(images, plan.share, plan.seed)
    if not parts.sum(axis=1).all():
        what = f"{counted(images, 'image')}, of which a share of {plan.share:g} is to choose on"
        raise InputError(f"{what}: too few to choose on some and report on others")
    return parts


def check_parts(parts: np.ndarray, objects: np.ndarray) -> None:
    """Raise `InputError` where one of the parts `[2, images]` has none of the objects, counted by image `[images, K]`:
    before anything is recorded."""
    for part, what in zip(parts, ("choose on", "report on"), strict=True):
        if not (part @ objects).any():
            raise InputError(
                f"the {counted(int(part.sum()), 'image')} to {what} have no object of the memory's classes;"
                " take another --division-seed or --choose-share"
            )


def choose(experiment: Experiment, plan: Plan) -> tuple[dict[str, Any], Trial]:
    """What was tried and the best of it, chosen on one part of the images and reported on the other."""
    base, memories = experiment.recorded, experiment.memories
    parts = division(len(experiment.ground_truth.image_ids), plan)
    with_objects = positives(experiment.ground_truth, plan.metric).any(axis=1)
    # Of one image with objects there is nothing to resample: no interval, and nothing is certain.
    samples = [plan.resamples if np.count_nonzero(part * with_objects) > 1 else 0 for part in parts]
    drawn = [resamples(part, count, plan.seed) for part, count in zip(parts, samples, strict=True)]
    tried: dict[DetectConfig, Trial] = {}

    def score(trials: Sequence[Trial]) -> dict[str, np.ndarray]:
        for one in trials:
            tried.setdefault(one.config, one)
        return experiment.score([one.config for one in trials], parts)

    def gains(trials: Sequence[Trial]) -> list[float]:
        return np.nan_to_num(score(trials)[plan.metric][:, :, 0].mean(axis=1)).tolist()

    def gain(before: Trial, after: Trial, part: int, kind: str) -> np.ndarray:
        first, second = (experiment.resampled(one.config, drawn[part], kind) for one in (before, after))
        return paired(first, second, memories.groups, plan.seed)

    def certain(before: Trial, after: Trial) -> bool:
        found = gain(before, after, 0, plan.metric)
        return bool(len(found) and np.percentile(found, 5) > 0)

    unchanged = trial(base)
    trials = _trials(base, plan, gains, certain)
    trials += [Trial(name, config) for name, config in plan.methods.items()]
    values = gains([unchanged, *trials])
    chosen = [unchanged, *trials][int(np.argmax(values))]
    table = _table(list(tried.values()), score(list(tried.values())), experiment)
    _add_intervals(table, list(tried.values()), experiment, plan, drawn[1])
    difference = {
        kind: _difference(
            score([unchanged, chosen])[kind][..., 1],
            np.zeros(0) if chosen.config == base else gain(unchanged, chosen, 1, kind),
            memories.keys,
        )
        for kind in experiment.kinds
    }
    bounds = difference[plan.metric]["interval"]
    rows = experiment.rows([chosen.config])[plan.metric]
    most = max(key.get("shots", 0) for key in memories.keys)
    lanes = [m for m, key in enumerate(memories.keys) if key.get("shots", 0) == most]
    names = [category.name for category in experiment.ground_truth.categories]
    outcome = {
        "search": plan.search,
        "metric": plan.metric,
        "images": {"choose": int(parts[0].sum()), "report": int(parts[1].sum())},
        "memories": memories.keys,
        "configurations": len(tried),
        "chosen": {
            "name": chosen.name,
            "method": chosen.config.changes(),
            "gain": difference,
            "within_noise": chosen.config == base or bounds is None or bounds[0] <= 0,
        },
        "table": table,
        "thresholds": operating_points(rows, lanes, parts[1], drawn[1], plan.target, names),
        "threshold_target": dataclasses.asdict(plan.target),
    }
    return outcome, chosen


def _trials(
    base: DetectConfig,
    plan: Plan,
    gains: Callable[[Sequence[Trial]], list[float]],
    certain: Callable[[Trial, Trial], bool],
) -> list[Trial]:
    if plan.search == "one":
        return one_at_a_time(base, plan.rules)
    if plan.search == "grid":
        return product(base, plan.rules)
    if plan.search == "random":
        return random_mixtures(base, plan.rules, plan.trials, plan.seed)
    if plan.search == "greedy":  # the last step is the best that is certain; better ones by chance are not candidates
        return [list(greedy(base, plan.rules, gains, certain))[-1]]
    return []


def _table(trials: Sequence[Trial], scores: dict[str, np.ndarray], experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each trial: AP and gain over the first on both parts, mean and spread over the memories."""
    rows = []
    for i, one in enumerate(trials):
        row: dict[str, Any] = {"name": one.name, "method": one.config.changes()}
        for kind in experiment.kinds:
            for part, name in enumerate(("choose", "report")):
                values, first = scores[kind][i, :, part], scores[kind][0, :, part]
                row.setdefault(name, {})[kind] = {"AP": _number(values.mean()), **_spread(values - first)}
        rows.append(row)
    return rows


def _add_intervals(
    table: list[dict[str, Any]], trials: Sequence[Trial], experiment: Experiment, plan: Plan, drawn: np.ndarray
) -> None:
    """Give the rows that are best on the images to choose on the interval of their gain on those to report on."""
    kind, drawn = plan.metric, drawn[:SHOWN_RESAMPLES]
    order = sorted(range(1, len(table)), key=lambda i: -(table[i]["choose"][kind]["AP"] or 0.0))[:SHOWN]
    if not order:
        return
    first, *others = experiment.resampled_all([trials[0].config, *(trials[i].config for i in order)], drawn, kind)
    for i, values in zip(order, others, strict=True):
        gains = paired(first, values, experiment.memories.groups, plan.seed)
        table[i]["report"][kind]["interval"] = interval(gains)


def _difference(values: np.ndarray, resampled: np.ndarray, keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The paired gain of the second over the first, `[2, M]` AP, with the interval of its bootstrap."""
    gains = values[1] - values[0]
    found: dict[str, Any] = {
        "before": _number(values[0].mean()),
        "after": _number(values[1].mean()),
        **_spread(gains),
        "interval": interval(resampled),
    }
    if shots := list(dict.fromkeys(key["shots"] for key in keys if "shots" in key)):
        found["by_shots"] = {str(count): _spread(gains[[key["shots"] == count for key in keys]]) for count in shots}
    return found


def _spread(gains: np.ndarray) -> dict[str, float | None]:
    """Mean, and sample standard deviation over the memories from two on."""
    return {"gain": _number(gains.mean()), "spread": _number(gains.std(ddof=1)) if len(gains) > 1 else None}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
