"""Which configurations to try: every rule by itself, products of them, random mixtures, the best step after step."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError

SEARCHES = ("one", "grid", "random", "greedy")
"""one: each change of each rule by itself. grid: all combinations. random: `trials` mixtures. greedy: the best change,
then the best one beside it, until none helps beyond the noise."""

Change = Mapping[str, Any]
"""Constants by name that are set together."""

MAX_CONFIGS = 10_000
MAX_ROWS = 4096
"""Rows without NMS at most: their overlaps are matrices of so many rows and columns. The rest is that of the lowest
predicted IoUs."""

_UNSUPPRESSED: dict[str, Any] = {"nms_iou_threshold": 1.0}

RULES: dict[str, tuple[Change, ...]] = {
    "NMS": (*({"nms_iou_threshold": value} for value in (0.3, 0.4, 0.6, 0.7, 0.8, 0.9)), _UNSUPPRESSED),
    "predicted IoU threshold": tuple({"pred_iou_threshold": value} for value in (0.5, 0.6, 0.7)),
    "predicted IoU in the score": tuple({"iou_power": value} for value in (0.5, 1.0, 2.0, 3.0)),
    "classes compete": tuple({"softmax_temperature": value} for value in (0.03, 0.05, 0.1, 0.2)),
    "hubness": ({"hubness": "centre"}, {"hubness": "csls"}),
    "order": (
        {"order_area_power": 0.1},
        {"order_area_power": 0.3},
        {"order_similarity_power": 0.5},
        {"order_similarity_power": 1.0},
    ),
    "merge": (
        {"merge": "plain"},
        {"merge": "none"},
        {"merge": "diffusion"},
        {"merge": "diffusion", "diffusion_transition": "normalised"},
        {"merge": "diffusion", "diffusion_power": 1.0},
        {"merge": "diffusion", "diffusion_alpha": 0.6},
    ),
    "stability threshold": tuple({"stability_threshold": value} for value in (0.5, 0.7, 0.85)),
    "stability in the score": tuple({"stability_power": value} for value in (0.5, 1.0, 2.0)),
    "classes of a mask": ({"classes_per_mask": 2}, {"classes_per_mask": -1}),
}
"""Every rule of `DetectConfig` with the changes to try, beside the constants that it has."""

GRIDS: dict[str, dict[str, tuple[Change, ...]]] = {
    "rules": RULES,
    "quick": {
        "NMS": ({"nms_iou_threshold": 0.7}, _UNSUPPRESSED),
        "predicted IoU in the score": ({"iou_power": 1.0}, {"iou_power": 2.0}),
        "classes compete": ({"softmax_temperature": 0.05}, {"softmax_temperature": 0.1}),
    },
    "merge": {"NMS": ({"nms_iou_threshold": 0.7}, _UNSUPPRESSED), "merge": RULES["merge"]},
    "score": {
        name: RULES[name] for name in ("predicted IoU in the score", "classes compete", "stability in the score")
    },
}
"""Named sets of rules. The constants without any change are always among what is tried."""


def rules_of(name: str) -> dict[str, tuple[Change, ...]]:
    """The rules of a named grid."""
    return GRIDS[name]


@dataclass(frozen=True)
class Trial:
    """A configuration and its name in tables."""

    name: str
    config: DetectConfig


def trial(base: DetectConfig, *changes: Change) -> Trial:
    """The configuration with the changes. Where they leave no NMS, all rows go on: `max_candidates` grows as needed."""
    merged = {name: value for change in changes for name, value in change.items()}
    name = ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in merged.items()
    )
    config = dataclasses.replace(base, **merged)
    # A base without NMS has the rows that it was given, unless a change makes more of them.
    more = {"nms_iou_threshold", "classes_per_mask", "points_per_side"} & merged.keys()
    if config.nms_iou_threshold == 1.0 and more and "max_candidates" not in merged:
        config = dataclasses.replace(config, max_candidates=max(config.max_candidates, unsuppressed_rows(config)))
    return Trial(name or "unchanged", config)


def unsuppressed_rows(config: DetectConfig) -> int:
    """Rows (a candidate with a class) of a score above 0 that an image has without NMS, `MAX_ROWS` at most.

    With all classes of a mask (-1) how many have a score depends on the image: room for four is made.
    """
    points = config.points_per_side**2
    per_mask = 4 if config.classes_per_mask == -1 else config.classes_per_mask
    return min(points * per_mask, max(points, MAX_ROWS))


def one_at_a_time(base: DetectConfig, rules: Mapping[str, Sequence[Change]]) -> list[Trial]:
    """The constants as they are, then every change by itself."""
    return _distinct([trial(base), *(trial(base, change) for changes in rules.values() for change in changes)])


def product(base: DetectConfig, rules: Mapping[str, Sequence[Change]]) -> list[Trial]:
    """All combinations: of every rule none or one of its changes. Raises `InputError` if they are too many."""
    count = int(np.prod([1 + len(changes) for changes in rules.values()], dtype=float))
    if count > MAX_CONFIGS:
        raise InputError(f"--grid: {count:,} combinations, at most {MAX_CONFIGS:,}; use --search one, greedy or random")
    choices = ([{}, *changes] for changes in rules.values())
    return _distinct([trial(base, *chosen) for chosen in itertools.product(*choices)])


def random_mixtures(base: DetectConfig, rules: Mapping[str, Sequence[Change]], count: int, seed: int) -> list[Trial]:
    """The constants as they are and `count` others: each rule is left or one of its changes, all equally likely."""
    generator = np.random.default_rng(seed)
    found = {base: trial(base)}
    for _ in range(100 * count):
        if len(found) > count:
            break
        chosen = ([{}, *changes][generator.integers(1 + len(changes))] for changes in rules.values())
        made = trial(base, *chosen)
        found.setdefault(made.config, made)
    return list(found.values())


def neighbours(
    base: DetectConfig, taken: Mapping[str, Change], rules: Mapping[str, Sequence[Change]]
) -> list[tuple[dict[str, Change], Trial]]:
    """What a greedy search tries beside the changes `taken` by rule: one more rule, or another change of one."""
    found = []
    for rule, changes in rules.items():
        for change in changes:
            if taken.get(rule) != change:
                chosen = {**taken, rule: change}
                found.append((chosen, trial(base, *chosen.values())))
    return found


def greedy(
    base: DetectConfig,
    rules: Mapping[str, Sequence[Change]],
    gains: Callable[[list[Trial]], Sequence[float]],
    certain: Callable[[Trial, Trial], bool],
) -> Iterator[Trial]:
    """The constants as they are, then after every step the best configuration so far, while steps help.

    gains: what each trial scores. certain: whether the second is better than the first beyond the noise.
    """
    taken: dict[str, Change] = {}
    current = trial(base)
    yield current
    best = gains([current])[0]
    for _ in range(2 * len(rules)):
        tried = neighbours(base, taken, rules)
        scores = gains([one for _, one in tried])
        place = int(np.argmax(scores))
        if not scores[place] > best or not certain(current, tried[place][1]):
            return
        (taken, current), best = tried[place], scores[place]
        yield current


def grid_of(data: Any, where: str) -> dict[str, tuple[Change, ...]]:
    """Rules from JSON data: `{"iou_power": [0.5, 1], ...}`, by constant the values to try. Raises `InputError`."""
    if (
        not isinstance(data, dict)
        or not data
        or not all(isinstance(values, list) and values for values in data.values())
    ):
        raise InputError(f"{where}: expected an object with a list of values for each constant to try")
    rules = {}
    for name, values in data.items():
        try:
            tried = [DetectConfig.from_dict({name: value}) for value in values]
            for config in tried:
                config.require_plain_points("tune")
            rules[name] = tuple({name: getattr(config, name)} for config in tried)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return rules


def _distinct(trials: list[Trial]) -> list[Trial]:
    found: dict[DetectConfig, Trial] = {}
    for one in trials:
        found.setdefault(one.config, one)
    return list(found.values())
