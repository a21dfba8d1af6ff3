import numpy as np
import pytest
from PIL import Image
from stopwatch import cpu_seconds

from ntt_jax.errors import InputError
from ntt_jax.images import drawing as visualize
from ntt_jax.images.captions import place_captions


def test_colours_are_distinct_and_stay():
    colours = visualize.distinct_colours(24).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(24, dtype=int)
    assert apart[:12, :12].min() > 80 and apart.min() > 25
    assert np.array_equal(visualize.distinct_colours(5), colours[:5])
    assert visualize.distinct_colours(0).shape == (0, 3)


def test_overlay_draws_masks_and_nothing_else():
    image = np.full((40, 50, 3), 100, np.uint8)
    masks = np.zeros((2, 40, 50), bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 10:30, 10:30] = True
    colours = visualize.distinct_colours(4).astype(float)
    drawn = visualize.overlay(image, masks, [3, 1], opacity=0.5)
    assert np.array_equal(drawn[~masks.any(0)], image[~masks.any(0)])
    assert np.array_equal(drawn[5, 5], colours[3])  # outline
    assert np.allclose(drawn[7, 7], (100 + colours[3]) / 2, atol=1)
    assert np.allclose(drawn[20, 20], (100 + colours[1]) / 2, atol=1)
    # Where both are, the first lies on top.
    assert np.allclose(drawn[12, 12], ((100 + colours[1]) / 2 + colours[3]) / 2, atol=1)
    assert np.array_equal(image, np.full((40, 50, 3), 100, np.uint8))


def test_captions_stay_inside_the_picture():
    image = np.zeros((30, 90, 3), np.uint8)
    masks = np.zeros((3, 30, 90), bool)
    masks[0, 0, 89] = masks[1, 29, 0] = True  # corners; the third mask is empty
    plain = visualize.overlay(image, masks, [0, 1, 2])
    drawn = visualize.overlay(image, masks, [0, 1, 2], ["star 0.91", "disc 0.5", "nothing 0.1"])
    assert drawn.shape == plain.shape
    changed = (drawn != plain).any(-1)
    assert changed[:16, 30:].any() and changed[14:, :60].any()
    assert not changed[:, 70:][20:].any()  # nothing for the empty mask


@pytest.mark.parametrize(("size", "count"), [((480, 640), 40), ((3000, 4000), 40), ((120, 160), 6)])
def test_captions_do_not_cover_each_other(size, count):
    """Objects in two heaps, where the old place of each caption, above its object, is that of several."""
    rng = np.random.default_rng(0)
    height, width = size
    objects = []
    for _ in range(count):
        x, y = rng.normal([0.3, 0.5] if rng.random() < 0.5 else [0.8, 0.2], 0.05) * [width, height]
        objects.append((x, y, x + width / 15, y + height / 15))
    extent = round(width / 8), round(width / 40)
    places = place_captions(objects, [extent] * count, (width, height))
    left, top = np.array(places).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + extent[0] <= width).all() and (top + extent[1] <= height).all()
    apart = (np.abs(left[:, None] - left) >= extent[0]) | (np.abs(top[:, None] - top) >= extent[1])
    assert (apart | np.eye(count, dtype=bool)).all()
    assert places[0] == (round(objects[0][0]), round(objects[0][1] - extent[1]))  # the first has the first choice


def test_a_full_picture_has_captions_still():
    places = place_captions([(2, 2, 9, 9)] * 9, [(30, 10)] * 9, (40, 20))
    assert len(places) == 9 and set(places[:2]) <= {(x, y) for x in (2, 0, 9, 10) for y in (0, 2, 9, 10)}


