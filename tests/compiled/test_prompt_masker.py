"""Masks from boxes and points, their annotations and `ntt-jax masks`."""

import json

import cli_files
import jax.numpy as jnp
import numpy as np
import pytest
from cli_files import arguments, make_world, write_scenes
from flax import nnx
from PIL import Image

from ntt_jax.cli import main
from ntt_jax.compiled import prompt_masker as box_masks
from ntt_jax.compiled.prompt_masker import Prompt, PromptMasker
from ntt_jax.datasets.coco import load_coco
from ntt_jax.errors import InputError
from ntt_jax.images.rle import decode_rle, rle_boxes
from ntt_jax.loading import load_sam2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def masker(world):
    return PromptMasker(load_sam2(world.sam2))


@pytest.fixture
def boxes(tmp_path):
    """Annotations without masks: boxes, points in some; one crowd, one with a mask."""
    path = write_scenes(tmp_path, 6, 4)
    content = json.loads(path.read_text())
    content["info"] = {"by": "hand"}
    for i, entry in enumerate(content["annotations"]):
        entry["note"] = f"no {i}"
        if i != 4:
            del entry["segmentation"], entry["area"]
    x, y, width, height = content["annotations"][1].pop("bbox")
    content["annotations"][1]["points"] = [[x + width / 2, y + height / 2]]
    content["annotations"][2]["points"] = [[x, y, 0]]
    content["annotations"][3] |= {"iscrowd": 1, "segmentation": {"size": [84, 95], "counts": [84 * 95]}}
    image = next(image for image in content["images"] if image["id"] == content["annotations"][3]["image_id"])
    content["annotations"][3]["segmentation"] = {
        "size": [image["height"], image["width"]],
        "counts": [image["height"] * image["width"]],
    }
    path.write_text(json.dumps(content))
    return path


def command(world, tmp_path, boxes, **more):
    given = {"sam2": world.sam2, "boxes": boxes, "images": tmp_path / "images", "out": tmp_path / "masks.json"}
    return ["masks", *arguments(given | {"compilation_cache": world.cache} | more)]


def test_one_at_a_time_or_many(masker):
    image = cli_files.scene(np.random.default_rng(1), 90)[0]
    prompts = [Prompt((2.0 * i, 3, 40, 50 + i)) for i in range(box_masks.PROMPTS_AT_ONCE + 2)]
    prompts.insert(2, Prompt((10, 10, 50, 50), ((30, 30),)))
    masks, ious = masker(image, prompts)
    assert masks.shape == (len(prompts), *image.shape[:2]) and masks.dtype == np.bool_ and ious.dtype == np.float32
    for i in (0, 2, 5, len(prompts) - 1):
        (mask,), (iou,) = masker(image, [prompts[i]])
        np.testing.assert_array_equal(mask, masks[i])
        assert iou == pytest.approx(ious[i], abs=1e-6)
    assert len({mask.tobytes() for mask in masks}) > 2  # prompts matter
    empty = masker(image, [])
    assert empty[0].shape == (0, *image.shape[:2]) and len(empty[1]) == 0


def test_the_single_mask_unless_it_is_unstable():
    class Fake:
        """Logits of four masks by prompt."""

        def decode(self, features, points, labels):
            logits = np.full((3, 4, 10, 10), -1.0, np.float32)
            logits[:, 0, :5] = 1.0
            logits[1, 0, 5] = 0.01  # ten of sixty pixels are in doubt
            logits[2, 0] = -1.0  # empty: nothing in doubt
            ious = np.array([[0.1, 0.2, 0.9, 0.3]] * 3, np.float32)
            return np.asarray(logits), ious

    for ambiguous, expected in ((False, [0.1, 0.9, 0.1]), (True, [0.9] * 3)):
        logits, ious = box_masks.decode_prompts(Fake(), None, None, None, ambiguous=ambiguous)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ious, np.array(expected, np.float32))
        assert np.any(np.asarray(logits[0]) > 0) != ambiguous


def test_no_mem_embed_counts(world, masker):
    """It is a parameter like any other: copies of the model keep it, and another one makes other masks."""
    sam2 = load_sam2(world.sam2)
    image = cli_files.scene(np.random.default_rng(1), 90)[0]
    prompts = [Prompt((10, 10, 50, 50))]
    expected = masker(image, prompts)
    assert np.any(np.asarray(sam2.no_mem_embed[...]))
    for copy in (nnx.clone(sam2), nnx.merge(*nnx.split(sam2))):
        for found, wanted in zip(PromptMasker(copy)(image, prompts), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    sam2.no_mem_embed[...] = jnp.zeros_like(sam2.no_mem_embed[...])
    assert not np.array_equal(PromptMasker(sam2)(image, prompts)[1], expected[1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "neither"),
        ({"box": (1, 2, 3)}, "a box of x, y"),
        ({"box": (1, 2, 3, float("nan"))}, "finite"),
        ({"box": (1, 2, 0, 3)}, "0 x 3"),
        ({"box": 5}, "a box of"),
        ({"points": ((1, 2, 3),)}, "points of x, y"),
        ({"points": ("ab",)}, "points of"),
        ({"points": ((1, 1e300),)}, "finite"),
        ({"points": ((1, 2),), "labels": (1, 0)}, "for each of 1"),
        ({"points": ((1, 2),), "labels": (3,)}, "label 0 or 1"),
    ],
)
def test_bad_prompts(given, said):
    with pytest.raises(InputError, match=said) as caught:
        Prompt(**given)
    assert "\n" not in str(caught.value)


