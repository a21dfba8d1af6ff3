"""The one type of detections on the host."""

from typing import Any

import numpy as np
import pytest
from coco_files import box_mask, check_message
from host_detections import host_detections

from ntt_jax.detection.on_host import HostDetections, decimals
from ntt_jax.errors import InputError
from ntt_jax.images.rle import encode_masks


def detections(n: int = 3) -> HostDetections:
    """Detections with boxes as METHOD defines them: inclusive corners."""
    masks = np.stack([box_mask(40, 60, 3 * i, 2, 10, 20) for i in range(n)])
    boxes = np.array([[3 * i, 2, 3 * i + 9, 21] for i in range(n)], np.float32)
    return host_detections(masks, boxes, np.linspace(0.9, 0.1, n), np.arange(n) % 2)


def test_arrays_have_their_types() -> None:
    masks = np.stack([box_mask(8, 9, i, 1, 2, 3) for i in range(2)])
    kept = host_detections(masks, np.arange(8).reshape(2, 4), np.array([0.9, 0.7]), np.array([3, 1]))
    assert len(kept) == 2 and (kept.height, kept.width) == (8, 9)
    assert kept.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and kept.boxes.dtype == np.float32
    assert kept.labels.tolist() == [3, 1] and kept.labels.dtype == np.int32
    assert kept.scores.tolist() == np.array([0.9, 0.7], np.float32).tolist()
    assert list(kept.rles) == encode_masks(masks)
    nothing = host_detections(masks[:0], np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


def test_select_takes_indices_or_flags() -> None:
    every = detections(4)
    for rows in ([2, 0], np.array([2, 0])):
        some = every.select(rows)
        assert some.scores.tolist() == every.scores[[2, 0]].tolist() and some.rles == (every.rles[2], every.rles[0])
        assert some.boxes.tolist() == every.boxes[[2, 0]].tolist() and some.labels.tolist() == [0, 0]
    flags = every.select(every.labels == 1)
    assert flags.rles == (every.rles[1], every.rles[3]) and (flags.height, flags.width) == (40, 60)
    nothing = every.select([])
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


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
def test_refuses_unsound_arrays(change: dict[str, Any], part: str) -> None:
    good = detections()
    with pytest.raises(InputError) as caught:
        HostDetections(**{name: getattr(good, name) for name in good.__dataclass_fields__} | change)
    check_message(caught.value, part)
