"""Detection records, and the results file."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from coco_files import box_mask, check_message, json_values, spoil
from host_detections import host_detections
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import (
    ImageDetections,
    coco_results,
    image_record,
    parse_record,
    write_results,
)
from ntt_jax.images.rle import encode_masks


def record(image_id: int = 4, n: int = 3, seed: int = 0) -> ImageDetections:
    """Detections with boxes as METHOD defines them: inclusive corners."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, [60, 40], (n, 2, 2)), axis=1).reshape(n, 4)  # xyxy
    masks = np.stack([box_mask(40, 60, x1, y1, x2 - x1 + 1, y2 - y1 + 1) for x1, y1, x2, y2 in corners])
    scores = np.sort(rng.random(n).astype(np.float32))[::-1]
    return image_id, host_detections(masks, corners.astype(np.float32), scores, np.arange(n) % 2)


def test_coco_entries() -> None:
    detections = HostDetections(
        40,
        60,
        np.array([[3, 4, 12, 24]]),
        np.array([0.1]),
        np.array([1]),
        tuple(encode_masks(np.ones((1, 40, 60)) > 0)),
    )
    assert coco_results(detections, 7, [10, 20]) == [
        {
            "image_id": 7,
            "category_id": 20,
            "bbox": [3.0, 4.0, 9.0, 20.0],  # x2 - x1, y2 - y1: METHOD stage 3, step 8
            "score": 0.1,  # the float32 0.1, not 0.10000000149
            "segmentation": dict(encode_masks(np.ones((1, 40, 60), np.bool_))[0]),
        }
    ]
    with pytest.raises(InputError, match="label 1 has no category"):
        coco_results(detections, 7, [10])


def same(one: ImageDetections, other: ImageDetections) -> bool:
    (id, mine), (other_id, theirs) = one, other
    arrays = all(np.array_equal(getattr(mine, k), getattr(theirs, k)) for k in ("boxes", "scores", "labels"))
    sizes = all(getattr(mine, k) == getattr(theirs, k) for k in ("height", "width", "rles"))
    return arrays and sizes and id == other_id


@pytest.mark.parametrize("n", [1, 3, 40])
def test_json_keeps_every_bit(n: int) -> None:
    detections = record(n=n, seed=n)
    again = parse_record(json.loads(json.dumps(image_record(*detections))), "here")
    assert same(detections, again)
    assert json.dumps(image_record(*again)) == json.dumps(image_record(*detections))


def test_json_of_no_detections() -> None:
    none = (1, HostDetections(4, 5, np.zeros((0, 4)), np.zeros(0), np.zeros(0), ()))
    assert same(none, parse_record(json.loads(json.dumps(image_record(*none))), "here"))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), json_values)
def test_spoiled_json_only_raises_input_errors(seed: int, value: Any) -> None:
    content = image_record(*record())
    for i in range(seed, seed + 10):
        try:
            data = json.loads(spoil(content, i, value))
        except ValueError:
            continue
        try:
            parse_record(data, "record 5")
        except InputError as error:
            check_message(error)


def test_results_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.json"
    records = [record(3, seed=1), record(4, n=1, seed=2), record(9, seed=3)]
    assert write_results(path, iter(records), [10, 20]) == 7
    entries = json.loads(path.read_bytes())
    assert entries == [entry for image_id, one in records for entry in coco_results(one, image_id, [10, 20])]
    assert len(path.read_text().splitlines()) == 7 + 2
    first = path.read_bytes()
    restored = [parse_record(image_record(*one), "here") for one in records]
    write_results(path, restored, [10, 20])
    assert path.read_bytes() == first


def test_results_file_without_detections(tmp_path: pathlib.Path) -> None:
    assert write_results(tmp_path / "results.json", [], [1]) == 0
    assert json.loads((tmp_path / "results.json").read_bytes()) == []


@pytest.mark.parametrize("ids", [(4, 3), (4, 4)])
def test_results_file_needs_ascending_images(tmp_path: pathlib.Path, ids: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="ascending id"):
        write_results(tmp_path / "results.json", [record(i) for i in ids], [10, 20])
    assert os.listdir(tmp_path) == []
