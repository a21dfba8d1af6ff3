import numpy as np
import pytest
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images import drawing as visualize


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
