"""The files of some folders, and which photo a name means."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.reading import HEIF_SUFFIXES, SUFFIXES, read_header

_OUR_FOLDERS = {
    "detections.json": ("masks", "overlays", "png", "yolo", "yolo-boxes"),
    "finished.records": ("masks", "overlays"),
    "formats.list": ("png", "yolo", "yolo-boxes"),
}
"""Folders of pictures, `segment`'s own and photos that people copied for Ultralytics, by the files they lie beside."""
MAX_FILES = 1_000_000
_GENERIC = re.compile(
    r"(jpeg|png|jpg)?images?|photos?|pictures?|pics|imgs?|jpe?gs?|pngs?|masks?|labels?|labelme|annotations?|"
    r"segmentations?(class|object)?\w*|segs?|gt|ground_?truth|train\w*|val\w*|test\w*|data\w*|references?|refs|objects?|"
    r"instances?|yolo|voc\w*|coco|all|raw|originals?",
    re.I,
)


def by_number(path: Path) -> tuple[list[Any], str]:
    """A key that sorts paths with the numbers in them by value."""
    # Odd places are always digits, so that numbers meet numbers.
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def plain_name(name: str) -> str:
    """The form of a name that names differing in case or Unicode composition alone share."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_companion(below: Path) -> bool:
    """Whether a file, by its path below a folder, is what macOS and Windows write beside others."""
    return below.name.startswith("._") or "__MACOSX" in below.parts or below.name in (".DS_Store", "Thumbs.db")


def output_folders(path: Path) -> list[Path]:
    """Folders of pictures in a folder and below that `ntt-jax segment` wrote: they lie beside its other files."""
    found = ((file.parent, names) for mark, names in _OUR_FOLDERS.items() for file in path.rglob(mark))
    return [root / name for root, names in found for name in names if (root / name).is_dir()]


def is_generic(folder: str) -> bool:
    """Whether a folder's name says what kind of files it holds, and not what they show."""
    return _GENERIC.fullmatch(folder) is not None


def walk(folders: Iterable[str | os.PathLike[str]], exif: str = "upright") -> "Tree":
    """The files in some folders and below.

    Not among them: hidden files and folders, companions of other systems, and what `ntt-jax segment` wrote: all of its
    folder, or, of a folder that was given itself, the pictures. exif: as for `Tree`.

    Raises `InputError` for what is no folder, or holds more than `MAX_FILES`.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{show_path(folder)}: expected a folder of photos with masks or annotations")
        results = {made.parent for mark in _OUR_FOLDERS for made in folder.rglob(mark)} - {folder}
        results.update(output_folders(folder))
        for file in folder.rglob("*"):
            below = file.relative_to(folder)
            hidden = any(part.startswith(".") for part in below.parts) or is_companion(below)
            if not hidden and not results.intersection(file.parents) and file.is_file():
                found.setdefault(os.path.abspath(file), (file, folder))
        if len(found) > MAX_FILES:
            raise InputError(f"{show_path(folder)}: more than {MAX_FILES:,} files; give the folders that matter")
    return Tree(dict(found.values()), exif)


class Tree:
    """Files with the folders they were found in, by path, numbers in it by value.

    found: the files, and of each the folder that was given. exif: how photos with an orientation tag are read
    (`reading.EXIF`). claimed: images that readers have found to be masks.
    """

    def __init__(self, found: Mapping[Path, Path], exif: str = "upright"):
        self._root, self._exif = found, exif
        self.folders = tuple(dict.fromkeys(found.values()))
        self.claimed: set[Path] = set()
        self.files = sorted(found, key=by_number)
        self.images = [f for f in self.files if f.suffix.lower() in (*SUFFIXES, *HEIF_SUFFIXES)]
        self._by_path = {os.path.abspath(image): image for image in self.images}
        self._stems: dict[str, list[Path]] = {}
        for image in self.images:
            self._stems.setdefault(plain_name(image.stem), []).append(image)

    def of(self, *suffixes: str) -> list[Path]:
        """The files with one of these endings."""
        return [file for file in self.files if file.suffix.lower() in suffixes]

    def below(self, file: Path) -> tuple[str, ...]:
        """The names of the folders between a file and the folder that was given."""
        return file.relative_to(self._root[file]).parts[:-1]

    def root(self, file: Path) -> Path:
        """The folder that was given, in which a file was found."""
        return self._root[file]

    def named(self, stem: str) -> list[Path]:
        """The images of a name without its ending, case and Unicode form aside."""
        return self._stems.get(plain_name(stem), [])

    def photo_at(self, path: Path) -> Path | None:
        """The photo with exactly this path, if it is one of those found."""
        image = self._by_path.get(os.path.abspath(path))
        return None if image is None or image in self.claimed else image

    def photo_ending(self, parts: tuple[str, ...]) -> Path | None:
        """The photo whose path ends with these parts, if there is exactly one."""
        found = [
            p for p in self.named(Path(parts[-1]).stem) if p not in self.claimed and p.parts[-len(parts) :] == parts
        ]
        return found[0] if len(found) == 1 else None

    def photo_named(self, stem: str, near: Path) -> Path | None:
        """The photo of a name without its ending, case and Unicode form aside: the one nearest to the file `near`.

        Near is few steps from folder to folder; then many folders of the same name (labels/train, images/train); then,
        in one folder, a JPEG. None if there is none, or two are equally near. If there is none, a name as web addresses
        are written ("a%20b") is tried, and one that keeps the photo's ending ("a.jpg.txt").
        """
        ranked = [(self._distance(p, near), p) for p in self.named(stem) if self._is_photo(p, near)]
        if not ranked:
            if "%" in stem and (plain := unquote(stem)) != stem:
                return self.photo_named(plain, near)
            whole, ending = os.path.splitext(stem)
            return self.photo_named(whole, near) if whole and ending.lower() in SUFFIXES else None
        best = min(rank for rank, _ in ranked)
        nearest = [photo for rank, photo in ranked if rank == best]
        return nearest[0] if len(nearest) == 1 else None

    def photos(self) -> list[Path]:
        """All images that no reader has claimed."""
        return [image for image in self.images if image not in self.claimed]

    def size(self, photo: Path) -> tuple[int, int]:
        """Height and width in pixels of a photo as it will be read. Raises `InputError`."""
        return read_header(photo).size(self._exif)

    def check_size(self, photo: Path, height: int, width: int) -> None:
        """Raise `InputError` unless annotations of this size in pixels lie on the photo (upright also as stored)."""
        found = read_header(photo).size(self._exif, fits=(height, width))
        if found != (height, width):
            raise InputError(f"made for {width} x {height} pixels, its photo has {found[1]} x {found[0]}")

    def _is_photo(self, image: Path, near: Path) -> bool:
        return image not in self.claimed and image != near

    def _distance(self, image: Path, near: Path) -> tuple[int, int, int]:
        one, other = Path(os.path.abspath(image)).parent.parts, Path(os.path.abspath(near)).parent.parts
        common = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        steps = len(one) + len(other) - 2 * common
        shared = len(set(one[common:]) & set(other[common:]))
        return steps, -shared, 0 if image.suffix.lower() in (".jpg", ".jpeg") else 1