def test_captions_and_lines_grow_with_the_image():
    """The height of the caption and the width of the outline of the same picture, eight times as large."""
    found = []
    for scale in (1, 8):
        image = np.zeros((400 * scale, 500 * scale, 3), np.uint8)
        mask = np.zeros((1, *image.shape[:2]), bool)
        mask[0, 150 * scale : 350 * scale, 100 * scale : 400 * scale] = True
        drawn = visualize.overlay(image, mask, [0], ["tram 0.91"], opacity=0.0)
        colour = (drawn == visualize.distinct_colours(1)[0]).all(-1)
        found.append((colour[: 150 * scale].any(1).sum(), colour[200 * scale, : 250 * scale].sum()))
    (text, line), (large_text, large_line) = found
    assert text == 14 and line == 1 and 7 <= large_text / text <= 9 and large_line == 6


def test_a_long_name_is_cut_in_its_middle():
    """Two names that differ at their end make different captions, which stay inside the picture."""
    image, mask = np.zeros((60, 100, 3), np.uint8), np.ones((1, 60, 100), bool)
    drawn = [
        visualize.overlay(image, mask, [0], [f"traffic light that is {end} and very far away indeed {end}"], opacity=0)
        for end in ("red", "green")
    ]
    assert not np.array_equal(*drawn) and drawn[0].shape == image.shape


@pytest.mark.parametrize("name", ["a" * 300_000, "\ud800\x00", "\x1b[2J\u202e", "\n" * 999, " "], ids=range(5))
def test_captions_of_any_text(name):
    image = np.zeros((90, 120, 3), np.uint8)
    start = cpu_seconds()
    drawn = visualize.overlay(image, np.ones((1, 90, 120), bool), [0], [name])
    assert drawn.shape == image.shape and cpu_seconds() - start < 10


def test_what_is_crossed_out_is_marked_inside_its_outline_only():
    image, masks = np.zeros((50, 60, 3), np.uint8), np.zeros((1, 50, 60), bool)
    masks[0, 10:30, 10:40] = True
    changed = (visualize.outlined(image, masks) != image).any(-1)
    assert changed[10, 10:40].all() and changed[20, 25] and not changed[12, 20] and not changed[~masks[0]].any()
    assert np.array_equal(visualize.outlined(image, masks[:0]), image)


def test_overlay_without_masks():
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    assert np.array_equal(visualize.overlay(image, np.zeros((0, 10, 10), bool), []), image)


def test_overlay_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="overlay"):
        visualize.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4), bool), [0])


def test_grid_places_every_image():
    images = [np.full((10 + 3 * i, 20 - 2 * i, 3), 10 * (i + 1), np.uint8) for i in range(5)]
    sheet = visualize.grid(images, 3)
    for i, image in enumerate(images):
        assert (sheet == 10 * (i + 1)).all(-1).sum() == image.shape[0] * image.shape[1]
    assert (sheet[0] == 255).all()
    assert visualize.titled(images[0], "a title").shape[0] == 30
    assert visualize.titled(images[0], "a title of many words that goes on").shape[0] == 50  # two lines


def test_pca_colours_follow_the_strongest_directions():
    rng = np.random.default_rng(0)
    strength = np.array([9.0, 4.0, 2.0])
    coordinates = rng.normal(size=(2, 6, 7, 3)) * strength
    basis = np.linalg.qr(rng.normal(size=(16, 3)))[0].T
    colours = visualize.pca_colours(coordinates @ basis + 5.0).astype(float)
    for k in range(3):
        correlation = np.corrcoef(colours[..., k].ravel(), coordinates[..., k].ravel())[0, 1]
        assert abs(correlation) > 0.95
    assert colours.min() == 0 and colours.max() == 255
    flat = visualize.pca_colours(np.ones((1, 2, 2, 8)))
    assert flat.shape == (1, 2, 2, 3)


def test_enlarge_and_save(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    big = visualize.enlarge(image, 4, 6)
    assert np.array_equal(big[::2, ::3], image) and big.shape == (4, 6, 3)
    visualize.save_picture(tmp_path / "a.png", big)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), big)
    with pytest.raises(InputError):
        visualize.save_picture(tmp_path / "missing" / "a.png", big)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
