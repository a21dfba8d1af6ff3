"""Thresholds of classes: from text, files and Python, and what they leave."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import box_mask, check_message
from host_detections import host_detections

from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.detection.thresholds import (
    by_class,
    choose,
    of_memory,
    parse_thresholds,
    read_thresholds,
)
from ntt_jax.errors import InputError

NAMES = ("bus", "sea gull", "a=b")


def test_a_number_or_numbers_by_class() -> None:
    assert by_class(0.25, NAMES).tolist() == [0.25] * 3 and by_class(0.25, NAMES).dtype == np.float32
    assert by_class({"sea gull": 0.75}, NAMES).tolist() == [DEFAULT_THRESHOLD, 0.75, DEFAULT_THRESHOLD]
    assert by_class({"bus": np.float32(0.75)}, NAMES, default=0.125).tolist() == [0.75, 0.125, 0.125]
    assert by_class({}, NAMES, default=0.25).tolist() == by_class(0.25, NAMES).tolist()


@pytest.mark.parametrize("value", ["high", None, True, float("nan"), 10**400, [0.5], {"bus": "x"}, {"bus": None}])
def test_what_is_no_threshold(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        by_class(value, NAMES)
    check_message(caught.value, "score_threshold", "expected a number")


@pytest.mark.parametrize(
    ("name", "hint"), [("buss", "did you mean bus?"), ("zebra", "it has bus, sea gull, a=b"), (3, "it has")]
)
def test_unknown_classes_are_refused_with_close_names(name: Any, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        by_class({name: 0.5}, NAMES, where="--thresholds")
    check_message(caught.value, "--thresholds: the memory has no class", hint)


def test_what_reaches_its_threshold_stays_in_order() -> None:
    masks = np.stack([box_mask(8, 9, i, 1, 2, 3) for i in range(5)])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    found = host_detections(masks, np.zeros((5, 4)), scores, np.array([0, 1, 0, 1, 2]))
    thresholds = by_class({"bus": 0.75, "sea gull": 0.6, "a=b": 0.5}, NAMES)
    assert choose(found, thresholds).scores.tolist() == scores[[0, 1, 3, 4]].tolist()
    assert choose(found, thresholds, classes=[1, 2]).labels.tolist() == [1, 1, 2]
    assert choose(found, thresholds, limit=2).scores.tolist() == scores[:2].tolist()
    assert len(choose(found, thresholds, classes=[])) == 0


def test_what_a_memory_keeps() -> None:
    assert of_memory({}, NAMES) == {} and of_memory({"thresholds": {"bus": 0.7, "gone": 0.2}}, NAMES) == {"bus": 0.7}
    with pytest.raises(InputError, match="the memory file: threshold of class 'bus'"):
        of_memory({"thresholds": {"bus": 7}}, NAMES)


def test_text_and_files(tmp_path: Path) -> None:
    given = {"bus": 0.7, "sea gull": 1.0, "a=b": 0.0}
    assert parse_thresholds("bus=0.7, sea gull=1,a=b=0") == given
    for content in (given, {"thresholds": given}, {"made by": "report", "thresholds": given}):
        path = tmp_path / "thresholds.json"
        path.write_text(json.dumps(content))
        assert read_thresholds(path) == given


@pytest.mark.parametrize(
    "text", ["bus", "bus=0.7,", "=0.7", "bus=high", "bus=1.5", "bus=-1", "bus=nan", "bus=0.1,bus=0.2"]
)
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_thresholds(text)
    check_message(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "0.5",
        "{",
        '{"bus": "x"}',
        '{"bus": 2}',
        '{"bus": true}',
        '{"thresholds": {"bus": null}}',
        '{"bus": 1e999}',
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_thresholds(path)
    check_message(caught.value, "thresholds.json")
