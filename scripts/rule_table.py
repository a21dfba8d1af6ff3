"""What each rule beside the published ones is worth on made scenes, alone and together: the table of docs/tune.md.

python scripts/rule_table.py --out /tmp/rules          four splits of novel classes, 100 scenes and 8 draws each
python scripts/rule_table.py --out /tmp/rules --time   100 configurations x 48 memories on the scenes of one split
python scripts/rule_table.py --out /tmp/rules --bytes  a record of SAM 2 tiny and DINOv2 small, random weights

The rules that are put together for a split are chosen on the scenes of the three others, never on its own. Proposals
are recorded once in --out; started again, the script goes on.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from ntt_jax.ablation.job import Shots, Targets
from ntt_jax.cli.progress import Progress
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DINOV2_CONFIGS, SAM2_CONFIGS, DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.demo.demo import REFERENCE_SCENES, SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.demo.scenes import NOVEL_SPLITS
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.files import write_json
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.runs.job import durable
from ntt_jax.runs.models import Compute
from ntt_jax.tuning.experiment import Experiment, interval, paired, resamples
from ntt_jax.tuning.job import record_left, recorded, recording_identity
from ntt_jax.tuning.memories import of_shots
from ntt_jax.tuning.proposals import record_bytes
from ntt_jax.tuning.recorder import ProposalRecorder
from ntt_jax.tuning.rescore import Candidates, rescore
from ntt_jax.tuning.search import RULES, Trial, greedy, one_at_a_time, random_mixtures, trial

SHOTS = (1, 5)
CLASSES = "classes of a mask"
"""The rule that changes how many detections there are: the others are put together first, then it is tried on top."""


@contextlib.contextmanager
def experiment(folder: Path, split: int, scenes: int, draws: int, shots: Sequence[int] = SHOTS) -> Iterator[Experiment]:
    """The recorded proposals of one split's scenes, and memories of all draws."""
    annotations = [folder / name / "annotations.json" for name in ("references", "targets")]
    if not all(path.is_file() for path in annotations):
        make_benchmark(folder, split, scenes, max(REFERENCE_SCENES, 12 * max(shots)))
    sam2, dinov2 = convert_checkpoints(folder / "weights")
    compute, dataset = Compute(batch_size=4), load_coco(annotations[1])
    target = Targets(sam2, dinov2, annotations[1], folder / "targets", SMALL_DETECT, compute, "upright", False)
    given = Shots(annotations[0], folder / "references", "all", shots, range(draws))
    run_folder = folder / "run"
    run_folder.mkdir(exist_ok=True)
    with durable(run_folder, recording_identity(target, dataset), Progress()) as run:
        record_left(run, target, dataset, Progress())
        dataset, categories, _, make = of_shots(run_folder, given, target, dataset, Progress())
        truth = prepare_ground_truth(dataset, categories)
        count = len(dataset.images)
        yield Experiment(lambda: recorded(run, dataset), count, truth, make(), SMALL_DETECT, observer=Progress())


def gains_of(experiments: Sequence[Experiment], trials: Sequence[Trial], kind: str) -> np.ndarray:
    """AP of the trials on all images of each split, `[trials, splits, M]`."""
    scores = [
        one.score([t.config for t in trials], np.ones((1, len(one.ground_truth.image_ids))))[kind][..., 0]
        for one in experiments
    ]
    return np.stack(scores, axis=1)


def certain(experiments: Sequence[Experiment], before: Trial, after: Trial, kind: str) -> bool:
    """Whether the gain, over all of these splits, is beyond the noise of their images and draws."""
    found = []
    for seed, one in enumerate(experiments):
        drawn = resamples(np.ones(len(one.ground_truth.image_ids)), 100, seed)
        first, second = (one.resampled(t.config, drawn, kind) for t in (before, after))
        found.append((second - first).mean(axis=0))
    return bool(np.percentile(np.mean(found, axis=0), 5) > 0)


def gain_samples(one: Experiment, best: Trial, shots: int, kind: str) -> np.ndarray:
    """Bootstrap samples, over images and draws, of the gain over the published constants with this many shots."""
    drawn = resamples(np.ones(len(one.ground_truth.image_ids)), 200, 0)
    own = np.array([key["shots"] == shots for key in one.memories.keys])
    before, after = (one.resampled(t.config, drawn, kind)[own] for t in (trial(SMALL_DETECT), best))
    return paired(before, after, one.memories.groups[own], 0)


