"""`Segmenter.predict` with boxes."""

import cli_files
import dinov2_weights
import numpy as np
import pytest
import sam2_weights
from compilations import compilations

from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.segmenter.boxed import boxed_image, boxes_beside
from ntt_jax.segmenter.segmenter import Segmenter

IMAGE = np.zeros((40, 60, 3), np.uint8)
BOX = [[1.0, 2, 30, 20]]


@pytest.mark.parametrize(
    ("images", "boxes", "scores", "said"),
    [
        (IMAGE, None, [1], "box_scores: given without boxes"),
        (IMAGE, [1, 2, 3, 4], None, r"expected an array \[N, 4\]"),
        (".", BOX, None, "not for a folder"),
        ([IMAGE, IMAGE], [BOX], None, "boxes: expected one array for each of 2 images, found 1"),
        ([IMAGE], [BOX], [], "box_scores: expected one array for each of 1 images, found 0"),
        ([IMAGE], {"a": BOX}, None, "boxes: expected one array for each image"),
        ([IMAGE], [[1, 2, 3, 4]], None, r"image 0: boxes: expected an array \[N, 4\]"),
        (iter([IMAGE]), [BOX], iter([]), "image 0 has none"),
        (iter([IMAGE]), [], None, "fewer than images"),
        (IMAGE, [[70, 2, 90, 20]], None, "box 0 lies outside its image of 60 x 40 pixels"),
        (IMAGE, BOX * 3, None, "boxes: 3, but max_proposals is 2; give box_scores"),
    ],
)
def test_boxes_that_do_not_fit_are_one_line(images, boxes, scores, said):
    with pytest.raises(InputError, match=said) as caught:
        rows = boxes_beside(images, boxes, scores)
        assert rows is not None
        boxed_image(IMAGE, rows, DetectConfig(max_proposals=2))
    assert "\n" not in str(caught.value)


@pytest.mark.large  # a dozen seconds of compiling; commands with boxes run at every test run
def test_one_image_several_and_a_stream():
    models = sam2_weights.recipe_model(cli_files.SAM2, 3), dinov2_weights.recipe_model(cli_files.DINOV2, 3)
    generator = np.random.default_rng(5)
    scenes = [cli_files.scene(generator, 80) for _ in range(3)]
    segmenter = Segmenter(*models, points_per_side=4, max_detections=12)
    segmenter.fit({"thing": [(scenes[0][0], scenes[0][1][0][1])]})
    images = [scene[0] for scene in scenes]
    boxes = [np.array([[5, 5, 40, 40], [20, 10, 70, 60]]), [[0, 0, 79, 79]], np.zeros((0, 4))]
    several = segmenter.predict(images, boxes=boxes)
    assert len(several[0]) > 0 and len(several[2]) == 0
    one = segmenter.predict(images[0], boxes=boxes[0], box_scores=[0.5, 0.7])
    assert len(one) == len(several[0])
    stream = segmenter.predict(iter(images), boxes=iter(boxes))
    for found, wanted in zip(stream, several, strict=True):
        np.testing.assert_array_equal(found.scores, wanted.scores)
        assert found.rles == wanted.rles
    # Another class changes nothing but the classes: the program with boxes is kept.
    with compilations() as compiled:
        segmenter.add("other", [(scenes[1][0], scenes[1][1][0][1])])
        assert len(segmenter.predict(images[0], boxes=boxes[0])) > 0
    assert not compiled.target_pass