def test_command(world, tmp_path, boxes, masker, capsys):
    before = json.loads(boxes.read_text())
    assert main(command(world, tmp_path, boxes, pictures=tmp_path / "check")) == 0
    printed = capsys.readouterr()
    content = json.loads((tmp_path / "masks.json").read_text())
    assert content["info"] == before["info"] and content["images"] == before["images"]
    dataset = load_coco(tmp_path / "masks.json")
    made = 0
    for i, (old, new) in enumerate(zip(before["annotations"], content["annotations"], strict=True)):
        if i in (3, 4):
            assert new == old
            continue
        assert all(new[key] == value for key, value in old.items())
        image = np.asarray(Image.open(dataset.image_path(tmp_path / "images", old["image_id"])))
        points = old.get("points", ())
        labels = tuple(p[2] if len(p) == 3 else 1 for p in points)
        prompt = Prompt(old.get("bbox"), tuple(p[:2] for p in points), labels)
        (mask,), (iou,) = masker(image, [prompt])
        if not mask.any():
            assert "segmentation" not in new
            continue
        made += 1
        np.testing.assert_array_equal(decode_rle(new["segmentation"]), mask)
        assert new["area"] == mask.sum() and new["predicted_iou"] == round(float(iou), 4)
        if i == 1:
            assert new["bbox"] == rle_boxes([new["segmentation"]])[0].tolist()
    assert made > 2 and f"{made} masks in 4 images" in printed.out
    assert "masks kept as they are: 1 " in printed.out and "crowds left as they are: 1\n" in printed.out
    pictures = sorted((tmp_path / "check").rglob("*.png"))
    assert len(pictures) == 4
    for path in pictures:
        drawn = np.asarray(Image.open(path))
        assert not np.array_equal(drawn, np.asarray(Image.open(tmp_path / "images" / path.name)))
    assert not list(tmp_path.glob("*.parts"))


def test_command_goes_on_and_names_what_it_cannot_use(world, tmp_path, boxes, capsys, monkeypatch):
    names = [image["file_name"] for image in json.loads(boxes.read_text())["images"]]
    (tmp_path / "images" / names[0]).write_bytes(b"broken")
    calls = []
    original = PromptMasker.__call__

    def stopping(self, image, prompts):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(image)
        return original(self, image, prompts)

    monkeypatch.setattr(PromptMasker, "__call__", stopping)
    assert main(command(world, tmp_path, boxes, replace=True)) == 130
    said = capsys.readouterr().err
    assert not (tmp_path / "masks.json").exists() and "goes on from there" in said and names[0] in said
    calls.clear()
    monkeypatch.setattr(PromptMasker, "__call__", lambda self, *a: (calls.append(a), original(self, *a))[1])
    assert main(command(world, tmp_path, boxes, replace=True)) == 0
    assert len(calls) == 2
    printed = capsys.readouterr()
    assert "images that could not be used: 1;" in printed.err
    content = json.loads((tmp_path / "masks.json").read_text())
    assert "segmentation" not in content["annotations"][0]


def test_bad_input(world, tmp_path, boxes, capsys):
    content = json.loads(boxes.read_text())

    def spoilt(number, **change):
        entry = {**content["annotations"][0], **change}
        entry = {key: value for key, value in entry.items() if value is not None}
        path = tmp_path / f"spoilt{number}.json"
        path.write_text(json.dumps({**content, "annotations": [entry]}))
        return path

    for path, said in [
        (tmp_path / "none.json", "none.json"),
        (world.sam2, "not valid JSON"),
        (spoilt(0, bbox=None), "without a box of any size"),
        (spoilt(1, bbox=[5, 5, 0, 9]), "a width and a height"),
        (spoilt(2, points="here"), '"points": expected'),
        (spoilt(3, points=[[1, 2, 3, 4]]), '"points": expected'),
        (spoilt(4, points=[[1, 2, 5]]), "label 0 or 1"),
    ]:
        assert main(command(world, tmp_path, path)) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, error
    assert main(command(world, tmp_path, boxes, images=tmp_path)) == 2
    assert "none of the 6 images" in capsys.readouterr().err
    assert main(command(world, tmp_path, boxes, sam2=world.dinov2)) == 2
    assert not (tmp_path / "masks.json").exists()


def test_the_first_choice_is_the_mask_of_the_prompt(masker):
    """Of every kind of prompt; the others are the other masks that SAM 2 has for it, best rated first."""
    image = np.random.default_rng(3).integers(0, 255, (84, 95, 3), np.uint8)
    encoded = masker.encode(image)
    for prompt, count in (
        (Prompt(points=((30, 40),)), 3),
        (Prompt(points=((30, 40), (60, 20)), labels=(1, 0)), 4),
        (Prompt(box=(10, 12, 40, 30)), 4),
        (Prompt(box=(10, 12, 40, 30), points=((20, 20),)), 4),
    ):
        choices = masker.choices(encoded, prompt)
        (expected,), (iou,) = masker(image, [prompt])
        assert choices.logits.shape[0] == len(choices.predicted_ious) == count
        np.testing.assert_array_equal(choices.mask(0, 84, 95), expected)
        assert choices.predicted_ious[0] == pytest.approx(iou, abs=1e-5)
        others = sorted(choices.predicted_ious[1 : count - (count == 4 and iou != choices.predicted_ious.max())])
        assert others or count == 3
