"""Which tiles an image has, what the rule keeps of their detections, and that views and images stay together."""

import itertools
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntt_jax.cli import main
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.images.rle import decode_rle, encode_masks, rle_areas
from ntt_jax.images.rle_crops import place_mask, rle_intersections
from ntt_jax.tiles.layout import Tile, TileConfig, as_tiles, tiles_of
from ntt_jax.tiles.merge import gather, merged
from ntt_jax.tiles.predictor import TiledPredictor

SIDES = st.integers(1, 2000)


@given(SIDES, SIDES, st.integers(64, 1500), st.floats(0, 0.6))
def test_tiles_of_one_size_cover_the_image_and_share_what_was_asked(height, width, size, overlap):
    tiles = tiles_of(height, width, TileConfig(size=size, overlap=overlap), 1024)
    if max(height, width) <= size:
        assert not tiles
        return
    assert {(t.right - t.left, t.bottom - t.top) for t in tiles} == {(min(size, width), min(size, height))}
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(t[low], t[high]) for t in tiles})
        assert spans[0][0] == 0 and spans[-1][1] == length
        # Rounded to whole pixels.
        assert all(a[1] - b[0] >= overlap * size - 1 for a, b in itertools.pairwise(spans))
    assert len(set(tiles)) == len(tiles)


@given(SIDES, SIDES, st.integers(2, 6), st.floats(0, 0.5))
def test_a_count_is_that_along_the_longer_side(height, width, count, overlap):
    tiles = tiles_of(height, width, TileConfig(count=count, overlap=overlap), 1024)
    if max(height, width) >= 50 * count:
        assert len({t.left if width >= height else t.top for t in tiles}) == count
    assert not tiles_of(height, width, TileConfig(count=1), 1024)


def test_auto_takes_the_side_of_sam_2_and_leaves_ordinary_images_alone():
    assert not tiles_of(1024, 1536, TileConfig(), 1024)
    tiles = tiles_of(1024, 1537, TileConfig(), 1024)
    assert tiles == [Tile(0, 0, 1024, 1024), Tile(513, 0, 1537, 1024)]


@pytest.mark.parametrize(
    "bad", [{"size": 31}, {"size": 1.5}, {"count": -1}, {"overlap": 1.0}, {"size": 64, "count": 2}, {"overlap": "x"}]
)
def test_a_configuration_checks_itself(bad):
    with pytest.raises(InputError, match="tiles"):
        TileConfig(**bad)


def test_what_people_say_of_tiles():
    assert as_tiles(None) is None and as_tiles("auto") == TileConfig() and as_tiles(3) == TileConfig(count=3)
    for bad in (0, True, "many", 2.5):
        with pytest.raises(InputError, match="tiles"):
            as_tiles(bad)
    with pytest.raises(InputError, match="give larger tiles"):
        tiles_of(10_000, 10_000, TileConfig(size=64), 1024)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--tiles 0", "--tiles"),
        ("--tiles many", "'auto'"),
        ("--tile-size 8", "--tile-size"),
        ("--tile-overlap 1", "--tile-overlap"),
        ("--tile-overlap .5", "give --tiles"),
        ("--tiles 2 --tile-size 640", "not both"),
    ],
)
def test_options_that_cannot_work_are_one_line_and_status_2(line, said, tmp_path, capsys):
    (tmp_path / "a.png").touch()
    rest = ["--memory", tmp_path / "a.png", "--sam2", tmp_path / "a.png", "--dinov2", tmp_path / "a.png"]
    command = ["segment", tmp_path / "a.png", "--out", tmp_path / "out", *rest, *line.split()]
    assert main([str(part) for part in command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error, error


@given(st.integers(0, 2**32 - 1))
def test_masks_placed_and_compared_are_those_of_whole_bitmaps(seed):
    generator = np.random.default_rng(seed)
    height, width = (int(v) for v in generator.integers(1, 20, 2))
    h, w = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
    top, left = int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1))
    masks = np.zeros((3, height, width), np.bool_)
    masks[:, top : top + h, left : left + w] = generator.random((3, h, w)) < generator.random()
    placed = [place_mask(mask[top : top + h, left : left + w], left, top, height, width) for mask in masks]
    assert placed == encode_masks(masks)
    expected = (masks[0] & masks).sum(axis=(1, 2))
    np.testing.assert_array_equal(rle_intersections(placed[0], placed), expected)


