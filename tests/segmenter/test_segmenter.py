import dataclasses
import json
import sys
import types
import warnings

import cli_files
import dinov2_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sam2_weights
from compilations import compilations
from PIL import Image

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.prompt_masker import Prompt, PromptMasker
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.detection.match import assign_labels, similarities
from ntt_jax.detection.nms import class_aware_nms
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import mask_to_grid, reference_crop
from ntt_jax.images.reading import turned
from ntt_jax.memory.aggregate import Memory, aggregate_memory, encode_references
from ntt_jax.memory.bank import load_memory
from ntt_jax.notes import InputNote
from ntt_jax.references.build import Negatives, build_memory
from ntt_jax.references.negatives import negative_set
from ntt_jax.references.sampling import sample_references, save_references
from ntt_jax.segmenter.classes import padded_classes
from ntt_jax.segmenter.segmenter import Segmenter
from ntt_jax.tiles.layout import Tile, TileConfig, tiles_of
from ntt_jax.tiles.merge import gather, merged

# All candidates of these random models look alike: without NMS, and two classes each, several survive.
CONFIG = DetectConfig(
    points_per_side=4, pred_iou_threshold=0.0, nms_iou_threshold=1.0, max_detections=12, classes_per_mask=2
)
SHOTS = {"square": 3, "disc": 1, "bar": 2}


@pytest.fixture(scope="module")
def models():
    return sam2_weights.recipe_model(cli_files.SAM2, 3), dinov2_weights.recipe_model(cli_files.DINOV2, 3)


@pytest.fixture(scope="module")
def shared(models):
    """One segmenter for the whole file, so that its programs are compiled once."""
    return Segmenter(*models, CONFIG)


@pytest.fixture(scope="module")
def given():
    """References by class: images of several sizes, one object each."""
    generator = np.random.default_rng(5)
    found: dict[str, list] = {name: [] for name in SHOTS}
    while any(len(found[name]) < count for name, count in SHOTS.items()):
        image, [(category, mask)] = cli_files.scene(generator, 72 + int(generator.integers(0, 20)))
        name = cli_files.CLASSES[category]
        if len(found[name]) < SHOTS[name]:
            found[name].append((image, mask))
    return found


