"""Boxes from elsewhere on the host, and the points that are added to the grid."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.config import DetectConfig
from ntt_jax.detection.boxes import as_boxes, best_boxes, choose_boxes, inside, with_own_boxes
from ntt_jax.detection.extra_points import similar_points
from ntt_jax.detection.merge import Merged, Rows, label_rows
from ntt_jax.errors import InputError


@pytest.mark.parametrize(
    ("boxes", "scores", "said"),
    [
        ([1, 2, 3, 4], None, r"expected an array \[N, 4\] .* found \[4\]"),
        (np.zeros((2, 5)), None, r"found \[2, 5\]"),
        ([[1, 2, 3, 4], [1, 2]], None, "found"),
        ("boxes.json", None, "found"),
        ([["1", "2", "3", "4"]], None, "found"),
        ([[1, 2, 3, None]], None, "found"),
        (np.ones((1, 4), bool), None, "found bool"),
        ([[1, 2, np.nan, 4]], None, "finite"),
        ([[1, 2, 1e30, 4]], None, "finite"),
        ([[0, 0, 9, 9], [20, 20, 10, 10]], None, "box 1: expected corners x1 < x2, y1 < y2, not a size"),
        ([[0, 0, 9, 9]], [0.5, 0.5], r"expected 1 scores, one for each box, found \[2\]"),
        ([[0, 0, 9, 9], [1, 1, 9, 9]], [0.5, float("nan")], "box 1: expected a finite score"),
        ([[0, 0, 9, 9]], [np.inf], "finite score"),
        ([[0, 0, 9, 9]], "0.5", "score"),
    ],
)
def test_what_is_no_list_of_boxes_is_one_line(boxes, scores, said):
    with pytest.raises(InputError, match=said) as caught:
        as_boxes(boxes, scores)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_boxes_of_all_kinds():
    rows = as_boxes([[0, 1, 2, 3]])
    assert rows.dtype == np.float32 and rows.tolist() == [[0, 1, 2, 3, 1]]
    assert as_boxes([]).shape == (0, 5) and as_boxes(np.zeros((0, 4))).shape == (0, 5)
    assert as_boxes(jnp.array([[0, 1, 2, 3]]), [0.5])[0, 4] == 0.5


def test_the_best_boxes_inside_the_image():
    rows = np.array([[0, 0, 5, 5, 0.2], [-4, -4, 4, 400, 0.9], [1, 1, 2, 2, 0.001], [3, 3, 4, 4, 0.9]], np.float32)
    config = DetectConfig(max_proposals=3, proposal_threshold=0.01)
    assert best_boxes(rows, config).tolist() == rows[[1, 3, 0]].tolist()
    assert choose_boxes(rows[:1], config).tolist() == [rows[0].tolist(), [0] * 5, [0] * 5]
    assert inside(rows, 100, 50)[1].tolist() == [0, 0, 4, 100, np.float32(0.9)]
    assert rows[1, 0] == -4  # not in place


def test_the_box_that_is_reported():
    boxes = jnp.arange(4, dtype=jnp.int32)[:, None] * jnp.ones((1, 4), jnp.int32)
    merged = Merged(
        jnp.array([5, 1, 6, 0]), boxes, jnp.ones(4), jnp.zeros(4, jnp.int32), jnp.array([True] * 3 + [False])
    )
    own = jnp.array([[0.5] * 4, [1.5] * 4])
    found = with_own_boxes(merged, own, 5).boxes
    assert found[:, 0].tolist() == [0.5, 1, 1.5, 3] and found.dtype == jnp.float32


def test_the_order_may_be_another_than_that_of_predicted_ious():
    """Two boxes of one object: the first in the order suppresses the other."""
    objects, prototypes = jnp.eye(4)[jnp.array([0, 0, 1])], jnp.eye(4)[:2]
    boxes = jnp.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
    config = DetectConfig(max_candidates=3, max_detections=3)

    def kept(order) -> list[int]:
        ious = jnp.array([0.9, 0.8, 0.7])
        rows: Rows = label_rows(objects, boxes, jnp.ones(3, bool), ious, prototypes, config, order_by=order)
        return rows.candidate[rows.alive].tolist()

    assert kept(None) == [0, 2]
    assert kept(jnp.array([0.1, 0.2, 0.3])) == [2, 1]
    by_area = dataclasses.replace(config, order_similarity_power=1.0)
    rows = label_rows(
        objects, boxes, jnp.ones(3, bool), jnp.ones(3), prototypes, by_area, order_by=jnp.array([0.1, 0.2, 0.3])
    )
    assert rows.candidate[rows.alive].tolist() == [2, 1]


def plain_points(patches, prototypes, count, side):
    """`similar_points` by loops."""
    h, w, _ = patches.shape
    unit = patches / np.linalg.norm(patches, axis=2, keepdims=True)
    similarity = (unit @ (prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)).T).max(axis=2)
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for y in range(h):
        for x in range(w):
            around = similarity[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max()
            cell = y * 8 // h, x * 8 // w
            if similarity[y, x] >= around and similarity[y, x] > 0:
                best[cell] = max(best.get(cell, (0.0, 0, 0)), (similarity[y, x], y, x))
    order = sorted(best.values(), reverse=True)[:count]
    return [((x + 0.5) / w * side - 0.5, (y + 0.5) / h * side - 0.5) for _, y, x in order]


@pytest.mark.parametrize("count", [3, 64])
def test_points_where_patches_look_like_a_prototype(count):
    rng = np.random.default_rng(0)
    patches, prototypes = rng.standard_normal((13, 11, 6)), rng.standard_normal((2, 6))
    points, there = similar_points(jnp.asarray(patches, jnp.float32), jnp.asarray(prototypes, jnp.float32), count, 100)
    wanted = plain_points(patches, prototypes, count, 100)
    assert int(there.sum()) == len(wanted) and points.shape == (count, 2)
    assert there[: len(wanted)].all() and (count == 3 or len(wanted) < 64)
    np.testing.assert_allclose(np.asarray(points)[: len(wanted)], wanted, rtol=1e-5)


def test_nothing_looks_like_a_class_that_is_not_there():
    _, there = similar_points(jnp.ones((5, 5, 3)), jnp.zeros((2, 3)), 8, 64)
    assert not there.any()