SIZE = 100
TILES = [Tile(0, 0, 60, 100), Tile(40, 0, 100, 100)]


def detections(*found, tile=None):
    """Boxes (x1, y1, x2, y2 inclusive, of the image), score and class, as detections of a tile or of the image."""
    left, top, right, bottom = tile or (0, 0, SIZE, SIZE)
    rows = []
    for (x1, y1, x2, y2), score, label in found:
        mask = np.zeros((SIZE, SIZE), np.bool_)
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
        part = mask[top:bottom, left:right]
        y, x = np.nonzero(part)
        rows.append((part, (x.min(), y.min(), x.max(), y.max()), score, label))
    masks, boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [], [])
    shape = (bottom - top, right - left)
    rles = encode_masks(np.array(masks, np.bool_).reshape(-1, *shape))
    return HostDetections(*shape, np.array(boxes), np.array(scores), np.array(labels, int), tuple(rles))


def kept(whole=(), left=(), right=(), threshold=0.5, limit=100):
    found = [detections(*one, tile=tile) for one, tile in zip((left, right), TILES, strict=True)]
    views = gather(SIZE, SIZE, detections(*whole), 1, TILES, found, 50)
    result = merged(views, threshold, limit)
    for box, rle in zip(result.boxes, result.rles, strict=True):
        y, x = np.nonzero(decode_rle(rle))
        assert tuple(box) == (x.min(), y.min(), x.max(), y.max())
    return [(tuple(map(int, b)), round(float(s), 3)) for b, s in zip(result.boxes, result.scores, strict=True)]


OBJECT = (45, 20, 54, 29)  # in both tiles


def test_of_several_that_see_an_object_whole_the_best_rated_stays():
    assert kept(left=[(OBJECT, 0.6, 0)], right=[(OBJECT, 0.7, 0)]) == [(OBJECT, 0.7)]
    assert kept(whole=[(OBJECT, 0.8, 0)], left=[(OBJECT, 0.6, 0)]) == [(OBJECT, 0.8)]
    # Another class, and another object, are no matter.
    assert len(kept(left=[(OBJECT, 0.6, 0)], right=[(OBJECT, 0.7, 1)])) == 2
    assert len(kept(left=[(OBJECT, 0.6, 0)], right=[((45, 27, 54, 36), 0.7, 0)])) == 2
    # Those of one view have been merged by the method.
    assert len(kept(left=[(OBJECT, 0.6, 0), (OBJECT, 0.5, 0)])) == 2


def test_a_cut_object_gives_way_to_whoever_sees_it_whole_however_rated():
    crossing = (50, 20, 65, 29)
    assert kept(left=[(crossing, 0.9, 0)], right=[(crossing, 0.3, 0)]) == [(crossing, 0.3)]
    long = (20, 20, 80, 29)
    assert kept(whole=[(long, 0.3, 0)], left=[(long, 0.9, 0)], right=[(long, 0.9, 0)]) == [(long, 0.3)]
    # Seen whole by nobody: better a part than nothing.
    assert kept(left=[(long, 0.9, 0)]) == [((20, 20, 59, 29), 0.9)]
    # The image's own border cuts nothing.
    corner = (0, 0, 30, 9)
    assert kept(left=[(corner, 0.9, 0)], whole=[(corner, 0.3, 0)]) == [(corner, 0.9)]


