import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from dinov2_weights import recipe_model as recipe_dinov2
from PIL import Image
from sam2_weights import recipe_model as recipe_sam2

import ntt_jax.compiled.predictor as predictor_module
from ntt_jax.compiled.parallel import pmapped
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig, DinoV2Config, HieraConfig, Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import resize_for_sam
from ntt_jax.images.rle import decode_rle, encode_masks
from ntt_jax.memory import Memory
from ntt_jax.pipeline import detect_shard, segment

SAM2 = Sam2Config("tiny", HieraConfig(16, 1, (1, 1, 2, 1), (3,), (8, 4, 8, 4), (4, 4)), image_size=128, d_model=32)
DINOV2 = DinoV2Config("tiny", embed_dim=48, depth=1, num_heads=3, image_size=112, input_size=112)
# Every candidate passes, and duplicates stay: detections of many shapes.
CONFIG = DetectConfig(points_per_side=4, pred_iou_threshold=0.0, nms_iou_threshold=1.0)
SIZES = [(50, 60), (200, 100), (7, 300), (1, 1), (64, 64), (90, 33), (128, 128)]


@functools.cache
def models():
    return recipe_sam2(SAM2), recipe_dinov2(DINOV2)


def prototypes(count: int = 3) -> np.ndarray:
    vectors = np.random.default_rng(3).standard_normal((count, DINOV2.embed_dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def images() -> list[np.ndarray]:
    # With seed 0 one pixel of a mask of 561 has the logit 2e-8: its sign, and with it a score, depends on the program.
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in SIZES]


@functools.cache
def predicted():
    with compilations() as compiled:
        found = list(Predictor(*models(), prototypes(), CONFIG, batch_size=2)(images()))
    return found, compiled.target_pass


def assert_same(found, wanted):
    """Equal detections of two programs: rounding may differ, so scores to 1e-6 and a pixel whose logit is 0."""
    assert len(found.scores) == len(wanted.scores)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    for a, b in zip(found.rles, wanted.rles, strict=True):
        assert (decode_rle(a) != decode_rle(b)).sum() <= 3


def test_sizes_do_not_compile_anew():
    found, programs = predicted()
    assert [(d.height, d.width) for d in found] == SIZES
    assert sum(len(d.scores) for d in found) > len(SIZES)
    assert len(programs) == 3, programs  # the main one, and canvases of 256 and 640 pixels
    with compilations() as compiled:
        other = Predictor(*models(), prototypes()[::-1], CONFIG, batch_size=2, canvas=300)
        assert len(list(other(images()[3:]))) == len(SIZES) - 3
    assert not compiled.target_pass  # nor do other prototypes, or a larger canvas that is there already


def test_fifty_sizes_compile_nothing_more():
    """Counted by JAX itself: neither a program of the target pass nor any operation beside it."""
    predicted()  # both canvases
    predictor = Predictor(*models(), prototypes(), CONFIG, batch_size=2)
    assert len(list(predictor(images()[:2]))) == 2
    rng = np.random.default_rng(5)
    sizes = [(h, w) for h, w in np.unique(rng.integers(1, 300, (60, 2)), axis=0)[:50].tolist()]
    with compilations() as compiled:
        found = list(predictor(rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes))
    assert [(d.height, d.width) for d in found] == sizes and len(set(sizes)) == 50
    assert sum(len(d.scores) for d in found) > 100
    assert compiled == []
    with compilations() as compiled:
        jax.jit(lambda x: x + 1)(np.float32(1))
    assert len(compiled) == 1  # so it would have been heard


def test_masks_of_large_images_are_drawn_on_no_square(monkeypatch):
    """A picture of 32768 x 24 pixels in a file of 5 kB must not take gigabytes; the bits are those of the square."""
    for height, width in ((24, 32768), (6103, 32768), (32768, 1), (12000, 16000), (5000, 5000)):
        canvas = predictor_module._canvas(height, width, 0)
        assert height <= canvas[0] and width <= canvas[1] and canvas[0] * canvas[1] <= 2**28
    assert predictor_module._canvas(3024, 4032, 0) == (4096, 4096)
    monkeypatch.setattr(predictor_module, "_SQUARE", 256)
    found = list(Predictor(*models(), prototypes(), CONFIG, batch_size=2)(images()))
    assert predictor_module._canvas(*SIZES[2], 0) == (256, 640)
    assert [one.rles for one in found] == [one.rles for one in predicted()[0]]


def test_equals_segment(index=1):
    """An image that is tall and reduced in height only: the order of Pillow's passes matters there."""
    image = images()[index]
    single = jax.jit(lambda i: segment(*models(), jnp.asarray(prototypes()), i, CONFIG))(image)
    keep = np.asarray(single.valid)
    wanted = type(predicted()[0][index])(
        *image.shape[:2],
        np.asarray(single.boxes)[keep],
        np.asarray(single.scores)[keep],
        np.asarray(single.labels)[keep],
        encode_masks(np.asarray(single.masks)[keep]),
    )
    assert_same(predicted()[0][index], wanted)


@pytest.mark.parametrize(("devices", "count"), [(4, 7), (4, 1)])
def test_any_number_of_images_on_several_devices(devices, count):
    # One image a step on one device: the share of each device. Another batch size may round a logit across 0.
    one = list(Predictor(*models(), prototypes(), CONFIG)(images()[:count]))
    predictor = Predictor(*models(), prototypes(), CONFIG, devices=jax.devices()[:devices], divide="images")
    for found, wanted in zip(predictor(images()[:count]), one, strict=True):
        assert_same(found, wanted)


@pytest.mark.large  # half a minute of compiling; memory and matching under pmap are compared at every test run
def test_the_whole_pass_under_pmap():
    """3 images on 2 devices. `Predictor` is the other wrapper, and draws the masks from these logits."""
    batch = np.stack([resize_for_sam(image, SAM2.image_size) for image in images()[:3]])
    call = pmapped(functools.partial(detect_shard, config=CONFIG), jax.devices()[:2])
    merged, logits = call((*models(), jnp.asarray(prototypes())), (batch, np.array(SIZES[:3], np.int32)))
    assert logits.shape[:2] == merged.valid.shape == (3, CONFIG.max_detections)
    for index, wanted in enumerate(predicted()[0][:3]):
        keep = np.asarray(merged.valid[index])
        np.testing.assert_array_equal(merged.labels[index][keep], wanted.labels)
        np.testing.assert_allclose(merged.scores[index][keep], wanted.scores, atol=1e-6)
        np.testing.assert_array_equal(merged.boxes[index][keep], wanted.boxes)


def test_packed_masks_are_the_same():
    predictor = Predictor(*models(), prototypes(), CONFIG, batch_size=2)
    predictor._packed = True
    for found, wanted in zip(predictor(images()[:3]), predicted()[0][:3], strict=True):
        assert_same(found, wanted)


def test_an_error_comes_after_what_was_found_before_it():
    def broken():
        yield from images()[:3]
        raise OSError("disk gone")

    predictor = Predictor(*models(), prototypes(), CONFIG, batch_size=2)
    found = []
    with pytest.raises(OSError, match="disk gone"):
        found.extend(predictor(broken()))
    found = []
    iterator = predictor(broken())
    with pytest.raises(OSError, match="disk gone"):
        for detections in iterator:
            found.append(detections)
    assert len(found) == 3


def test_bad_input():
    with pytest.raises(InputError, match="another encoder"):
        Predictor(*models(), prototypes()[:, :5])
    with pytest.raises(InputError, match="batch_size"):
        Predictor(*models(), prototypes(), batch_size=0)
    with pytest.raises(InputError, match="devices"):
        Predictor(*models(), prototypes(), devices=[])
    predictor = Predictor(*models(), prototypes(), CONFIG)
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), "x.jpg"):
        with pytest.raises(InputError, match="expected an image"):
            list(predictor([image]))
    with pytest.raises(InputError, match="uint8"):
        segment(*models(), jnp.asarray(prototypes()), jnp.zeros((4, 4, 3)), CONFIG)


