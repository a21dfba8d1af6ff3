"""Inputs as people have them, through `ntt-jax evaluate`: the numbers of the plain file, and a line that says why."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_files import World, make_world
from PIL import Image

from ntt_jax.cli import main
from ntt_jax.datasets import load_dataset
from ntt_jax.errors import InputError
from ntt_jax.images.mask_files import read_mask
from ntt_jax.images.reading import open_image_size, read_image, turned

Change = Callable[[Any, Path], Any]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def plain(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """Four images of the evaluation set as they should be: their annotations, their folder, their run."""
    folder = tmp_path_factory.mktemp("plain")
    content = json.loads(world.val.read_text())
    content["images"] = content["images"][:4]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    (folder / "images").mkdir()
    for image in content["images"]:
        shutil.copy(world.images / image["file_name"], folder / "images")
    return content, folder / "images", evaluate(world, content, folder / "images", folder / "run")


def evaluate(world: World, content: Any, images: Path, out: Path) -> Path:
    file = out.with_suffix(".json")
    file.write_text(json.dumps(content))
    assert main(world.evaluate(out, annotations=file, images=images)) == 0
    return out


def turn(content: Any, images: Path, orientation: int) -> None:
    """Store every photo turned, with the tag that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in images.iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image)
        Image.fromarray(turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))).save(path, exif=exif)


def upper(content: Any, images: Path) -> None:
    for path in list(images.iterdir()):
        path.rename(path.with_name(path.name.upper()))


def decomposed(content: Any, images: Path) -> None:
    for image in content["images"]:
        old = images / image["file_name"]
        image["file_name"] = unicodedata.normalize("NFC", f"pièce {old.name}")
        old.rename(old.with_name(unicodedata.normalize("NFD", image["file_name"])))


def renamed(form: str) -> Change:
    def change(content: Any, images: Path) -> None:
        for image in content["images"]:
            image["file_name"] = form.format(image["file_name"])

    return change


def each(key: str, **values: Any) -> Change:
    def change(content: Any, images: Path) -> None:
        for entry in content[key]:
            entry |= values

    return change


def without_boxes(content: Any, images: Path) -> None:
    for entry in content["annotations"]:
        del entry["bbox"]


def clutter(content: Any, images: Path) -> None:
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 9001, "image_id": 987654},
        {**first, "id": 9002, "category_id": None},
        {**first, "id": 9003, "segmentation": [], "bbox": [0, 0, 0, 0]},
        dict(first),
        {"nothing": True},
    ]
    content["images"].append({"id": None})


SAME: dict[str, tuple[Change, str]] = {
    **{f"orientation {i}": (lambda c, f, i=i: turn(c, f, i), "EXIF orientation") for i in (3, 6, 7)},
    "upper case": (upper, "other case or Unicode form: 4"),
    "Unicode form": (decomposed, "other case or Unicode form: 4"),
    "absolute": (renamed("/home/ana/project/{}"), "by the last part of the name: 4"),
    "drive": (renamed("D:\\project\\{}"), "by the last part of the name: 4"),
    "dots": (renamed("..\\..\\{}"), "by the last part of the name: 4"),
    "address": (renamed("http://localhost:8080/data/local-files/?d=upload%5C{}"), "by the last part of the name: 4"),
    "folder": (renamed("images/{}"), "by the last part of the name: 4"),
    "no sizes": (each("images", width=None, height=-1), "without a size, which their masks say"),
    "text sizes": (each("images", iscrowd=None), ""),
    "crowd null": (each("annotations", iscrowd=None), ""),
    "no boxes": (without_boxes, "taken from the mask: 4"),
    "clutter": (clutter, "left out"),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_numbers_are_those_of_the_plain_file(
    world: World, plain: Any, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, images, expected = plain
    content, folder = json.loads(json.dumps(content)), tmp_path / "images"
    shutil.copytree(images, folder)
    change, note = SAME[kind]
    change(content, folder)
    run = evaluate(world, content, folder, tmp_path / "run")
    said = capsys.readouterr().err
    assert (run / "results.json").read_bytes() == (expected / "results.json").read_bytes()
    found, whole = (json.loads((path / "metrics.json").read_text()) for path in (run, expected))
    for key in ("bbox", "segm", "detections", "skipped", "per_class"):
        assert found[key] == whole[key]
    assert "notes" not in whole
    assert any(note in line for line in found["notes"]) if note else "notes" not in found
    assert note in said and said.count("warning:") == len(found.get("notes", []))


def test_text_ids_come_back_as_they_are(world: World, plain: Any, tmp_path: Path) -> None:
    content, images, expected = plain
    content = json.loads(json.dumps(content))
    for image in content["images"]:
        image["id"] = f"photo-{image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"photo-{entry['image_id']}"
    run = evaluate(world, content, images, tmp_path / "run")
    found, whole = (json.loads((path / "results.json").read_text()) for path in (run, expected))
    order = {f"photo-{image['id']}": image["id"] for image in plain[0]["images"]}
    assert {entry["image_id"] for entry in found} <= set(order)
    back = [{**entry, "image_id": order[entry["image_id"]]} for entry in found]
    key = json.dumps
    assert sorted(map(key, back)) == sorted(map(key, whole))
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0


def test_categories_numbered_in_another_way(world: World, plain: Any, tmp_path: Path) -> None:
    content, images, expected = plain
    content = json.loads(json.dumps(content))
    new = {entry["id"]: 100 - entry["id"] for entry in content["categories"]}  # in the reverse order
    for entry in content["categories"]:
        entry["id"] = new[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = new[entry["category_id"]]
    run = evaluate(world, content, images, tmp_path / "run")
    found, whole = (json.loads((path / "metrics.json").read_text()) for path in (run, expected))
    assert "numbered" not in str(whole) and "matched by their names" in found["notes"][0]
    for kind in ("bbox", "segm"):
        assert found[kind]["AP"] == pytest.approx(whole[kind]["AP"], abs=1e-9)
    names = {row["name"]: row["detections"] for row in whole["per_class"]}
    assert {row["name"]: row["detections"] for row in found["per_class"]} == names


def test_raw_is_another_run(world: World, plain: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, images, _ = plain
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    turn(content, folder, 6)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    command = world.evaluate(tmp_path / "run", annotations=file, images=folder)
    assert main([*command, "--exif", "raw"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (
        len(metrics["skipped"]) == 3 and "EXIF orientation 6" in metrics["skipped"][0]["reason"]
    )  # the fourth is square
    assert metrics["provenance"]["exif"] == "raw"
    capsys.readouterr()
    assert main(command) == 2
    assert "exif" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip; unpack it first"),
        (b"PK\x03\x04\0\0", "a zip archive; unpack it"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><html>", "download it again"),
    ],
)
def test_what_people_have_in_place_of_a_file_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    for read in (load_dataset, read_image, read_mask, open_image_size):
        with pytest.raises(InputError, match=words):
            read(tmp_path / "a.json")
