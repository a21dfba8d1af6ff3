"""Polygons of masks against pycocotools' drawing, SciPy's labels and distances computed in full."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from ntt_jax.images.polygons import (
    AREA_ERROR,
    POLYGON_ERROR,
    Part,
    join_parts,
    mask_parts,
    ring_area,
    simplify_ring,
    trace_parts,
)
from ntt_jax.images.rle import decode_rle, segmentation_to_rle

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


def drawn(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """What pycocotools draws of polygons."""
    return decode_rle(segmentation_to_rle([ring.ravel().tolist() for ring in rings], height, width, "test"))


def labelled(mask: np.ndarray, neighbours: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """SciPy's connected components."""
    found: Any = ndimage.label(mask, neighbours)
    return found


def blob(seed: int, side: int = 120, hole: float = 0.25) -> np.ndarray:
    """A wavy disc with a hole, as objects have them; `side` pixels wide and high."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    edge = 0.38 + sum(0.04 * generator.random() * np.cos(k * angle + generator.random() * 7) for k in range(2, 7))
    return (radius < side * edge) & (radius > side * hole * edge)


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_traced_rings_are_exact(mask):
    parts = trace_parts(mask)
    labels, count = labelled(mask, np.ones((3, 3)))
    assert len(parts) == count
    assert sum(part.area for part in parts) == mask.sum()
    for part in parts:
        inside = drawn([part.ring()], *mask.shape)
        (label,) = np.unique(labels[inside])
        np.testing.assert_array_equal(inside, labels == label)
        assert ring_area(part.outer) > 0 and all(ring_area(hole) < 0 for hole in part.holes)
        _, background = labelled(np.pad(~inside, 1, constant_values=True))
        assert len(part.holes) == background - 1
        for ring in (part.outer, *part.holes):  # corners only, and no repeated one
            edges = np.roll(ring, -1, axis=0) - ring
            assert ((edges == 0).sum(axis=1) == 1).all()
            upright = edges[:, 0] == 0
            assert (upright != np.roll(upright, 1)).all()
    if count:
        np.testing.assert_array_equal(drawn([join_parts(parts)], *mask.shape), mask)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_whole_images_and_empty_ones(shape):
    (part,) = trace_parts(np.ones(shape, bool))
    height, width = shape
    assert part.outer.tolist() == [[0, 0], [width, 0], [width, height], [0, height]] and part.holes == ()
    assert trace_parts(np.zeros(shape, bool)) == []
    with pytest.raises(ValueError, match="at least one part"):
        join_parts([])


def test_parts_in_holes_of_parts():
    mask = np.zeros((11, 11), bool)
    for inset, value in enumerate((True, False, True, False, True)):
        mask[inset : 11 - inset, inset : 11 - inset] = value
    areas = [(ring_area(part.outer), [ring_area(hole) for hole in part.holes]) for part in trace_parts(mask)]
    assert areas == [(121, [-81]), (49, [-25]), (9, [])]


def distance(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Of each point `[n, 2]` from the nearest side of a closed ring."""
    start, along = ring[None], (np.roll(ring, -1, axis=0) - ring)[None]
    length = (along**2).sum(axis=2)
    place = ((points[:, None] - start) * along).sum(axis=2) / np.where(length == 0, 1, length)
    nearest = start + np.clip(place, 0, 1)[..., None] * along
    return np.hypot(*np.moveaxis(points[:, None] - nearest, 2, 0)).min(axis=1)


def between(ring: np.ndarray) -> np.ndarray:
    """Many points on the sides of a ring."""
    steps = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    return (ring + steps * (np.roll(ring, -1, axis=0) - ring)).reshape(-1, 2)


@pytest.mark.parametrize("error", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_simplified_rings_keep_the_stated_errors(seed, error):
    mask = blob(seed)
    (exact,), (part,) = trace_parts(mask), mask_parts(mask, error)
    assert len(exact.holes) == len(part.holes) == 1
    for before, after in ((exact.outer, part.outer), (exact.holes[0], part.holes[0])):
        assert len(after) < len(before)
        assert distance(between(before), after).max() <= error + 1e-9
        assert distance(between(after), before).max() <= error + 1e-9
        assert abs(ring_area(after) - ring_area(before)) <= AREA_ERROR * abs(ring_area(before))
    if error == POLYGON_ERROR:
        assert 4 * len(part.outer) < len(exact.outer)
    inside = drawn([part.ring()], *mask.shape)
    assert np.count_nonzero(inside & mask) / np.count_nonzero(inside | mask) > 0.96
    centre = mask.shape[0] // 2
    assert not inside[centre, centre]


@settings(deadline=None, max_examples=100)
@given(MASKS, st.floats(0, 4))
def test_nothing_is_lost_by_simplifying(mask, error):
    exact, parts = trace_parts(mask), mask_parts(mask, error)
    assert [len(part.holes) for part in parts] == [len(part.holes) for part in exact]
    outlines = [[ring for part in made for ring in (part.outer, *part.holes)] for made in (exact, parts)]
    for before, after in zip(*outlines, strict=True):
        assert len(after) >= 3
        assert abs(ring_area(after) - ring_area(before)) <= AREA_ERROR * abs(ring_area(before)) + 1e-9
        assert distance(before, after).max() <= error + 1e-9


def test_rectangles_and_small_things_stay():
    square = np.array([[3.0, 4], [40, 4], [40, 21], [3, 21]])
    assert simplify_ring(square, 5) is square
    ring = mask_parts(np.pad(np.ones((1, 1), bool), 3))[0].ring()
    assert ring.tolist() == [[3, 3], [4, 3], [4, 4], [3, 4]]


def test_a_hole_is_cut_open_where_it_is_closest():
    outer = np.array([[0.0, 0], [9, 0], [9, 9], [0, 9]])
    hole = np.array([[7.0, 7], [7, 8], [8, 8], [8, 7]])
    part = Part(outer, (hole,))
    assert part.ring().tolist() == [*outer[:3].tolist(), [8, 8], [8, 7], [7, 7], [7, 8], [8, 8], *outer[2:].tolist()]
    assert ring_area(part.ring()) == part.area == 80


def test_noise_is_joined_in_bearable_time():
    mask = np.random.default_rng(3).random((150, 150)) < 0.5
    parts = trace_parts(mask)
    assert len(parts) > 50 and max(len(part.holes) for part in parts) > 1000
    np.testing.assert_array_equal(drawn([join_parts(parts)], *mask.shape), mask)


def test_rings_of_many_points_are_joined_piece_by_piece(monkeypatch):
    mask = blob(5)
    (part,) = trace_parts(mask)
    whole = part.ring()
    monkeypatch.setattr("ntt_jax.images.polygons._PAIRS", 100)
    np.testing.assert_array_equal(part.ring(), whole)
