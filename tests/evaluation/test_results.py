"""Detection records, and the results file."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from coco_files import box_mask, check_message, json_values, spoil
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import ImageDetections, coco_results, decimals, write_results
from ntt_jax.images.rle import encode_masks


def record(image_id: int = 4, n: int = 3, seed: int = 0) -> ImageDetections:
    """Detections with boxes as METHOD defines them: inclusive corners."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, [60, 40], (n, 2, 2)), axis=1).reshape(n, 4)  # xyxy
    masks = np.stack([box_mask(40, 60, x1, y1, x2 - x1 + 1, y2 - y1 + 1) for x1, y1, x2, y2 in corners])
    scores = np.sort(rng.random(n).astype(np.float32))[::-1]
    return ImageDetections.from_masks(image_id, masks, corners.astype(np.float32), scores, np.arange(n) % 2)


def test_from_masks_keeps_valid_rows() -> None:
    masks = np.stack([box_mask(8, 9, i, 1, 2, 3) for i in range(4)])
    boxes, scores = np.arange(16).reshape(4, 4), np.array([0.9, 0.8, 0.7, 0.6])
    kept = ImageDetections.from_masks(
        1, masks, boxes, scores, np.array([3, 2, 1, 0]), np.array([True, False, True, False])
    )
    assert len(kept) == 2 and (kept.height, kept.width) == (8, 9)
    assert kept.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]] and kept.boxes.dtype == np.float32
    assert kept.labels.tolist() == [3, 1] and kept.labels.dtype == np.int32
    assert kept.scores.tolist() == np.array([0.9, 0.7], np.float32).tolist()
    assert list(kept.rles) == encode_masks(masks[[0, 2]])
    nothing = ImageDetections.from_masks(1, masks, boxes, scores, np.zeros(4, int), np.zeros(4, np.bool_))
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and coco_results(nothing, [1]) == []


def test_coco_entries() -> None:
    detections = ImageDetections(
        7,
        40,
        60,
        np.array([[3, 4, 12, 24]]),
        np.array([0.1]),
        np.array([1]),
        tuple(encode_masks(np.ones((1, 40, 60)) > 0)),
    )
    assert coco_results(detections, [10, 20]) == [
        {
            "image_id": 7,
            "category_id": 20,
            "bbox": [3.0, 4.0, 9.0, 20.0],  # x2 - x1, y2 - y1: METHOD stage 3, step 8
            "score": 0.1,  # the float32 0.1, not 0.10000000149
            "segmentation": dict(encode_masks(np.ones((1, 40, 60), np.bool_))[0]),
        }
    ]
    with pytest.raises(InputError, match="label 1 has no category"):
        coco_results(detections, [10])


def test_decimals_identify_the_float32() -> None:
    values = np.random.default_rng(0).random(10_000).astype(np.float32)
    values[:4] = 0, 1, np.finfo(np.float32).tiny, np.float32(1e-45)
    assert np.array_equal(np.array(decimals(values)).astype(np.float32), values)
    assert max(len(repr(v)) for v in decimals(values[4:])) <= 15
    assert (np.diff(np.array(decimals(np.sort(values)))) >= 0).all()  # equal where equal, in the same order


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"scores": np.zeros(2)}, "as many"),
        ({"labels": np.zeros((3, 1))}, "as many"),
        ({"rles": ()}, "as many"),
        ({"boxes": np.zeros((4, 4))}, "as many"),
        ({"scores": np.array([1, np.nan, 0])}, "not finite"),
        ({"boxes": np.full((3, 4), np.inf)}, "not finite"),
        ({"labels": np.array([0, -1, 0])}, "negative"),
        ({"height": 41}, "not of the image's size"),
    ],
)
def test_refuses_unsound_records(change: dict[str, Any], part: str) -> None:
    good = record()
    with pytest.raises(InputError) as caught:
        ImageDetections(**{name: getattr(good, name) for name in good.__dataclass_fields__} | change)
    check_message(caught.value, "image 4", part)


def same(one: ImageDetections, other: ImageDetections) -> bool:
    arrays = all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("boxes", "scores", "labels"))
    sizes = all(getattr(one, k) == getattr(other, k) for k in ("image_id", "height", "width", "rles"))
    return arrays and sizes


@pytest.mark.parametrize("n", [1, 3, 40])
def test_json_keeps_every_bit(n: int) -> None:
    detections = record(n=n, seed=n)
    again = ImageDetections.from_json(json.loads(json.dumps(detections.to_json())), "here")
    assert same(detections, again)
    assert json.dumps(again.to_json()) == json.dumps(detections.to_json())


def test_json_of_no_detections() -> None:
    none = ImageDetections(1, 4, 5, np.zeros((0, 4)), np.zeros(0), np.zeros(0), ())
    assert same(none, ImageDetections.from_json(json.loads(json.dumps(none.to_json())), "here"))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), json_values)
def test_spoiled_json_only_raises_input_errors(seed: int, value: Any) -> None:
    content = record().to_json()
    for i in range(seed, seed + 10):
        try:
            data = json.loads(spoil(content, i, value))
        except ValueError:
            continue
        try:
            ImageDetections.from_json(data, "record 5")
        except InputError as error:
            check_message(error)


def test_results_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.json"
    records = [record(3, seed=1), record(4, n=1, seed=2), record(9, seed=3)]
    assert write_results(path, iter(records), [10, 20]) == 7
    entries = json.loads(path.read_bytes())
    assert entries == [entry for one in records for entry in coco_results(one, [10, 20])]
    assert len(path.read_text().splitlines()) == 7 + 2
    first = path.read_bytes()
    restored = [ImageDetections.from_json(one.to_json(), "here") for one in records]
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
