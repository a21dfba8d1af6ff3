"""Boxes as prompts, extra points and finer masks through the whole pass, against its public parts put together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from dinov2_weights import recipe_model as recipe_dinov2
from sam2_weights import recipe_model as recipe_sam2

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig, DinoV2Config, HieraConfig, Sam2Config
from ntt_jax.detection.boxes import BoxedImage, as_boxes
from ntt_jax.detection.merge import Merged, detect
from ntt_jax.detection.refine import refine_masks
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import resize_for_sam
from ntt_jax.images.rle import decode_rle
from ntt_jax.models.sam2.box_prompts import corner_points, without_memory
from ntt_jax.models.sam2.single_mask import choose_mask
from ntt_jax.pipeline import encode_images, segment

SAM2 = Sam2Config("tiny", HieraConfig(16, 1, (1, 1, 2, 1), (3,), (8, 4, 8, 4), (4, 4)), image_size=128, d_model=32)
DINOV2 = DinoV2Config("tiny", embed_dim=48, depth=1, num_heads=3, image_size=112, input_size=112)
CONFIG = DetectConfig(points_per_side=3, pred_iou_threshold=0.0, nms_iou_threshold=1.0, max_detections=12)
BOXES = dataclasses.replace(CONFIG, proposals="replace", max_proposals=6, report_boxes="proposal")
EVERYTHING = dataclasses.replace(CONFIG, proposals="join", max_proposals=6, extra_points=5, refine="box")


@functools.cache
def models():
    return recipe_sam2(SAM2), recipe_dinov2(DINOV2)


@functools.cache
def prototypes() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((3, DINOV2.embed_dim)).astype(np.float32)


def boxed_images() -> list[BoxedImage]:
    """Images of several sizes with none, four and eight boxes."""
    rng = np.random.default_rng(1)
    found = []
    for (height, width), count in (((50, 60), 4), ((90, 130), 8), ((40, 40), 0)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
        found.append(BoxedImage(image, as_boxes(corners.reshape(-1, 4), rng.uniform(0, 1, count))))
    return found


@functools.cache
def predicted(config: DetectConfig = BOXES):
    return list(Predictor(*models(), prototypes(), config, devices=jax.devices()[:1])(boxed_images()))


@jax.jit
def encoded(sam2, dinov2, image):
    features, patches = encode_images(sam2, dinov2, image[None])
    return without_memory(sam2.no_mem_embed[...], features[0]), patches[0]


@jax.jit
def decoded(sam2, features, boxes):
    return choose_mask(*sam2.decode(features, *corner_points(boxes)), ambiguous=False)


def assert_same(found, wanted):
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    for a, b in zip(found.rles, wanted.rles, strict=True):
        assert (decode_rle(a) != decode_rle(b)).sum() <= 3


def test_boxes_alone_equal_the_parts_put_together():
    """The best six of eight boxes; objectness takes the place of predicted IoUs, and none of them drops a box."""
    image, rows = boxed_images()[1]
    found = predicted()[1]
    rows = rows[np.argsort(-rows[:, 4])][:6]
    height, width = image.shape[:2]
    features, patches = encoded(*models(), resize_for_sam(image, SAM2.image_size))
    scaled = (rows[:, :4] / np.array([width, height] * 2) * SAM2.image_size).astype(np.float32)
    logits, _ = decoded(models()[0], features, scaled)
    whole = jax.jit(functools.partial(detect, height=height, width=width, config=CONFIG))
    wanted = whole(patches, logits, rows[:, 4], prototypes())
    valid = np.asarray(wanted.valid)
    np.testing.assert_allclose(found.scores, np.asarray(wanted.scores)[valid], atol=1e-6)
    np.testing.assert_array_equal(found.labels, np.asarray(wanted.labels)[valid])
    masks = np.stack([decode_rle(rle) for rle in found.rles])
    assert (masks != np.asarray(wanted.masks)[valid]).sum() <= 3 * len(masks)
    assert len(predicted()[0]) == 4 and len(found) == 6 and len(predicted()[2]) == 0


def test_a_program_for_any_number_of_boxes_and_the_box_reported():
    found = predicted()
    with compilations() as compiled:
        other = Predictor(*models(), prototypes(), BOXES, devices=jax.devices()[:1])
        assert len(list(other(boxed_images()[::-1]))) == 3
    assert not compiled.target_pass
    for index, (_, rows) in enumerate(boxed_images()[:2]):
        best = rows[np.argsort(-rows[:, 4])][:6]
        assert sorted(found[index].boxes.tolist()) == sorted(best[:, :4].tolist())
    (image, rows) = boxed_images()[0]
    single = jax.eval_shape(
        lambda i, b: segment(*models(), prototypes(), i, CONFIG, boxes=b, box_scores=b[:, 0]), image, rows[:, :4]
    )
    assert single.masks.shape == (12, 50, 60)


@pytest.mark.large  # half a minute of compiling
def test_everything_at_once_with_points_shared_among_devices():
    """Boxes joined with the grid and extra points, refined: one device, and three that share the points."""
    divided = Predictor(*models(), prototypes(), EVERYTHING, batch_size=2, devices=jax.devices()[:3], divide="points")
    every = predicted(EVERYTHING)
    for found, wanted in zip(divided(boxed_images()), every, strict=True):
        assert_same(found, wanted)
        np.testing.assert_array_equal(found.boxes, wanted.boxes)
    assert len(every[0]) > 4 and len(every[2]) > 0  # more than boxes can give


def test_a_finer_mask_is_kept_where_it_is_better_and_the_same_object():
    sam2 = models()[0]
    (image, rows) = boxed_images()[0]
    features, _ = encoded(*models(), resize_for_sam(image, SAM2.image_size))
    plain = dataclasses.replace(features, embedding=features.embedding - sam2.no_mem_embed[...].reshape(1, 1, -1))
    height, width = image.shape[:2]
    boxes = jnp.asarray(rows[:, :4].astype(np.int32) + np.array([[0, 0, 3, 3]]))
    finer, _ = decoded(sam2, features, boxes / jnp.array([[width, height] * 2]) * SAM2.image_size)
    assert 0.1 < float((finer > 0).mean()) < 0.9
    # The same mask of a lower rating, of a higher one, another object, and none.
    first = jnp.stack([finer[0] + 0.01, finer[1] + 0.01, -finer[2], finer[3]])
    rated = jnp.array([0.0, 1.0, 0.0, 0.0])
    valid = jnp.array([True, True, True, False])
    merged = Merged(jnp.arange(4), boxes, jnp.ones(4), jnp.zeros(4, jnp.int32), valid)
    config = dataclasses.replace(CONFIG, refine="box")
    refine = jax.jit(functools.partial(refine_masks, config=config))
    found, logits = refine(sam2, plain, merged, first, rated, height, width)
    np.testing.assert_allclose(logits[0], finer[0], atol=1e-5 * float(jnp.abs(finer).max()))
    np.testing.assert_array_equal(logits[1:], first[1:])
    np.testing.assert_array_equal(found.boxes[1:], boxes[1:])
    assert found.boxes[0].tolist() != boxes[0].tolist()


def test_images_and_configurations_that_do_not_fit():
    image, rows = boxed_images()[0]
    with pytest.raises(InputError, match="the configuration takes none"):
        list(Predictor(*models(), prototypes(), CONFIG)([BoxedImage(image, rows)]))
    with pytest.raises(InputError, match="images came without them"):
        list(Predictor(*models(), prototypes(), BOXES)([image]))
    for given, said in (
        ({"boxes": np.zeros((2, 3))}, r"boxes: expected \[N, 4\]"),
        ({"boxes": rows[:, :4], "box_scores": np.ones(3)}, r"box_scores: expected \[4\]"),
        ({"box_scores": np.ones(3)}, "without boxes"),
    ):
        with pytest.raises(InputError, match=said):
            segment(*models(), jnp.asarray(prototypes()), jnp.asarray(image), CONFIG, **given)
    for change in ({"proposals": "join"}, {"refine": "box"}, {"extra_points": 3}):
        with pytest.raises(InputError, match=f"tune: {next(iter(change))}="):
            dataclasses.replace(CONFIG, **change).require_plain_points("tune")
    CONFIG.require_plain_points("tune")