@pytest.mark.parametrize("count", [3, 8])
def test_points_shared_among_devices(count):
    """16 points on numbers of devices that do and do not divide them."""
    found = Predictor(*models(), prototypes(), CONFIG, batch_size=2, devices=jax.devices()[:count])(images())
    for one, wanted in zip(found, predicted()[0], strict=True):
        assert_same(one, wanted)


def test_points_shared_compile_nothing_more_and_keep_negatives():
    negatives = np.zeros((3, 1, DINOV2.embed_dim), np.float32)
    negatives[0, 0] = prototypes()[0]
    predictor = Predictor(*models(), prototypes(), CONFIG, batch_size=1, devices=jax.devices()[:2])
    assert len(list(predictor(images()))) == len(SIZES)
    with compilations() as compiled:
        assert len(list(predictor(images()))) == len(SIZES)
    assert not compiled.target_pass
    found = list(predictor.with_prototypes(prototypes(), negatives)(images()))
    whole = Predictor(*models(), prototypes(), CONFIG, negatives=negatives)(images())
    for one, wanted in zip(found, whole, strict=True):
        assert_same(one, wanted)


def test_wrong_types_are_named():
    sam2, dinov2 = models()
    memory = Memory(jnp.asarray(prototypes()), jnp.zeros((3, 1, DINOV2.embed_dim)), jnp.ones((3, 1), bool))
    image = np.zeros((4, 4, 3), np.uint8)
    for call in (lambda *given: segment(*given, image, CONFIG), lambda *given: Predictor(*given, CONFIG)):
        with pytest.raises(InputError, match="sam2: expected a Sam2, found DinoVisionTransformer"):
            call(dinov2, sam2, prototypes())
        with pytest.raises(InputError, match=r"found a whole Memory; give its \.prototypes"):
            call(sam2, dinov2, memory)
    for other in (Image.fromarray(image), "photo.jpg"):
        with pytest.raises(InputError, match=f"as an array uint8 .* found {type(other).__name__}"):
            segment(sam2, dinov2, prototypes(), other, CONFIG)
    assert len(repr(sam2)) < 200 and len(repr(dinov2)) < 200 and DINOV2.name in repr(dinov2)


@pytest.mark.parametrize(("options", "said"), [({"divide": "rows"}, "divide"), ({"devices": "cpu"}, "devices")])
def test_refuses_other_divisions(options, said):
    with pytest.raises(InputError, match=f"{said}: expected"):
        Predictor(*models(), prototypes(), CONFIG, **options)