def test_a_part_gives_way_to_a_large_object_but_never_the_object_to_its_part():
    large, part = (5, 20, 95, 80), (10, 30, 30, 50)
    assert kept(whole=[(large, 0.9, 0)], left=[(part, 0.6, 0)]) == [(large, 0.9)]
    assert kept(whole=[(large, 0.6, 0)], left=[(part, 0.9, 0)]) == [(part, 0.9), (large, 0.6)]


def test_the_best_of_an_image_are_kept():
    apart = [((5, y, 9, y + 4), 0.1 + y / 100, 0) for y in range(0, 60, 10)]
    assert [score for _, score in kept(left=apart, limit=2)] == [0.6, 0.5]


def test_a_smaller_whole_image_is_brought_to_size():
    mask = np.zeros((1, 50, 50), np.bool_)
    mask[0, 10:20, 5:15] = True
    box, rles = np.array([[5, 10, 14, 19]]), tuple(encode_masks(mask))
    small = HostDetections(50, 50, box, np.array([0.9]), np.zeros(1, int), rles)
    views = gather(101, 100, small, 2, [], [], 50)
    assert rle_areas(views.rles).tolist() == [400] and views.boxes.tolist() == [[10, 20, 29, 39]]


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (2, 9000), (9000, 3), (4097, 5)])
def test_a_strip_of_few_pixels_is_looked_at_whole_too(height, width):
    views = Views()
    (found,) = TiledPredictor(views, TileConfig(size=2000))([np.zeros((height, width, 3), np.uint8)])
    assert (found.height, found.width) == (height, width)
    assert all(min(seen) >= 1 for seen in views.seen) and len(views.seen) > 2
    assert max(views.seen[0]) <= max(4096, max(height, width) // min(height, width))


class Views:
    """In place of the compiled pass: counts views, and finds in each the mean of its pixels as a score."""

    image_size, config = 64, types.SimpleNamespace(max_detections=100)

    def __init__(self, batch_size=1):
        self.batch_size, self.seen = batch_size, []

    def __call__(self, images):
        for image in images:
            self.seen.append(image.shape[:2])
            height, width = image.shape[:2]
            mask = np.zeros((1, height, width), np.bool_)
            mask[0, height // 4 : height // 2, width // 4 : width // 2] = True
            box = [[width // 4, height // 4, width // 2 - 1, height // 2 - 1]]
            rles = tuple(encode_masks(mask))
            yield HostDetections(height, width, np.array(box), np.array([image.mean() / 255]), np.zeros(1, int), rles)


@pytest.mark.parametrize("batch", [1, 4])
def test_images_keep_their_views_in_order_and_batches_begin_with_an_image(batch):
    images = [np.full((side, side, 3), side, np.uint8) for side in (40, 200, 60, 90, 100, 250)]
    views = Views(batch)
    found = list(TiledPredictor(views, TileConfig(count=2))(iter(images)))
    assert [(d.height, d.width) for d in found] == [image.shape[:2] for image in images]
    for image, one in zip(images, found, strict=True):
        # One object in each of the four tiles and none that is also in another, or one in an image that is not cut.
        np.testing.assert_allclose(one.scores, image.mean() / 255, rtol=1e-6)
    if batch == 4:  # the fifth image begins a batch
        assert views.seen.index((100, 100)) % 4 == 0
    alone = list(TiledPredictor(Views(batch), TileConfig(count=2))(iter(images[4:])))
    assert [d.to_json() for d in alone] == [d.to_json() for d in found[4:]]


def test_small_images_go_through_untouched_and_errors_come_at_their_turn():
    def images():
        yield np.full((40, 50, 3), 9, np.uint8)
        raise InputError("gone")

    running = TiledPredictor(Views(), TileConfig())(images())
    assert next(running).to_json() == next(Views()([np.full((40, 50, 3), 9, np.uint8)])).to_json()
    with pytest.raises(InputError, match="gone"):
        next(running)
