"""Run lengths and polygons that claim more than a mask can be: refused, or drawn in linear time and in any pieces."""

import random
import signal

import numpy as np
import pytest
from pycocotools import mask as mask_api
from stopwatch import cpu_seconds

from ntt_jax.errors import InputError
from ntt_jax.images import rle as rle_module
from ntt_jax.images.rle import MAX_POLYGONS, decode_rle, encode_masks, segmentation_to_rle


def refused(segmentation, height, width, words):
    start = cpu_seconds()
    with pytest.raises(InputError, match=words) as caught:
        segmentation_to_rle(segmentation, height, width, "a.json: annotation 1")
    assert cpu_seconds() - start < 10 and str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_text_longer_than_any_mask_of_its_size_is_not_decoded():
    refused({"size": [1, 1], "counts": "0" * 15_000_000 + "1"}, 1, 1, "more than a mask of 1 pixels can need")
    refused({"size": [9000, 9000], "counts": "0" * 16_000_001}, 9000, 9000, "the limit is 16,000,000")
    refused({"size": [9, 9], "counts": [0] * 1_000_000 + [81]}, 9, 9, "more than an image of this size can have")


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 33), (3, 500)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_every_mask_fits_the_limit_and_is_read_in_any_pieces(monkeypatch, shape, density):
    generator = np.random.default_rng(5)
    masks = generator.random((20, *shape)) < density
    masks[0] = np.indices(shape).sum(axis=0) % 2 == 1  # the mask with the most runs
    for piece in (2**18, 9, 8):
        monkeypatch.setattr(rle_module, "_PIECE", piece)
        for mask, rle in zip(masks, encode_masks(masks), strict=True):
            assert segmentation_to_rle(dict(rle), *shape, "x") == rle
            np.testing.assert_array_equal(decode_rle(rle), mask)


def test_pieces_refuse_what_the_whole_refuses(monkeypatch):
    generator = random.Random(3)
    rle = encode_masks(np.random.default_rng(1).random((1, 30, 30)) < 0.5)[0]
    outcomes = set()
    for _ in range(300):
        text = list(rle["counts"])
        text[generator.randrange(len(text))] = chr(generator.randrange(40, 120))
        found = []
        for piece in (2**18, 8, 11):
            monkeypatch.setattr(rle_module, "_PIECE", piece)
            try:
                found.append(segmentation_to_rle({"size": [30, 30], "counts": "".join(text)}, 30, 30, "x"))
            except InputError:
                found.append(None)
        assert found[0] == found[1] == found[2]
        outcomes.add(found[0] is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 300])
def test_many_polygons_are_united_as_pycocotools_unites_them(count):
    generator = random.Random(count)
    side = 90
    polygons = [
        [generator.uniform(-20, side + 20) * generator.choice([0.2, 1]) for _ in range(2 * generator.randint(3, 9))]
        for _ in range(count)
    ]
    expected = mask_api.merge(mask_api.frPyObjects(polygons, side, side + 3))
    found = segmentation_to_rle(polygons, side, side + 3, "x")
    assert found == {"size": [side, side + 3], "counts": bytes(expected["counts"]).decode()}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="alarms of POSIX")
def test_ctrl_c_is_heard_while_polygons_are_drawn():
    """The alarm's handler runs where Ctrl-C's would: between calls of the library in C, which would make it wait."""
    corners = ((i * 7919 % 13_000, i * 104729 % 13_000) for i in range(60_000))
    triangles = [[x, y, x + 20, y, x, y + 20] for x, y in corners]
    called: list[float] = []

    def interrupt(*_):
        called.append(cpu_seconds())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        started = cpu_seconds()
        with pytest.raises(KeyboardInterrupt):
            segmentation_to_rle(triangles, 14_000, 14_000, "x")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert called[0] - started < 2  # the whole takes longer on a slow machine only


def test_tens_of_thousands_of_triangles_are_drawn_in_seconds():
    generator = random.Random(1)
    side = 14000
    corners = ((generator.randrange(side - 4), generator.randrange(side - 4)) for _ in range(80_000))
    triangles = [[x, y, x + 2, y, x, y + 2] for x, y in corners]
    start = cpu_seconds()
    segmentation_to_rle(triangles, side, side, "x")
    assert cpu_seconds() - start < 10  # one after the other: 23 s where this takes 0.6
    refused([[0, 0, 1, 0, 0, 1]] * (MAX_POLYGONS + 1), 9, 9, "over the limit of 100,000")