def images(count=4, seed=9):
    generator = np.random.default_rng(seed)
    return [cli_files.scene(generator, 70 + 9 * i)[0] for i in range(count)]


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def assert_same_memory(found, expected):
    for name in ("prototypes", "instance_means", "valid", "negatives"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def assert_same(found, expected):
    for name in ("height", "width", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert list(found.rles) == list(expected.rles)


def test_tiles_are_views_of_the_image_merged_by_one_rule_and_compile_nothing(shared, given):
    """What is found is what the whole image and its tiles give one by one, and none of it twice."""
    shared.fit(given)
    generator = np.random.default_rng(3)
    image = np.concatenate([cli_files.scene(generator, 90)[0][:90, :90] for _ in range(2)], axis=1)
    views = [image, image[:, :103], image[:, 77:]]
    alone = [shared.predict(view).detections for view in views]
    with compilations() as compiled:
        found = shared.predict(image, tiles=TileConfig(count=2))
    assert not compiled.target_pass
    tiles = tiles_of(90, 180, TileConfig(count=2), 128)
    assert tiles == [Tile(0, 0, 103, 90), Tile(77, 0, 180, 90)]
    assert_same(found, merged(gather(90, 180, alone[0], 1, tiles, alone[1:], 32), 0.5, CONFIG.max_detections))
    assert 0 < len(found) <= CONFIG.max_detections
    assert_same(shared.predict(image, tiles="auto"), alone[0])  # not much larger than SAM 2's input


def test_fit_is_the_published_steps(models, shared, given):
    shared.fit(given)
    assert shared.classes == SHOTS and list(shared.classes) == list(SHOTS)
    features, masks = np.zeros((3, 3, 25, 24), np.float32), np.zeros((3, 3, 25), np.float32)
    for k, references in enumerate(given.values()):
        for s, (image, mask) in enumerate(references):
            crop, soft = reference_crop(image, mask, box_of(mask), 70)
            features[k, s] = models[1](jnp.asarray(crop)[None])[0].reshape(25, 24)
            masks[k, s] = mask_to_grid(soft, 5).reshape(25)
    expected = aggregate_memory(jnp.asarray(features), jnp.asarray(masks))
    np.testing.assert_array_equal(shared.memory.valid, expected.valid)
    # The same sums; the encoder above was not compiled as one program.
    np.testing.assert_allclose(shared.memory.prototypes, expected.prototypes, atol=3e-6, rtol=0)
    np.testing.assert_allclose(shared.memory.instance_means, expected.instance_means, atol=3e-5, rtol=0)


def test_fit_is_each_reference_alone_bit_for_bit(models, shared, given):
    shared.fit(given)
    encode = jax.jit(encode_references)
    for k, references in enumerate(given.values()):
        for s, (image, mask) in enumerate(references):
            crop, soft = reference_crop(image, mask, box_of(mask), 70)
            mean = encode(models[1], crop[None], mask_to_grid(soft, 5)[None])[0]
            np.testing.assert_array_equal(shared.memory.instance_means[k, s], mean)


def test_one_by_one_equals_at_once_bit_for_bit(models, shared, given, tmp_path):
    whole = shared.fit(given).memory
    shared.save(tmp_path / "whole.safetensors")
    grown = shared.remove("square").remove("disc").remove("bar")
    assert grown.classes == {}
    for name, references in given.items():
        for reference in references:
            grown.add(name, [reference])
    assert_same_memory(grown.memory, whole)
    grown.save(tmp_path / "grown.safetensors")
    assert (tmp_path / "grown.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    # All first references, then all second ones: nothing but the order of first addition counts.
    again = Segmenter(*models, CONFIG)
    for shot in range(3):
        for name, references in given.items():
            again.add(name, references[shot : shot + 1]) if references[shot : shot + 1] else None
    assert_same_memory(again.memory, whole)


def test_removing_restores_bit_for_bit(shared, given):
    whole = shared.fit(given).memory
    shared.add("disc", [given["bar"][0]]).remove("disc", 1)
    assert_same_memory(shared.memory, whole)
    shared.add("other", given["bar"]).remove("other")
    assert_same_memory(shared.memory, whole)
    shared.remove("square", 1)
    less = shared.memory
    assert_same_memory(less, shared.fit({**given, "square": [given["square"][0], given["square"][2]]}).memory)
    shared.fit(given).remove("square")
    assert_same_memory(shared.memory, shared.fit({name: given[name] for name in ("disc", "bar")}).memory)


def test_negatives_equal_those_given_at_once_and_go_without_a_trace(models, shared, given, tmp_path):
    bare, image = shared.fit(given).memory, images(1)[0]
    before = shared.predict(image)
    nearly_all = np.ones(image.shape[:2], bool)
    nearly_all[0, 0] = False
    everything = (image, nearly_all)
    unlike = {"disc": [everything, given["bar"][1]], "bar": given["square"][:1]}
    whole = shared.fit(given, negatives=unlike).memory
    assert shared.negatives == {"square": 0, "disc": 2, "bar": 1} and "disc (1, 2 negative)" in repr(shared)
    np.testing.assert_array_equal(whole.prototypes, bare.prototypes)
    np.testing.assert_array_equal(whole.negatives[1, 1], bare.instance_means[2, 1])  # encoded as references are
    assert not np.any(whole.negatives[0]) and not np.any(whole.negatives[2, 1:])
    shared.save(tmp_path / "whole.safetensors")
    lowered = shared.predict(image)
    assert lowered.scores.tolist() != before.scores.tolist()
    assert Segmenter.load(tmp_path / "whole.safetensors", *models, CONFIG).negatives == shared.negatives

    shared.fit(given)
    for name, references in unlike.items():
        for reference in references:
            shared.add_negative(name, [reference])
    assert_same_memory(shared.memory, whole)
    shared.save(tmp_path / "grown.safetensors")
    assert (tmp_path / "grown.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert_same(shared.predict(image), lowered)
    with compilations() as compiled:  # a further negative, and a class with one, share the programs
        shared.add_negative("square", given["bar"][:1]).predict(image)
        assert_same(shared.remove_negative("square", 0).predict(image), lowered)
    assert not compiled.target_pass

    shared.remove_negative("disc", 0).remove_negative("disc").remove_negative("bar")
    assert_same_memory(shared.memory, bare)
    assert shared.memory.negatives is None
    assert_same(shared.predict(image), before)
    for wrong, message in (
        (lambda: shared.add_negative("cat", given["bar"]), "negative references: no class 'cat'; the classes are"),
        (lambda: shared.add_negative("bar", []), "negative references: class 'bar': expected at least one"),
        (lambda: shared.add_negative("bar", [(images(1)[0], np.zeros((70, 70), bool))]), "negative.*0 of class 'bar'"),
        (lambda: shared.fit(given, negatives=[1]), "negatives: expected {class name"),
        (lambda: shared.remove_negative("cat"), "no class 'cat'"),
        (lambda: shared.remove_negative("bar", 0), "class 'bar' has none, found 0"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
    assert_same_memory(shared.memory, bare)


def test_order_of_classes_changes_numbers_only(shared, given):
    image = images(1)[0]
    found = shared.fit(given).predict(image)
    memory = shared.memory
    turned = shared.fit(dict(reversed(given.items()))).predict(image)
    np.testing.assert_array_equal(shared.memory.prototypes, memory.prototypes[::-1])
    assert turned.class_names == found.class_names and turned.classes == found.classes[::-1]
    np.testing.assert_array_equal(turned.scores, found.scores)
    assert turned.rles == found.rles


def test_predictions_are_those_of_the_compiled_pass(models, shared, given):
    shared.fit(given)
    for number in range(5):  # eight classes are not padded: one program for both
        shared.add(f"class {number}", given["bar"][:1] + given["square"][: number % 3 + 1])
    expected = list(Predictor(*models, shared.memory.prototypes, CONFIG, canvas=640)(images()))
    for one, other in zip(shared.predict(images()), expected, strict=True):
        assert len(one) > 2
        assert_same(one, other)


@pytest.mark.large  # one more compilation: 15 s
def test_predictions_are_those_of_the_compiled_pass_without_padding(models, shared, given):
    shared.fit(given)
    expected = list(Predictor(*models, shared.memory.prototypes, CONFIG)(images()))
    for one, other in zip(shared.predict(images()), expected, strict=True):
        assert len(one) > 2
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        # The product with the prototypes has another shape.
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-6)
        assert list(one.rles) == other.rles


def test_every_form_of_images_gives_the_same(shared, given, tmp_path):
    shared.fit(given)
    arrays = images()
    (tmp_path / "deep").mkdir()
    paths = [tmp_path / name for name in ("a2.png", "a10.PNG", "c.bmp", "deep/d.png")]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    expected = shared.predict(arrays)
    same = Image.open(paths[0])  # not decoded yet
    everything = [
        shared.predict(tmp_path),
        shared.predict(str(tmp_path)),
        shared.predict(tuple(map(str, paths))),
        [shared.predict(array) for array in arrays],
        [shared.predict(jnp.asarray(arrays[0])), *shared.predict([Image.open(path) for path in paths[1:]])],
        list(shared.predict(iter(paths))),
        [*shared.predict([same, same])[1:], *shared.predict(arrays[1:])],
    ]
    for found in everything:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
            np.testing.assert_array_equal(one.image(), other.image())
    assert shared.predict([]) == [] and list(shared.predict(iter([]))) == []


def test_an_iterator_is_read_as_results_are_taken(shared, given):
    shared.fit(given)
    arrays, pulled = images(), 0

    def camera():
        nonlocal pulled
        frame = np.empty_like(arrays[0])
        for i in range(40):
            pulled += 1
            frame[:] = np.roll(arrays[0], i, axis=1)  # one buffer for all
            yield frame
        raise OSError("unplugged")

    expected = [shared.predict(np.roll(arrays[0], i, axis=1)) for i in range(3)]
    stream = shared.predict(camera())
    assert pulled == 0
    for one in expected:
        assert_same(next(stream), one)
    assert pulled < 12
    count = 3
    with pytest.raises(OSError, match="unplugged"):
        for _ in stream:
            count += 1
    assert count == 40


def test_bad_images(shared, given, tmp_path):
    with pytest.raises(InputError, match="call fit or add first"):
        Segmenter(*shared._models).predict(images(1)[0])
    shared.fit(given)
    good = images(1)[0]
    for bad, said in [
        (good[..., 0], "uint8 \\[H, W, 3\\]"),
        (good.astype(float), "float64"),
        (good[:0], "expected an image"),
        (3, "expected images"),
        (tmp_path / "missing.png", "missing.png"),
        (tmp_path, "holds no image"),
        ([good, "missing.png"], "missing.png"),
        ([good, good[0]], "image 1"),
        (Image.new("I;16", (9, 9)), "convert it"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            shared.predict(bad)
        assert "\n" not in str(caught.value)
    stream = shared.predict(iter([good, good, good[0], good]))
    assert_same(next(stream), next(stream))
    with pytest.raises(InputError, match="image 2"):
        next(stream)


def test_compiled_once(shared, given):
    shared.fit(given).predict(images(1))
    with compilations() as compiled:
        shared.predict([*images(5), np.zeros((1, 300, 3), np.uint8), np.zeros((640, 2, 3), np.uint8)])
        for number in range(5):
            shared.add(f"class {number}", given["bar"])
        assert len(shared.classes) == 8
        assert len(shared.predict(images(1), score_threshold=0.1, max_detections=3)[0]) <= 3
        for name in list(shared.classes)[2:]:
            shared.remove(name)
        found = shared.predict(images(1)[0])
        assert len(found) and set(found.class_names) <= {"square", "disc"}
        shared.remove("square").add("bar", given["bar"]).predict(images(1))
    assert not compiled.target_pass


@pytest.mark.parametrize(("count", "ranks"), [(1, 2), (3, -1), (9, 2), (17, 1)])
def test_padding_changes_no_choice(count, ranks):
    # What the pass does with prototypes, for those there are and for those the segmenter makes of them.
    generator = np.random.default_rng(count)
    prototypes = generator.standard_normal((count, 24)).astype(np.float32)
    objects = generator.standard_normal((40, 24)).astype(np.float32)
    objects[:9] = -prototypes.sum(0)  # similar to none of them, or to few
    objects[9] = 0
    padded, none = padded_classes(Memory(jnp.asarray(prototypes), jnp.zeros(0), jnp.zeros(0)), ranks)
    assert none is None
    assert len(padded) == (count if ranks == -1 or ranks > count else 8 if count <= 8 else 16 if count <= 16 else 32)
    corners = generator.integers(0, 4, (40, 2, 2)).astype(np.int32)
    boxes = jnp.asarray(np.concatenate([corners.min(1), corners.max(1)], axis=1))
    found = []
    for some in (prototypes, padded):
        labels, scores = assign_labels(similarities(jnp.asarray(objects), jnp.asarray(some)), ranks)
        keep = class_aware_nms(boxes, labels, jnp.ones(40, bool), len(some), 0.1)
        found.append([np.asarray(labels), np.asarray(keep), np.asarray(scores)])
    (labels, keep, scores), (others, kept, sums) = found
    assert np.any(scores == 0) and np.any(scores > 0) and not np.all(keep)
    np.testing.assert_array_equal(others, labels)
    np.testing.assert_array_equal(kept, keep)
    np.testing.assert_allclose(sums, scores, rtol=0, atol=1e-5)  # products of other shapes


def test_thresholds_are_arguments(models, shared, given):
    image = images(1)[0]
    whole = shared.fit(given).predict(image)
    middle = float(np.sort(whole.scores)[len(whole) // 2])
    some = shared.predict(image, score_threshold=middle)
    assert 0 < len(some) < len(whole) and some.scores.min() >= np.float32(middle)
    assert_same(shared.predict(image, max_detections=2), shared.predict(image, score_threshold=whole.scores[1]))
    few = Segmenter(*models, CONFIG, max_detections=2)
    assert few.config == dataclasses.replace(CONFIG, max_detections=2)
    assert shared.predict(image, score_threshold=2).boxes.shape == (0, 4)
    best = whole.class_names[0]
    by_name = shared.predict(image, score_threshold=dict.fromkeys(whole.classes, 1.0) | {best: 0})
    assert by_name.scores.tolist() == whole.scores[whole.labels == whole.labels[0]].tolist()
    others = [name for name in whole.classes if name != best]  # those not named take 0.5
    assert_same(
        shared.predict(image, score_threshold={best: 0.5}),
        shared.predict(image, score_threshold=dict.fromkeys([best, *others], 0.5)),
    )
    name = whole.class_names[0]
    only = shared.predict(image, classes=[name], max_detections=3)
    keep = np.flatnonzero(np.array(whole.class_names) == name)[:3]
    np.testing.assert_array_equal(only.scores, whole.scores[keep])
    assert_same(shared.predict(image, classes=name, max_detections=3), only)
    for options, said in [
        ({"classes": ["square", "cat"]}, "no class 'cat'; the classes are: 'square', 'disc', 'bar'"),
        ({"max_detections": 13}, "1 to 12"),
        ({"max_detections": 0}, "1 to 12"),
        ({"score_threshold": "high"}, "score_threshold"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"score_threshold": {"squaer": 0.5}}, "did you mean square"),
    ]:
        with pytest.raises(InputError, match=said):
            shared.predict(image, **options)
    for options, said in [
        ({"top_k": 3}, "unknown argument 'top_k'"),
        ({"max_detections": 0}, "max_detections"),
        ({"points_per_side": 4.5}, "points_per_side"),
        ({"classes_per_mask": -2}, "classes_per_mask"),
        ({"nms_iou_threshold": "0.5"}, "nms_iou_threshold"),
    ]:
        with pytest.raises(InputError, match=said):
            Segmenter(*models, **options)
    with pytest.raises(InputError, match="sam2: expected a Sam2"):
        Segmenter(models[1], models[0])


def test_a_prediction_in_all_its_forms(shared, given, monkeypatch):
    image = images(1)[0]
    found = shared.fit(given).predict(image)
    assert found.masks is found.masks and found.masks.dtype == np.bool_
    assert found.masks.shape == (len(found), *image.shape[:2]) and found.masks.any((1, 2)).all()
    for mask, box in zip(found.masks, found.boxes, strict=True):
        x, y, width, height = box_of(mask)
        np.testing.assert_array_equal(box, [x, y, x + width - 1, y + height - 1])
    assert found.classes == tuple(given) and found.category_ids == (1, 2, 3)
    assert found.class_names == tuple(tuple(given)[label] for label in found.labels)
    entries = json.loads(json.dumps(found.to_coco(77)))
    assert [entry["category_id"] for entry in entries] == [label + 1 for label in found.labels]
    assert {entry["image_id"] for entry in entries} == {77} and entries[0]["segmentation"] == found.rles[0]
    with pytest.raises(InputError, match="to_coco"):
        found.to_coco("photo")

    picture = found.draw()
    assert picture.size == image.shape[1::-1] and not np.array_equal(np.asarray(picture), image)
    assert found._repr_png_().startswith(b"\x89PNG")
    assert f"{len(found)} detections" in repr(found) and str(image.shape[1]) in repr(found)
    everything = shared.predict(image, score_threshold=0).draw()
    assert np.array_equal(np.asarray(found.draw(score_threshold=0)), np.asarray(everything))
    np.testing.assert_array_equal(np.asarray(found.draw(score_threshold=2)), image)
    apart = shared.predict(image, score_threshold=dict.fromkeys(given, 1.0))
    np.testing.assert_array_equal(np.asarray(apart.draw()), image)
    nothing = shared.predict(image, score_threshold=2)
    np.testing.assert_array_equal(np.asarray(nothing.draw()), image)
    assert nothing.to_coco(1) == [] and nothing.masks.shape == (0, *image.shape[:2])

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        found.to_supervision()
    fake = types.SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "supervision", fake)
    for one in (found, nothing):
        fields = one.to_supervision()
        assert set(fields) == {"xyxy", "mask", "confidence", "class_id", "data"}
        np.testing.assert_array_equal(fields["xyxy"], one.boxes)
        assert list(fields["data"]["class_name"]) == list(one.class_names)


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_to_supervision_itself(shared, given):
    supervision = pytest.importorskip("supervision")
    for threshold in (0.0, 2.0):
        found = shared.fit(given).predict(images(1)[0], score_threshold=threshold)
        detections = found.to_supervision()
        assert len(detections) == len(found)
        np.testing.assert_array_equal(supervision.mask_to_xyxy(found.masks).reshape(-1, 4), found.boxes)


def test_thresholds_are_kept_in_the_memory_file(models, shared, given, tmp_path):
    path = tmp_path / "kept.safetensors"
    shared.fit(given).save(path)
    assert shared.thresholds == {} and "thresholds" not in load_memory(path).provenance
    shared.save(path, thresholds={"disc": 0.75, "bar": np.float32(0.5)})
    again = Segmenter.load(path, *models, CONFIG)
    assert again.thresholds == {"disc": 0.75, "bar": 0.5}
    image = images(1)[0]
    assert_same(
        again.predict(image, score_threshold=again.thresholds), shared.predict(image, score_threshold=again.thresholds)
    )
    again.remove("bar").save(path)
    assert load_memory(path).provenance["thresholds"] == {"disc": 0.75}
    with pytest.raises(InputError, match="save: thresholds: the memory has no class 'dics'; did you mean disc"):
        shared.save(path, thresholds={"dics": 0.5})


def test_a_picture_whose_file_changed(shared, given, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(images(1)[0]).save(path)
    found = shared.fit(given).predict(path)
    Image.new("RGB", (5, 6)).save(path)
    with pytest.raises(InputError, match="5 x 6"):
        found.draw()
    path.unlink()
    with pytest.raises(InputError, match=r"photo\.png"):
        found.draw()


def test_forms_of_references(shared, given, tmp_path):
    image, mask = given["disc"][0]
    expected = shared.fit({"disc": [(image, mask)]}).memory
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "bits.png")
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "ones.png")
    palette = Image.fromarray(mask.astype(np.uint8) * 3, mode=None).convert("P")
    palette.putpalette([0, 0, 0] + [90, 20, 10] * 255)
    palette.save(tmp_path / "palette.png")
    box = box_of(mask)
    for reference in [
        (tmp_path / "image.png", str(tmp_path / "bits.png")),
        (Image.open(tmp_path / "image.png"), Image.open(tmp_path / "bits.png")),
        (image, tmp_path / "ones.png"),
        (image, tmp_path / "palette.png"),
        (image, Image.open(tmp_path / "palette.png")),
        (Image.fromarray(image).convert("RGBA"), mask.astype(np.uint8) * 255),
        [image, mask.astype(float), None],
        (jnp.asarray(image), jnp.asarray(mask), np.array(box)),
        (image, mask, [float(v) for v in box]),
    ]:
        assert_same_memory(shared.fit({"disc": [reference]}).memory, expected)
    # Given, a box decides on the crop.
    wider = shared.fit({"disc": [(image, mask, (box[0] - 9, box[1] - 9, box[2] + 18, box[3] + 18))]}).memory
    assert not np.array_equal(wider.prototypes, expected.prototypes)


def test_boxes_and_points_in_place_of_masks(shared, given, tmp_path, monkeypatch):
    image, mask = given["disc"][0]

    def made(self, image, prompts):  # test_box_masks.py has what SAM 2 makes of them
        masks = np.stack([np.roll(mask, len(prompt.points) - 2 * (prompt.box is None), axis=1) for prompt in prompts])
        return masks, np.ones(len(prompts), np.float32)

    monkeypatch.setattr(PromptMasker, "__call__", made)
    x, y, width, height = (float(v) for v in box_of(mask))
    box = (x, y, width, height)
    middle = (x + width / 2, y + height / 2)
    prompts = [box, [middle], Prompt(box, (middle,))]
    masks = shared.masks(image, prompts)
    assert masks.shape == (3, *image.shape[:2]) and len({m.tobytes() for m in masks}) == 3
    Image.fromarray(image).save(tmp_path / "image.png")
    for prompt, drawn in zip([np.array(box), (middle,), prompts[2]], masks, strict=True):
        crop = None if isinstance(prompt, tuple) else box
        expected = shared.fit({"disc": [(image, drawn, crop)]}).memory
        assert_same_memory(shared.fit({"disc": [(tmp_path / "image.png", prompt)]}).memory, expected)
    shared.save(tmp_path / "memory.safetensors")
    (origin,) = load_memory(tmp_path / "memory.safetensors").provenance["references"]["1"]
    assert origin == {"image": "image.png", "prompt": {"box": list(box), "points": [list(middle)], "labels": [1]}}
    for bad, said in [
        ((1, 2, 3), "four finite numbers"),
        ((1, 2, 0, 3), "a width and a height"),
        ([(1, 2, 3)], "points of x, y"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            shared.fit({"disc": [given["disc"][0], (image, bad)]})
        assert str(caught.value).startswith("reference 1 of class 'disc'")
    with pytest.raises(InputError, match="expected boxes"):
        shared.masks(image, [mask])


def test_bad_references_name_class_and_index_and_change_nothing(shared, given, tmp_path):
    whole = shared.fit(given).memory
    image, mask = given["disc"][0]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    tiny = np.zeros_like(mask)
    tiny[:, 0] = tiny[:, -1] = True  # between the patches that are looked at
    several = mask.astype(np.uint8)
    several[0, :2] = 2
    for bad, said in [
        ((image, np.zeros_like(mask)), "the mask is empty"),
        ((image, mask[1:]), "one size"),
        ((image, np.stack([mask, mask])), "\\[H, W\\]"),
        ((image, several), "several values"),
        ((image, mask.astype(str)), "expected a mask"),
        ((image, tmp_path / "broken.png"), "broken.png"),
        ((tmp_path / "none.png", mask), "none.png"),
        ((image[..., :2], mask), "uint8 \\[H, W, 3\\]"),
        ((image, mask, (0, 0, 5)), "four finite numbers"),
        ((image, mask, (0, 0, 5, np.nan)), "four finite numbers"),
        ((image, mask, "abcd"), "four finite numbers"),
        ((image, mask, (5000, 5, 9, 9)), "covers no pixel"),
        ((image,), "found 1 values"),
        ("image.png", "expected \\(image, mask\\)"),
        (image, "expected \\(image, mask\\)"),
    ]:
        references = [given["bar"][0], bad]
        for call in (
            lambda references: shared.add("disc", references),
            lambda references: shared.add("new", references),
            lambda references: shared.fit({"disc": references}),
        ):
            with pytest.raises(InputError, match=said) as caught:
                call(references)
            message = str(caught.value)
            assert message.startswith("reference 1 of class '") and "\n" not in message, message
    for call, said in [
        (lambda: shared.fit({}), "class name"),
        (lambda: shared.fit([(image, mask)]), "class name"),
        (lambda: shared.fit({"disc": []}), "at least one reference"),
        (lambda: shared.fit({"disc": "folder"}), "list of \\(image, mask\\)"),
        (lambda: shared.fit({"disc": (image, mask)}), "reference 0 of class 'disc'"),
        (lambda: shared.fit({5: [(image, mask)]}), "class name"),
        (lambda: shared.add("disc", [(image, mask)], category_id=9), "has category id 2"),
        (lambda: shared.add("new", [(image, mask)], category_id=2), "that of class 'disc'"),
        (lambda: shared.add("new", [(image, mask)], category_id=-2), "category_id"),
        (lambda: shared.remove("cat"), "'square', 'disc', 'bar'"),
        (lambda: shared.remove("square", 3), "references 0 to 2"),
        (lambda: shared.remove("square", -1), "references 0 to 2"),
        (lambda: shared.remove("disc", 0), "no other reference"),
    ]:
        with pytest.raises(InputError, match=said):
            call()
    assert shared.memory is whole and shared.classes == SHOTS


def test_photos_with_an_orientation_lie_as_their_masks_do(shared, given, tmp_path):
    image, mask = given["disc"][0]
    shared.fit({"disc": [(image, mask)]})
    memory, found = shared.memory, shared.predict(image)
    for orientation in (3, 6):
        back = {3: 3, 6: 8}[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(turned(image, back)).save(path, exif=exif)
        with Image.open(path) as opened, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for photo in (path, opened):
                assert_same_memory(shared.fit({"disc": [(photo, mask)]}).memory, memory)
                assert_same(shared.predict(photo), found)
        np.testing.assert_array_equal(shared.predict(path).image(), image)
        notes = [str(one.message) for one in said if one.category is InputNote]
        assert all("both ways" in note for note in notes) and len(notes) == (2 if orientation == 3 else 0)
        if orientation == 6:  # a mask of the stored pixels
            with pytest.warns(InputNote, match="fits the stored pixels: not turned"):
                shared.fit({"disc": [(path, turned(mask, back))]})
            assert_same_memory(shared.memory, shared.fit({"disc": [(turned(image, back), turned(mask, back))]}).memory)


def test_masks_with_numbers_are_taken_apart(shared, given, tmp_path):
    image, mask = given["disc"][0]
    halves = [mask.copy(), mask.copy()]
    middle = int(np.median(np.flatnonzero(mask.any(0))))
    halves[0][:, middle:] = halves[1][:, :middle] = False
    Image.fromarray((halves[0] * 257 + halves[1] * 300).astype(np.uint16)).save(tmp_path / "m.png")
    expected = shared.fit({"disc": [(image, half) for half in halves]}).memory
    found = shared.fit({"disc": [(image, tmp_path / "m.png")]}, instances=True)
    assert_same_memory(found.memory, expected)
    assert [one["instance"] for one in found._classes["disc"].origins] == [257, 300]
    assert_same_memory(
        shared.remove("disc").add("disc", [(image, tmp_path / "m.png")], instances=True).memory, expected
    )
    with pytest.raises(InputError, match="instances=True"):
        shared.fit({"disc": [(image, tmp_path / "m.png")]})


def test_settings_of_the_process_change_nothing(shared, given):
    image = images(1)[0]
    found, memory = shared.fit(given).predict(image), shared.memory
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert jnp.zeros(1).dtype == np.float64
        assert_same(shared.fit(given).predict(image), found)
        assert_same_memory(shared.memory, memory)
        assert jnp.zeros(1).dtype == np.float64  # as it was


def test_two_corners_in_place_of_a_box_are_questioned(shared, given):
    image, mask = given["disc"][0]
    x, y, width, height = box_of(mask)
    with pytest.warns(InputNote, match="did you give two corners"):
        shared.fit({"disc": [(image, mask, (image.shape[1] - 40, y, image.shape[1] - 1, y + height))]})
    shared.fit({"disc": [(image, mask, (x, y, width, height))]})


def test_save_and_load(models, shared, given, tmp_path):
    path = tmp_path / "memory.safetensors"
    image = images(1)[0]
    found = shared.fit(given).predict(image)
    shared.save(path)
    bank = load_memory(path)
    assert bank.class_names == tuple(given) and bank.category_ids == (1, 2, 3) and bank.shots == (3, 1, 2)
    loaded = Segmenter.load(path, *models, CONFIG, canvas=512)
    assert_same_memory(loaded.memory, shared.memory)
    assert loaded.classes == shared.classes
    assert_same(loaded.predict(image), found)
    # It goes on as if it had never been away.
    shared.add("bar", given["disc"]).save(tmp_path / "one.safetensors")
    loaded.add("bar", given["disc"]).save(tmp_path / "other.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()

    for other, said in [
        (dinov2_weights.recipe_model(cli_files.OTHER_DINOV2), "embed_dim"),
        (dinov2_weights.recipe_model(cli_files.DINOV2, 4), "other weights"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            Segmenter.load(path, models[0], other)
        assert str(caught.value).startswith(str(path))
    with pytest.raises(InputError, match=r"none\.safetensors"):
        Segmenter.load(tmp_path / "none.safetensors", *models)
    with pytest.raises(InputError, match="fit or add first"):
        Segmenter(*models).save(tmp_path / "empty.safetensors")
    assert not (tmp_path / "empty.safetensors").exists()


def test_fit_coco_is_the_memory_of_the_command(models, shared, tmp_path):
    annotations = cli_files.write_scenes(tmp_path, 12, 1)
    dataset = load_coco(annotations)
    references = sample_references(dataset, select_classes(dataset, "all"), 2, 33)
    expected = build_memory(ReferenceEncoder(models[1]), dataset, tmp_path / "images", references)
    shared.fit_coco(dataset, tmp_path / "images", references)
    assert_same_memory(shared.memory, expected)
    assert shared.classes == {"square": 2, "disc": 2, "bar": 2}
    assert shared.predict(images(1)[0]).category_ids == (3, 5, 8)
    save_references(tmp_path / "references.json", references)
    shared.fit_coco(str(annotations), str(tmp_path / "images"), tmp_path / "references.json")
    assert_same_memory(shared.memory, expected)
    shared.save(tmp_path / "memory.safetensors")
    provenance = load_memory(tmp_path / "memory.safetensors").provenance
    assert provenance["seed"] == 33 and provenance["references"]["5"] == [
        [reference.image_id, reference.annotation_id] for reference in references.classes[1].references
    ]

    negatives = Negatives(dataset, tmp_path / "images", negative_set(dataset, references))
    expected_too = build_memory(
        ReferenceEncoder(models[1]), dataset, tmp_path / "images", references, negatives=negatives
    )
    shared.fit_coco(dataset, tmp_path / "images", references, negatives=str(annotations))
    assert_same_memory(shared.memory, expected_too)
    assert shared.memory.negatives is not None

    # The same from arrays: the boxes of these annotations are those of their masks.
    taken = {}
    for chosen in references.classes:
        pairs = [(dataset.image_path(tmp_path / "images", r.image_id), r.annotation_id) for r in chosen.references]
        taken[chosen.name] = [(path, dataset.mask(dataset.annotations[i])) for path, i in pairs]
    assert_same_memory(shared.fit(taken).memory, expected)

    whole = shared.memory
    next(tmp_path.glob(f"images/{taken['disc'][0][0].name}")).unlink()
    with pytest.raises(InputError, match=taken["disc"][0][0].name):
        shared.fit_coco(dataset, tmp_path / "images", references)
    assert shared.memory is whole