def cell(gains: np.ndarray) -> str:
    """Mean gain in percent and its spread over splits and draws."""
    return f"{100 * gains.mean():+.1f} ± {100 * gains.std(ddof=1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--time", action="store_true", help="only measure the time of many configurations")
    parser.add_argument("--bytes", action="store_true", help="only measure a record of the published T+S, 1024 points")
    parser.add_argument("--record", action="store_true", help="only record the proposals")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.time:
        measure_time(args.out / "split0", args.scenes)
        return
    if args.bytes:
        measure_bytes(args.out / "split0")
        return
    with contextlib.ExitStack() as stack:
        splits = [
            stack.enter_context(experiment(args.out / f"split{split}", split, args.scenes, args.draws))
            for split in range(NOVEL_SPLITS)
        ]
        if not args.record:
            table(args.out, splits)


def measure_time(folder: Path, scenes: int) -> None:
    """Time of many configurations and memories on recorded proposals; a handful is compared with runs alone."""
    with experiment(folder, 0, scenes, 12, (1, 2, 3, 5)) as one:
        trials = random_mixtures(SMALL_DETECT, RULES, 99, 0)
        for count, words in ((min(20, scenes), "with compiling"), (scenes, "once compiled")):
            part = Experiment(
                lambda count=count: itertools.islice(one.read(), count),
                count,
                one.ground_truth,
                one.memories,
                SMALL_DETECT,
                observer=Progress(),
            )
            started, used = time.monotonic(), time.process_time()
            part.score([t.config for t in trials], np.ones((1, len(one.ground_truth.image_ids))))
            seconds, used = time.monotonic() - started, time.process_time() - used
            what = f"{len(trials)} configurations x {len(one.memories)} memories x {count} scenes"
            print(f"{what}: {seconds:.0f} s, {used:.0f} s of the cores {words}", flush=True)
        for number in range(5):
            compare_alone(folder, one, trials[number], memory=(7 * number) % len(one.memories))


def compare_alone(folder: Path, one: Experiment, chosen: Trial, memory: int, count: int = 8) -> None:
    """Detections of some scenes from records against those of a whole pass with this configuration and memory."""
    sam2, dinov2 = convert_checkpoints(folder / "weights")
    models, prototypes = (load_sam2(sam2), load_dinov2(dinov2)), one.memories.prototypes[memory]
    alone = Predictor(*models, prototypes, chosen.config, batch_size=4, devices=jax.devices()[:1], divide="images")
    dataset = load_coco(folder / "targets" / "annotations.json")
    ids = sorted(dataset.images)[:count]
    images = [dataset.read_image(folder / "targets", image_id) for image_id in ids]
    largest, total = 0.0, 0
    for expected, proposals in zip(alone(images), one.read(), strict=False):
        found = jax.tree.map(np.asarray, rescore(Candidates.of(proposals), prototypes[None], None, chosen.config))
        number = int(found.valid.sum())
        assert number == len(expected.scores), (chosen.name, number, len(expected.scores))
        np.testing.assert_array_equal(found.labels[0, :number], expected.labels)
        np.testing.assert_array_equal(found.boxes[0, :number], expected.boxes)
        largest = max(largest, float(np.abs(found.scores[0, :number] - expected.scores).max(initial=0.0)))
        total += number
    print(f"alone: {chosen.name}: {total} detections equal, scores to {largest:.1e}", flush=True)


def measure_bytes(folder: Path) -> None:
    """Print what a record of the published small models takes with all 1024 points, beside its bound."""
    config = DetectConfig(pred_iou_threshold=0.0)
    sam2 = Sam2(SAM2_CONFIGS["sam2_hiera_tiny"], rngs=nnx.Rngs(0))
    dinov2 = DinoVisionTransformer(DINOV2_CONFIGS["dinov2_vits14"], rngs=nnx.Rngs(0))
    recorder = ProposalRecorder(sam2, dinov2, np.zeros((1, dinov2.config.embed_dim)), config, batch_size=1)
    dataset = load_coco(folder / "targets" / "annotations.json")
    for image_id in sorted(dataset.images)[:2]:
        found: Any = next(iter(recorder([dataset.read_image(folder / "targets", image_id)])))
        data = found.to_json()
        sizes = {name: len(json.dumps(value)) for name, value in data.items()}
        bound = record_bytes(len(found), found.objects.shape[1])
        print(f"{len(found)} candidates: {sum(sizes.values()):,} bytes, arrays {bound:,} at most; {sizes}", flush=True)


