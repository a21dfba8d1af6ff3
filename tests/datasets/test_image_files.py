"""Which file an image entry means, whatever its name says; never one outside the folder."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stopwatch import cpu_seconds

from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.datasets.image_files import safe_name, survey
from ntt_jax.errors import InputError

PARTS = [
    "..",
    ".",
    "",
    "a",
    "b.jpg",
    "A",
    "B.JPG",
    "C:",
    "~",
    "http:",
    "?d=b.jpg",
    "%2e%2e",
    "%2F",
    "\\",
    "secret",
    "\0",
]


def dataset_of(*names: str, size: int | None = 8) -> CocoDataset:
    import json

    content: dict[str, Any] = {"annotations": [], "categories": [{"id": 1, "name": "x"}]}
    content["images"] = [{"id": i, "file_name": name, "height": size, "width": size} for i, name in enumerate(names)]
    return parse_coco(json.dumps(content).encode(), "x.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/b.jpg", "images/a/c.jpg", "images/a:b.jpg", "secret.jpg", "images/x/1.jpg", "images/y/1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("b.jpg", "b.jpg"),
        ("a/c.jpg", "a/c.jpg"),
        ("a\\c.jpg", "a/c.jpg"),
        ("a:b.jpg", "a:b.jpg"),
        ("/home/me/b.jpg", "b.jpg"),
        ("/home/me/a/c.jpg", "a/c.jpg"),
        ("D:\\me\\a\\c.jpg", "a/c.jpg"),
        ("..\\..\\b.jpg", "b.jpg"),
        ("../secret.jpg", None),
        ("a/../../secret.jpg", None),
        ("%2e%2e/secret.jpg", None),
        ("./b.jpg", "b.jpg"),
        ("B.JPG", "b.jpg"),
        ("A/C.jpg", "a/c.jpg"),
        ("https://host/x/b.jpg?token=1", "b.jpg"),
        ("/data/local-files/?d=a/c.jpg", "a/c.jpg"),
        ("a%2Fc.jpg", "a/c.jpg"),
        ("z/1.jpg", None),  # x or y
        ("none.jpg", None),
        ("http://[b.jpg", None),  # no address: Python's parser refuses it
        ("http://[/b.jpg", "b.jpg"),
        ("http://a\u2100b/b.jpg", "b.jpg"),
        ("/" + "p/" * 500 + "a/c.jpg", "a/c.jpg"),
    ],
)
def test_names(folder: Path, written: str, found: str | None) -> None:
    dataset = survey(dataset_of(written), folder)
    if found is None:
        with pytest.raises(InputError):
            dataset.read_image(folder, 0)
    else:
        assert dataset.image_path(folder, 0) == folder / found
        assert dataset.read_image(folder, 0).shape == (8, 8, 3)
        assert len(dataset.notes) == (found != written)


def test_names_of_thousands_of_parts_cost_no_more_than_their_length() -> None:
    """Each start of such a name is a name as well: together they are as long as its square."""
    started = cpu_seconds()
    dataset_of(*("/" + "p/" * 1900 + f"{i}.jpg" for i in range(300)))
    assert cpu_seconds() - started < 5  # all starts: more than a minute
    for written in ("/" + "p/" * 50_000 + "b.jpg", "p/" * 50_000 + "b.jpg"):  # longer than any path
        assert safe_name(written) == ""


def test_two_entries_never_mean_one_file(folder: Path) -> None:
    dataset = survey(dataset_of("/p/b.jpg", "/q/b.jpg"), folder)
    assert any("one and the same file: not read: 2" in line for line in dataset.notes)
    for i in (0, 1):
        with pytest.raises(InputError):
            dataset.read_image(folder, i)
    dataset = survey(dataset_of("b.jpg", "/q/b.jpg"), folder)  # the first is certain
    assert dataset.read_image(folder, 0).shape == (8, 8, 3)
    with pytest.raises(InputError):
        dataset.read_image(folder, 1)
    longest = survey(dataset_of("/p/x/1.jpg", "/p/y/1.jpg"), folder)
    assert [longest.image_path(folder, i) for i in (0, 1)] == [folder / "x/1.jpg", folder / "y/1.jpg"]


def test_sizes_come_from_the_files(folder: Path) -> None:
    dataset = survey(dataset_of("b.jpg", "none.jpg", size=None), folder)
    assert (dataset.images[0].height, dataset.images[1].height) == (8, 0)
    assert [line.rsplit(":", 1)[0] for line in dataset.notes] == [
        "images without a size, which their files say",
        "images without a size, whose files cannot be read",
    ]


def test_no_name_leaves_the_folder(folder: Path) -> None:
    generator = random.Random(0)
    for _ in range(3000):
        parts = generator.choices(PARTS, k=generator.randint(1, 6))
        written = generator.choice(["/", "\\"]).join(parts)
        name = safe_name(written)
        if not name:
            continue
        dataset = survey(dataset_of(written), folder)
        if dataset.images:
            path = dataset.image_path(folder, 0)
            assert isinstance(path, Path) and "\0" not in str(path)
            assert ".." not in path.parts and folder in (path, *path.parents)
            if path.is_file():
                assert path.resolve().is_relative_to(folder.resolve()) and "secret" not in path.name
