"""A folder as `ntt-jax tune` leaves it, with any class names, without a pass over images."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ntt_jax.tuning.operating_points import Target, operating_points
from ntt_jax.tuning.scoring import LaneRows


def random_rows(classes: int, images: int = 40, found: int = 300, seed: int = 0) -> LaneRows:
    """One lane of detections with random scores, of which the better ones are right more often."""
    generator = np.random.default_rng(seed)
    parts = []
    for k in range(classes):
        score = np.sort(generator.random(found).astype(np.float32))[::-1]
        hits = (generator.random(found) < score).astype(np.uint16)
        parts.append((np.full(found, k, np.int16), score, generator.integers(0, images, found), hits))
    label, score, image, hits = (np.concatenate(column) for column in zip(*parts, strict=True))
    bounds = np.arange(classes + 1) * found
    positives = np.full((images, classes), 6.0)
    return LaneRows(classes, positives, bounds, label, score, image, hits, np.zeros_like(hits))


def make_tuned(folder: Path, names: Sequence[str], rule: str = "iou_power", configurations: int = 12) -> Path:
    """Write tune.json of these classes into a folder, which is made; `rule` names what was chosen."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = generator.multinomial(40, np.full(40, 1 / 40), 20).astype(float)
    points = operating_points(random_rows(len(names)), [0], np.ones(40), drawn, Target(), list(names))

    def number(gain: float) -> dict[str, float]:
        return {"AP": 0.6 + gain, "gain": gain, "spread": 0.004}

    gains = [0.0, *np.linspace(-0.02, 0.03, configurations - 1).tolist()]
    table = [
        {
            "name": "unchanged" if i == 0 else f"{rule}={i}",
            "method": {} if i == 0 else {rule: i},
            "choose": {"segm": number(gain + 0.001)},
            "report": {"segm": number(gain) | ({"interval": [gain - 0.01, gain + 0.01]} if i > 5 else {})},
        }
        for i, gain in enumerate(gains)
    ]
    best = {"before": 0.6, "after": 0.63, "gain": 0.03, "spread": 0.004, "interval": [0.02, 0.04]}
    content = {
        "search": "greedy",
        "metric": "segm",
        "images": {"choose": 20, "report": 20},
        "memories": [{"shots": shots, "seed": seed} for seed in range(2) for shots in (1, 5)],
        "configurations": configurations,
        "chosen": {
            "name": table[-1]["name"],
            "method": table[-1]["method"],
            "gain": {
                "segm": best | {"by_shots": {"1": {"gain": 0.02, "spread": 0.01}, "5": {"gain": 0.04, "spread": None}}}
            },
            "within_noise": False,
        },
        "table": table,
        "thresholds": points,
        "threshold_target": {"kind": "f1", "value": 0.0},
        "skipped": [],
        "provenance": {"annotation file": "ab" * 32, "shots": [1, 5]},
    }
    (folder / "tune.json").write_text(json.dumps(content))
    return folder
