import colorsys
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.demo.scenes import NOVEL_SPLITS, SceneConfig, Variation, base_classes, make_scene, novel_classes
from ntt_jax.demo.scenes.classes import _BASE_PAIRS, _NOVEL_PAIRS, OUTLINES, TEXTURES
from ntt_jax.demo.scenes.export import write_coco
from ntt_jax.references.sampling import sample_references


def kinds(classes):
    return {tuple(c.name.split()[2:]) for c in classes}


def test_novel_classes_are_never_trained_on():
    novel = [c for split in range(NOVEL_SPLITS) for c in novel_classes(split)]
    assert len(kinds(novel)) == len(novel) == 24
    assert not kinds(novel) & kinds(base_classes())
    assert len(_NOVEL_PAIRS) + len(_BASE_PAIRS) == len(OUTLINES) * len(TEXTURES)


def test_classes_are_fixed():
    # The shipped weights were trained on the base classes: a class that changes would make "novel" untrue.
    classes = [*base_classes(3), *novel_classes(0)]
    digest = [round(float(np.sum(c.profile) + np.sum(c.colours) + c.frequency + c.contrast), 3) for c in classes]
    assert digest == DIGEST


DIGEST = [219.152, 220.182, 248.61, 155.373, 239.155, 152.133, 166.851, 211.591, 147.805]


def test_colour_alone_does_not_tell_novel_classes():
    for split in range(NOVEL_SPLITS):
        classes = novel_classes(split)
        for palette in (classes[0::2], classes[1::2]):
            # The two main colours, in either order, are nearly the same in all three classes of a palette.
            hues = np.array([sorted(colorsys.rgb_to_hsv(*map(float, c))[0] for c in k.colours[:2]) for k in palette])
            apart = np.abs(hues[:, None] - hues[None, :])
            assert np.minimum(apart, 1 - apart).max() < 0.12


@pytest.mark.parametrize("split", range(NOVEL_SPLITS))
def test_unknown_split(split):
    with pytest.raises(ValueError, match="novel split must be 0 to 3"):
        novel_classes(split + 4)


def test_same_seed_same_scene():
    first, again, other = (make_scene(seed, novel_classes(0), base_classes(8)) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_more_variation_is_more_of_everything():
    assert Variation().scaled(1) == Variation()
    doubled = Variation().scaled(2.0)
    assert (doubled.hue, doubled.light) == (2 * Variation().hue, 2 * Variation().light)
    colours = []
    for variation in (Variation(), doubled):
        config = SceneConfig(objects=1, empty=0.0, variation=variation)
        scenes = [make_scene([6, i], novel_classes(0)[:1], config=config) for i in range(24)]
        colours.append(np.std([scene.image[scene.masks[0]].mean(axis=0) for scene in scenes], axis=0).mean())
    assert colours[1] > 1.2 * colours[0]  # light and the camera change the colours too


def test_scenes_are_what_they_promise():
    config = SceneConfig()
    scenes = [make_scene([1, i], novel_classes(i % 4), base_classes(8), config) for i in range(60)]
    sides = np.array([scene.image.shape[:2] for scene in scenes])
    assert sides.min() >= 240 and sides.max() <= 384 and np.std(sides[:, 0] / sides[:, 1]) > 0.1
    counts = np.array([np.sum(scene.labels >= 0) for scene in scenes])
    assert counts.min() == 0 and counts.max() >= 5  # some without any object
    assert any((scene.labels < 0).any() for scene in scenes)
    for scene in scenes:
        assert scene.image.dtype == np.uint8 and scene.masks.dtype == bool
        assert scene.masks.shape == (len(scene.labels), *scene.image.shape[:2])
        assert (scene.masks.sum(axis=0) <= 1).all()  # visible pixels only
        assert (scene.masks.sum(axis=(1, 2)) >= 0.75 * 200).all()
        assert (np.diff(scene.labels < 0) >= 0).all()  # distractors last


def test_objects_touch_and_occlude():
    scenes = [make_scene([2, i], base_classes(8)) for i in range(20)]
    touching = 0
    for scene in scenes:
        for i, a in enumerate(scene.masks):
            grown = a.copy()
            grown[1:] |= a[:-1]
            grown[:, 1:] |= a[:, :-1]
            touching += sum(bool((grown & b).any()) for b in scene.masks[i + 1 :])
    assert touching >= 5


def test_background_has_the_spectrum_of_photographs():
    empty = SceneConfig(objects=1, empty=1.0, distractors=0)
    slopes = []
    for i in range(8):
        image = make_scene([3, i], base_classes(1), config=empty).image[:240, :240].mean(axis=2)
        power = np.abs(np.fft.fft2(image - image.mean())) ** 2
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(240), np.fft.fftfreq(240)))
        bands = [power[(f >= low) & (f < 2 * low)].mean() for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8)]
        slopes.append(np.polyfit(np.log([1, 2, 4, 8]), np.log(bands), 1)[0])
    assert -3.6 < np.mean(slopes) < -1.2  # photographs: about -2


def test_coco_folder(tmp_path):
    classes = novel_classes(1)
    scenes = [make_scene([4, i], classes, base_classes(8)) for i in range(30)]
    path = write_coco(tmp_path / "a", scenes, classes)
    dataset = load_coco(path)
    assert [c.name for c in dataset.categories.values()] == [c.name for c in classes]
    for number, scene in enumerate(scenes, 1):
        image = np.asarray(Image.open(dataset.image_path(path.parent, number)))
        assert np.array_equal(image, scene.image)
        annotations = dataset.image_annotations[number]
        assert [a.category_id - 1 for a in annotations] == [k for k in scene.labels if k >= 0]
        for annotation, mask in zip(annotations, scene.masks, strict=False):
            assert np.array_equal(dataset.mask(annotation), mask)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation.bbox
            assert (x, y) == (columns.min(), rows.min()) and (x + width - 1, y + height - 1) == (
                columns.max(),
                rows.max(),
            )
            assert annotation.area == mask.sum() == coco_mask.area(dataset.rle(annotation))
    references = sample_references(dataset, select_classes(dataset, "all"), 5, 0)
    assert not references.short_classes()
    again = write_coco(tmp_path / "b", [make_scene([4, i], classes, base_classes(8)) for i in range(30)], classes)
    assert path.read_bytes() == again.read_bytes()
    assert json.loads(path.read_text())["images"][0]["file_name"] == "images/000001.png"