def table(out: Path, splits: Sequence[Experiment]) -> None:
    """Print the table and write rules.json."""
    kind, unchanged = "segm", trial(SMALL_DETECT)
    shots = np.array([key["shots"] for key in splits[0].memories.keys])
    published = {name: gains_of(splits, [unchanged], name)[0] for name in ("bbox", "segm")}  # [splits, M]

    def row(name: str, gains: dict[str, np.ndarray]) -> str:
        cells = [cell(gains[k][..., shots == count]) for count in SHOTS for k in ("bbox", "segm")]
        return f"| {name} | " + " | ".join(cells) + " |"

    print("| rule | 1 shot bbox | 1 shot segm | 5 shots bbox | 5 shots segm |\n|---|---|---|---|---|")
    means = [f"{100 * published[k][:, shots == c].mean():.1f}" for c in SHOTS for k in ("bbox", "segm")]
    print("| published (AP) | " + " | ".join(means) + " |")
    singles = one_at_a_time(SMALL_DETECT, RULES)[1:]
    scores = {name: gains_of(splits, singles, name) for name in ("bbox", "segm")}
    for i, one in enumerate(singles):
        print(row(one.name, {name: scores[name][i] - published[name] for name in scores}), flush=True)
    outcome: dict[str, Any] = {
        "memories": splits[0].memories.keys,
        "published": {name: values.tolist() for name, values in published.items()},
        "singles": {t.name: {n: scores[n][i].tolist() for n in scores} for i, t in enumerate(singles)},
        "together": {},
    }
    one_class = [best_of_others(splits, held, kind) for held in range(len(splits))]
    more = [with_classes(splits, held, kind, best) for held, best in enumerate(one_class)]
    for title, bests in (("one class a mask", one_class), ("several classes a mask", more)):
        found = zip(splits, bests, strict=True)
        values = [{name: gains_of([own], [best], name)[0, 0] for name in published} for own, best in found]
        gains = {name: np.stack([one[name] for one in values]) - published[name] for name in published}
        for held, best in enumerate(bests):
            print(row(f"split {held}: {best.name}", {name: each[held] for name, each in gains.items()}))
        print(row(f"**{title}, chosen on the other splits**", gains), flush=True)
        bounds = {}
        for count in SHOTS:
            drawn = [gain_samples(one, best, count, kind) for one, best in zip(splits, bests, strict=True)]
            bounds[count] = interval(np.mean(drawn, axis=0))
        outcome["together"][title] = {
            "chosen": [one.config.changes() for one in bests],
            "gains": {name: each.tolist() for name, each in gains.items()},
            f"95 % of {kind} (images and draws)": {str(count): value for count, value in bounds.items()},
        }
        print(f"{title}: 95 % of {kind}: {bounds}", flush=True)
        write_json(out / "rules.json", outcome)


def mean_gains(experiments: Sequence[Experiment], trials: Sequence[Trial], kind: str) -> list[float]:
    """Mean AP of each trial over all splits and memories."""
    return gains_of(experiments, trials, kind).mean(axis=(1, 2)).tolist()


def best_of_others(splits: Sequence[Experiment], held: int, kind: str) -> Trial:
    """The rules that a greedy search chooses on all splits but one, whose mask has one class.

    Of each rule the search takes the change that is the best by itself on those others; else it would take hours.
    """
    others = [one for split, one in enumerate(splits) if split != held]
    narrowed = {}
    for rule, changes in RULES.items():
        if rule != CLASSES:
            alone = mean_gains(others, [trial(SMALL_DETECT, change) for change in changes], kind)
            narrowed[rule] = [changes[int(np.argmax(alone))]]
    steps = greedy(
        SMALL_DETECT,
        narrowed,
        lambda trials: mean_gains(others, trials, kind),
        lambda before, after: certain(others, before, after, kind),
    )
    return list(steps)[-1]


def with_classes(splits: Sequence[Experiment], held: int, kind: str, best: Trial) -> Trial:
    """The same rules with more classes for a mask, where that is better on the other splits beyond their noise."""
    others = [one for split, one in enumerate(splits) if split != held]
    changes = {name: value for name, value in best.config.changes().items() if name != "max_candidates"}
    trials = [trial(SMALL_DETECT, changes, change) for change in RULES[CLASSES]]
    trials = [Trial(f"{best.name}, {CLASSES} {one.config.classes_per_mask}", one.config) for one in trials]
    chosen = trials[int(np.argmax(mean_gains(others, trials, kind)))]
    return chosen if certain(others, best, chosen, kind) else best


if __name__ == "__main__":
    main()
