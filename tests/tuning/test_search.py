"""Which configurations are tried."""

import pytest

from ntt_jax.cli.tune import GRIDS as NAMES
from ntt_jax.cli.tune import SEARCHES as CHOICES
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.tuning.search import (
    GRIDS,
    RULES,
    SEARCHES,
    greedy,
    grid_of,
    one_at_a_time,
    product,
    random_mixtures,
    trial,
)

BASE = DetectConfig(points_per_side=16)


def test_the_command_knows_the_names():
    assert tuple(GRIDS) == NAMES and {*SEARCHES, "none"} == set(CHOICES)


def test_without_nms_all_candidates_go_on():
    one = trial(BASE, {"nms_iou_threshold": 1.0}, {"iou_power": 2.0})
    assert one.config == DetectConfig(points_per_side=16, nms_iou_threshold=1, iou_power=2)
    assert one.name == "nms_iou_threshold=1, iou_power=2"
    assert trial(DetectConfig(), {"nms_iou_threshold": 1.0}).config.max_candidates == 1024
    assert trial(BASE).name == "unchanged" and trial(BASE).config == BASE


@pytest.mark.parametrize(
    ("base", "changes", "rows"),
    [
        (DetectConfig(), {"nms_iou_threshold": 1.0, "classes_per_mask": 2}, 2048),
        (DetectConfig(), {"nms_iou_threshold": 1.0, "classes_per_mask": -1}, 4096),
        (DetectConfig(classes_per_mask=3), {"nms_iou_threshold": 1.0}, 3072),
        (DetectConfig(), {"nms_iou_threshold": 1.0, "classes_per_mask": 80}, 4096),
        (DetectConfig(points_per_side=64), {"nms_iou_threshold": 1.0}, 4096),
        (DetectConfig(points_per_side=100), {"nms_iou_threshold": 1.0, "classes_per_mask": 2}, 10_000),
        (BASE, {"nms_iou_threshold": 1.0, "classes_per_mask": -1}, 1024),
        (BASE, {"nms_iou_threshold": 1.0, "classes_per_mask": -1, "max_candidates": 300}, 300),
        # With NMS the rows are those that were given.
        (DetectConfig(), {"classes_per_mask": -1}, 800),
        (DetectConfig(), {"nms_iou_threshold": 0.9, "classes_per_mask": 2}, 800),
        # A base without NMS keeps its rows, unless a change makes more.
        (DetectConfig(nms_iou_threshold=1), {"iou_power": 1.0}, 800),
        (DetectConfig(nms_iou_threshold=1), {}, 800),
        (DetectConfig(nms_iou_threshold=1), {"classes_per_mask": 2}, 2048),
        (DetectConfig(nms_iou_threshold=1, max_candidates=9000), {"classes_per_mask": 2}, 9000),
    ],
)
def test_there_is_room_for_the_rows_of_a_configuration(base, changes, rows):
    assert trial(base, changes).config.max_candidates == rows


def test_every_change_is_tried_once():
    tried = one_at_a_time(BASE, RULES)
    assert tried[0].config == BASE and len(tried) == 1 + sum(map(len, RULES.values()))
    assert len({one.config for one in tried}) == len({one.name for one in tried}) == len(tried)
    quick = product(BASE, GRIDS["quick"])
    assert len(quick) == 3 * 3 * 3 and len({one.config for one in quick}) == 27
    with pytest.raises(InputError, match="combinations"):
        product(BASE, RULES)
    mixed = random_mixtures(BASE, RULES, 20, 3)
    assert len(mixed) == 21 and mixed[0].config == BASE and mixed == random_mixtures(BASE, RULES, 20, 3)
    assert len(random_mixtures(BASE, {"a": ({"iou_power": 1.0},)}, 20, 3)) == 2  # there are no more


def test_greedy_goes_on_while_steps_help_and_are_certain():
    rules = {"a": ({"iou_power": 1.0}, {"iou_power": 2.0}), "b": ({"merge": "none"},), "c": ({"stability_power": 1.0},)}

    def value(config):
        return config.iou_power - 3 * (config.merge == "none") + 0.1 * bool(config.stability_power)

    def gains(trials):
        return [value(one.config) for one in trials]

    steps = list(greedy(BASE, rules, gains, lambda before, after: True))
    assert [one.name for one in steps] == ["unchanged", "iou_power=2", "iou_power=2, stability_power=1"]
    big = list(greedy(BASE, rules, gains, lambda before, after: value(after.config) - value(before.config) > 0.5))
    assert [one.name for one in big] == ["unchanged", "iou_power=2"]


def test_grids_of_people():
    rules = grid_of({"iou_power": [0.5, 1], "merge": ["plain"]}, "grid.json")
    assert rules == {"iou_power": ({"iou_power": 0.5}, {"iou_power": 1.0}), "merge": ({"merge": "plain"},)}
    for data, said in (
        ({"iou_powr": [1]}, "unknown constant"),
        ({"iou_power": 1}, "a list of values"),
        ({"iou_power": ["x"]}, "iou_power"),
        ([], "a list of values"),
    ):
        with pytest.raises(InputError, match=r"grid\.json: .*" + said):
            grid_of(data, "grid.json")
