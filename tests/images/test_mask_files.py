"""Masks as files and pictures: numbers, whatever they look like; a path, a PIL image and an array give the same."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import box_mask
from PIL import Image, ImageFilter

from ntt_jax.errors import InputError
from ntt_jax.images.mask_files import mask_numbers
from ntt_jax.notes import Notes
from ntt_jax.segmenter.inputs import as_mask

BOX = box_mask(40, 60, 12, 5, 20, 30)
SECOND = box_mask(40, 60, 45, 5, 9, 9)


def palette(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0] + [9, 200, 9] * 20)  # background white, object black
    return image


def rgba(mask: np.ndarray, colour: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, mask.astype(np.uint8) * 255]).astype(np.uint8))


BLACK = np.zeros((40, 60, 3), np.uint8)
WHITE_OBJECT = np.repeat(BOX[:, :, None], 3, axis=2).astype(np.uint8) * 255
ONE_MASK = {
    "8-bit.png": Image.fromarray(BOX.astype(np.uint8)),
    "white.png": Image.fromarray(BOX.astype(np.uint8) * 255),
    "one-bit.png": Image.fromarray(BOX),
    "one-bit.tif": Image.fromarray(BOX),
    "16-bit.png": Image.fromarray(BOX.astype(np.uint16)),
    "16-bit-7.png": Image.fromarray(BOX.astype(np.uint16) * 7),
    "16-bit-256.tif": Image.fromarray(BOX.astype(np.uint16) * 256),
    "32-bit.tif": Image.fromarray(BOX.astype(np.int32) * 70_000),
    "float.tif": Image.fromarray(BOX.astype(np.float32) * 3),
    "palette.png": palette(BOX),
    "palette.gif": palette(BOX),
    "colour.png": Image.fromarray(WHITE_OBJECT // 2),
    "colour.bmp": Image.fromarray(WHITE_OBJECT),
    "alpha.png": rgba(BOX, BLACK),
    "alpha-of-white.png": rgba(BOX, BLACK + 255),
    "alpha-and-colour.png": rgba(BOX, WHITE_OBJECT),
    "solid-alpha.png": rgba(np.ones_like(BOX), WHITE_OBJECT),
    "grey-and-alpha.png": rgba(BOX, BLACK).convert("LA"),
}


@contextlib.contextmanager
def by_path_and_opened(path: Path) -> Iterator[list[Any]]:
    with Image.open(path) as image:
        yield [path, image]


@pytest.mark.parametrize("name", ONE_MASK)
def test_one_instance_by_path_by_pillow_and_by_array(tmp_path: Path, name: str) -> None:
    ONE_MASK[name].save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        for value in (tmp_path / name, str(tmp_path / name), image):
            notes = Notes()
            np.testing.assert_array_equal(as_mask(value, notes), BOX)
            assert notes.lines() == ()
        if image.mode not in ("P", "LA"):
            np.testing.assert_array_equal(as_mask(np.asarray(image)), BOX)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(("first", "second", "kind"), [(257, 300, np.uint16), (1, 2, np.uint8), (254, 255, np.uint8)])
def test_several_instances_are_listed_and_taken_apart(
    tmp_path: Path, name: str, first: int, second: int, kind: type
) -> None:
    numbers = (BOX * first + SECOND * second).astype(kind)
    Image.fromarray(numbers).save(tmp_path / name)
    with by_path_and_opened(tmp_path / name) as values:
        for value in (*values, numbers):
            with pytest.raises(InputError, match=f"several values beside 0 \\({first}, {second}\\).*instances=True"):
                as_mask(value)
            found = mask_numbers(value).instances()
            assert [number for number, _ in found] == [first, second]
            np.testing.assert_array_equal(found[0][1], BOX)
            np.testing.assert_array_equal(found[1][1], SECOND)


@pytest.mark.parametrize(("name", "quality"), [("a.jpg", 60), ("a.jpg", 95), ("soft.png", 0)])
def test_soft_edges_are_cut_and_said(tmp_path: Path, name: str, quality: int) -> None:
    image = Image.fromarray(BOX.astype(np.uint8) * 255)
    if name == "soft.png":
        image = image.filter(ImageFilter.BoxBlur(1))
    image.save(tmp_path / name, quality=quality)
    inner, outer = box_mask(40, 60, 13, 6, 18, 28), box_mask(40, 60, 11, 4, 22, 32)
    with by_path_and_opened(tmp_path / name) as values:
        for value in values:
            notes = Notes()
            found = as_mask(value, notes, "reference 0")
            assert (inner <= found).all() and (found <= outer).all()
            (line,) = notes.lines()
            assert line == "masks with soft edges, cut in the middle between their two values: 1 (reference 0)"


@pytest.mark.parametrize(
    "numbers",
    [
        BOX * 255 + SECOND * 100,  # two objects, not one with an edge
        BOX * 1 + box_mask(40, 60, 12, 5, 20, 1) * 254,  # VOC: object 1, its border 255
        BOX * 100 + box_mask(40, 60, 20, 10, 5, 5) * 155,
        BOX * 3 + SECOND * 1,
    ],
)
def test_numbers_are_not_taken_for_soft_edges(numbers: np.ndarray) -> None:
    with pytest.raises(InputError, match="several values"):
        as_mask(numbers.astype(np.uint8))


def test_a_mask_that_covers_everything_is_questioned(tmp_path: Path) -> None:
    Image.new("L", (60, 40), 5).save(tmp_path / "a.png")
    for value in (tmp_path / "a.png", np.ones((40, 60), bool)):
        notes = Notes()
        assert as_mask(value, notes, "reference 3").all()
        assert "cover their whole image" in notes.lines()[0] and "reference 3" in notes.lines()[0]


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(1, 255, (40, 60, 3)).astype(np.uint8)
    rgba(BOX, photo).save(tmp_path / "cut.png")
    Image.fromarray(BOX * np.float32(0.5)).save(tmp_path / "half.tif")
    pages = [Image.fromarray(m.astype(np.uint8)) for m in (BOX, SECOND)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for name, said in [("cut.png", "alpha channel"), ("half.tif", "fractions"), ("pages.tif", "several pages")]:
        with by_path_and_opened(tmp_path / name) as values:
            for value in values:
                with pytest.raises(InputError, match=said):
                    as_mask(value)
