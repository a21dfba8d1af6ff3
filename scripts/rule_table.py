"""What each rule beside the published ones is worth on made scenes, alone and together: the table of docs/tune.md.

python scripts/rule_table.py --out /tmp/rules          four splits of novel classes, 100 scenes and 8 draws each
python scripts/rule_table.py --out /tmp/rules --time   100 configurations x 48 memories on the scenes of one split

The rules that are put together for a split are chosen on the scenes of the three others, never on its own. Proposals
are recorded once in --out; started again, the script goes on.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ntt_jax.ablation.job import Shots, Targets
from ntt_jax.cli.progress import Progress
from ntt_jax.datasets.coco import load_coco
from ntt_jax.demo.demo import REFERENCE_SCENES, SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.demo.scenes import NOVEL_SPLITS
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.files import write_json
from ntt_jax.runs.job import durable
from ntt_jax.runs.models import Compute
from ntt_jax.tuning.experiment import Experiment, interval, resamples
from ntt_jax.tuning.job import record_left, recorded, recording_identity
from ntt_jax.tuning.memories import of_shots
from ntt_jax.tuning.search import RULES, Trial, greedy, one_at_a_time, random_mixtures, trial

SHOTS = (1, 5)


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


def cell(gains: np.ndarray) -> str:
    """Mean gain in percent and its spread over splits and draws."""
    return f"{100 * gains.mean():+.1f} ± {100 * gains.std(ddof=1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--time", action="store_true", help="only measure the time of many configurations")
    parser.add_argument("--record", action="store_true", help="only record the proposals")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.time:
        with experiment(args.out / "split0", 0, args.scenes, 12, (1, 2, 3, 5)) as one:
            trials = random_mixtures(SMALL_DETECT, RULES, 99, 0)
            started = time.monotonic()
            one.score([t.config for t in trials], np.ones((1, args.scenes)))
            seconds = time.monotonic() - started
            print(
                f"{len(trials)} configurations x {len(one.memories)} memories x {args.scenes} scenes: {seconds:.0f} s"
            )
        return
    with contextlib.ExitStack() as stack:
        splits = [
            stack.enter_context(experiment(args.out / f"split{split}", split, args.scenes, args.draws))
            for split in range(NOVEL_SPLITS)
        ]
        if not args.record:
            table(args.out, splits)


def table(out: Path, splits: Sequence[Experiment]) -> None:
    """Print the table and write rules.json."""
    kind, unchanged = "segm", trial(SMALL_DETECT)
    shots = np.array([key["shots"] for key in splits[0].memories.keys])
    published = {name: gains_of(splits, [unchanged], name)[0] for name in ("bbox", "segm")}  # [splits, M]

    def row(name: str, gains: dict[str, np.ndarray]) -> str:
        cells = [cell(gains[k][:, shots == count]) for count in SHOTS for k in ("bbox", "segm")]
        return f"| {name} | " + " | ".join(cells) + " |"

    print("| rule | 1 shot bbox | 1 shot segm | 5 shots bbox | 5 shots segm |\n|---|---|---|---|---|")
    means = [f"{100 * published[k][:, shots == c].mean():.1f}" for c in SHOTS for k in ("bbox", "segm")]
    print("| published (AP) | " + " | ".join(means) + " |")
    singles = one_at_a_time(SMALL_DETECT, RULES)[1:]
    scores = {name: gains_of(splits, singles, name) for name in ("bbox", "segm")}
    for i, one in enumerate(singles):
        print(row(one.name, {name: scores[name][i] - published[name] for name in scores}), flush=True)
    chosen, together = [], {name: np.zeros_like(published[name]) for name in published}
    for held in range(len(splits)):
        others = [one for split, one in enumerate(splits) if split != held]
        steps = greedy(
            SMALL_DETECT,
            RULES,
            lambda trials, others=others: gains_of(others, trials, kind).mean(axis=(1, 2)).tolist(),
            lambda before, after, others=others: certain(others, before, after, kind),
        )
        best = list(steps)[-1]
        chosen.append(best.config.changes())
        for name, gains in together.items():
            gains[held] = gains_of([splits[held]], [best], name)[0, 0] - published[name][held]
        print(
            f"| split {held}: {best.name} (chosen on the others) | "
            + " | ".join(cell(together[k][held, shots == c]) for c in SHOTS for k in ("bbox", "segm"))
            + " |"
        )
    print(row("**together, chosen on the other splits**", together))
    for count in SHOTS:
        generator = np.random.default_rng(0)
        values = together[kind][:, shots == count]
        picks = generator.integers(values.shape[1], size=(1000, *values.shape))
        drawn = np.take_along_axis(values[None], picks, axis=2).mean(axis=(1, 2))
        print(f"{count} shots: 95 % of the mean over draws {interval(drawn)}")
    outcome = {
        "chosen": chosen,
        "singles": {t.name: {n: scores[n][i].tolist() for n in scores} for i, t in enumerate(singles)},
    }
    outcome["published"] = {name: values.tolist() for name, values in published.items()}
    outcome["together"] = {name: values.tolist() for name, values in together.items()}
    outcome["memories"] = splits[0].memories.keys
    write_json(out / "rules.json", outcome)


if __name__ == "__main__":
    main()
