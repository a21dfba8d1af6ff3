"""Configurations x memories on recorded proposals: average precision by lane, and paired differences with intervals."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from ntt_jax.compiled.devices import available_cores
from ntt_jax.config import DetectConfig
from ntt_jax.evaluation import GroundTruth
from ntt_jax.runs.observer import SILENT, Observer, work
from ntt_jax.tuning.memories import Memories
from ntt_jax.tuning.proposals import Proposals
from ntt_jax.tuning.rescore import Candidates, check_config, rescore
from ntt_jax.tuning.scoring import LaneRows, LaneScorer, ObjectOverlaps, mean_over_classes, overlaps_of

MAX_ROWS = 30_000_000
"""Detections that are held at once, 15 bytes each; configurations are scored in as many passes as that takes."""


class Experiment:
    """Any configuration scored with all memories on all recorded images.

    Args:
      read: starts a pass over the recorded proposals by ascending image id.
      images: how many these are. recorded: what they were recorded with.
      workers: threads that label, suppress and merge; the cores of this process if None.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Proposals]],
        images: int,
        ground_truth: GroundTruth,
        memories: Memories,
        recorded: DetectConfig,
        *,
        workers: int | None = None,
        observer: Observer = SILENT,
    ):
        self.read, self.images = read, images
        self.ground_truth, self.memories, self.recorded = ground_truth, memories, recorded
        self.kinds = ground_truth.kinds
        self.workers = available_cores() if workers is None else workers
        self.observer = observer
        self._classes = jax.device_put((memories.prototypes, memories.negatives))
        self._overlaps: dict[tuple[str, int], ObjectOverlaps] = {}
        self._scored: dict[DetectConfig, dict[str, np.ndarray]] = {}

    def score(self, configs: Sequence[DetectConfig], weights: np.ndarray) -> dict[str, np.ndarray]:
        """AP of every configuration and memory, for `[B, images]` weights of the images: by kind `[configs, M, B]`.

        A configuration is computed once; asked again, with the same weights, it is remembered.
        """
        new = [config for config in dict.fromkeys(configs) if config not in self._scored]
        for block, rows in self._blocks(new):
            for i, config in enumerate(block):
                lanes = range(i * len(self.memories), (i + 1) * len(self.memories))
                self._scored[config] = {
                    kind: np.stack([mean_over_classes(rows[kind].average_precision(lane, weights)) for lane in lanes])
                    for kind in self.kinds
                }
        return {kind: np.stack([self._scored[config][kind] for config in configs]) for kind in self.kinds}

    def resampled(self, config: DetectConfig, weights: np.ndarray, kind: str) -> np.ndarray:
        """AP of one configuration with every memory for resampled images, `[M, B]`."""
        return self.resampled_all([config], weights, kind)[0]

    def resampled_all(self, configs: Sequence[DetectConfig], weights: np.ndarray, kind: str) -> list[np.ndarray]:
        """AP of some configurations with every memory for resampled images, `[M, B]` each."""
        found = []
        for block, rows in self._blocks(configs):
            lanes = range(len(block) * len(self.memories))
            values = np.stack([mean_over_classes(rows[kind].average_precision(lane, weights)) for lane in lanes])
            found += list(values.reshape(len(block), len(self.memories), -1))
        return found

    def rows(self, configs: Sequence[DetectConfig]) -> dict[str, LaneRows]:
        """All matched detections of some configurations, by kind; lane i * M + m is configuration i and memory m."""
        return self._rows(list(configs))

    def _blocks(self, configs: Sequence[DetectConfig]) -> Iterator[tuple[list[DetectConfig], dict[str, LaneRows]]]:
        for config in configs:
            check_config(config, self.recorded)
        if not configs:
            return
        most = max(config.max_detections for config in configs)
        size = max(1, MAX_ROWS // (len(self.memories) * max(1, self.images) * most * len(self.kinds)))
        with work(self.observer, "score", len(configs), unit="configurations"):
            for start in range(0, len(configs), size):
                block = list(configs[start : start + size])
                yield block, self._rows(block)
                self.observer.step(len(block))

    def _rows(self, configs: list[DetectConfig]) -> dict[str, LaneRows]:
        lanes = len(configs) * len(self.memories)
        scorers = {kind: LaneScorer(self.ground_truth, kind, lanes) for kind in self.kinds}
        with ThreadPoolExecutor(self.workers) as pool:
            for proposals in self.read():
                candidates = jax.device_put(Candidates.of(proposals))

                def detect(config: DetectConfig, candidates: Candidates = candidates) -> Any:
                    return jax.tree.map(np.asarray, rescore(candidates, *self._classes, config))

                row_of = np.full(proposals.candidates, -1)
                row_of[proposals.place] = np.arange(len(proposals))
                parts: list[tuple[np.ndarray, ...]] = []
                for i, merged in enumerate(pool.map(detect, configs)):
                    memory, column = np.nonzero(merged.valid)
                    found = (array[memory, column] for array in (merged.labels, merged.scores, merged.source))
                    label, score, source = found
                    parts.append((i * len(self.memories) + memory, label, score, row_of[source]))
                columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
                for kind, scorer in scorers.items():
                    scorer.add(self._overlap(kind, proposals), *columns)
        return {kind: scorer.rows() for kind, scorer in scorers.items()}

    def _overlap(self, kind: str, proposals: Proposals) -> ObjectOverlaps:
        key = kind, proposals.image_id
        if key not in self._overlaps:
            image = proposals.image_id, proposals.boxes, proposals.rles
            self._overlaps[key] = overlaps_of(self.ground_truth, kind, *image)
        return self._overlaps[key]


def halves(images: int, share: float, seed: int) -> np.ndarray:
    """Weights `[2, images]` of a random division: a `share` of the images to choose on, the others to report on."""
    chosen = np.zeros(images, bool)
    chosen[np.random.default_rng(seed).permutation(images)[: round(images * share)]] = True
    return np.stack([chosen, ~chosen]).astype(float)


def resamples(weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` bootstrap samples of the images whose weight `[images]` is 1: how often each is drawn, `[B, images]`."""
    place = np.flatnonzero(weights)
    drawn = np.zeros((count, len(weights)))
    drawn[:, place] = np.random.default_rng(seed).multinomial(len(place), np.full(len(place), 1 / len(place)), count)
    return drawn


def paired(before: np.ndarray, after: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Bootstrap of the mean gain over images and memories: `[M, B]`, `[M, B]` AP of the same samples -> `[B]`.

    groups: `[M]`; memories of a group are drawn together (`Memories.groups`). Samples without any object are left out.
    """
    names, index = np.unique(groups, return_inverse=True)
    gains = after - before
    by_group = np.stack([gains[index == g].mean(axis=0) for g in range(len(names))])  # [G, B]
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), gains.shape[1])
    sizes = np.bincount(index).astype(float)
    share = counts * sizes
    found = np.sum(share.T * by_group, axis=0) / share.sum(axis=1)
    return found[np.isfinite(found)]


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """The middle `level` of the values, None without any."""
    if not len(values):
        return None
    tail = 100 * (1 - level) / 2
    return [float(value) for value in np.percentile(values, [tail, 100 - tail])]
