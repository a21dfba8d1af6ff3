"""What a folder's annotations come to, whatever wrote them: references, and what was left out."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.files import open_input, show_path
from ntt_jax.images.reading import MAX_IMAGE_BYTES
from ntt_jax.notes import Notes

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""


class Lazy:
    """An image or a mask that is read each time somebody asks for the array.

    read: returns it, mask bool `[H, W]` or image uint8 `[H, W, 3]`. origin: where it came from, as JSON data.
    """

    def __init__(self, read: Callable[[], np.ndarray], origin: dict[str, Any], ndim: int = 2):
        self._read, self.origin, self.ndim = read, origin, ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(), dtype=dtype)


def mentions(data: bytes, *keys: str) -> bool:
    """Whether a file of JSON, in any encoding that JSON has, may hold these keys; without parsing it."""
    encoding = json.detect_encoding(data[:4])
    if encoding in ("utf-16", "utf-32"):  # as the mark says; written out, without one
        encoding += "-le" if data[:1] == b"\xff" else "-be"
    return all(f'"{key}"'.encode(encoding.removesuffix("-sig")) in data for key in keys)


@dataclass(frozen=True)
class FoundReference:
    """One object of a class in a photo.

    photo: its file, or the LabelMe file that holds the photo. source: the file that says where the object is.
    image, mask: as `Segmenter.fit` takes them: paths or `Lazy`. box: x, y, width, height in pixels, or None for the
    mask's own. Without a mask SAM 2 makes it from the box. number: of the object in the source, from 1; 0 where that
    has one.
    """

    class_name: str
    photo: Path
    source: Path
    image: Path | Lazy
    mask: Path | Lazy | None
    box: Box | None = None
    number: int = 0

    @property
    def kind(self) -> str:
        """What is given of the object: "mask" or "box"."""
        return "box" if self.mask is None else "mask"

    @property
    def given(self) -> tuple[Any, ...]:
        """`(image, mask)`, `(image, mask, box)` or `(image, box)`, as `Segmenter.fit` takes them."""
        return tuple(part for part in (self.image, self.mask, self.box) if part is not None)


@dataclass(frozen=True)
class LeftOut:
    """A file, or an object in it (number, from 1), that is not taken, and the reason.

    read: it is taken; the reason says what was read in another way than it is written.
    """

    file: Path
    reason: str
    number: int = 0
    read: bool = False

    @property
    def said(self) -> str:
        """The reason, as a person is told."""
        return self.reason if self.read else f"left out: {self.reason}"


@dataclass
class Part:
    """What one reader took from a folder.

    category_ids: of its classes, where the files number them. claimed: images that belong to its annotations (masks),
    and are no photos.
    """

    references: list[FoundReference] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    category_ids: dict[str, int] = field(default_factory=dict)
    claimed: set[Path] = field(default_factory=set)

    def leave_out(self, file: Path, reason: object, number: int = 0) -> None:
        """One more that is not taken."""
        self.left_out.append(LeftOut(file, str(reason), number))

    def remark(self, file: Path, note: str) -> None:
        """What was read in a file in another way than it is written."""
        self.left_out.append(LeftOut(file, note, read=True))


@dataclass(frozen=True)
class FoundReferences:
    """The references of some folders.

    category_ids: of the K classes in class index order, ascending. references: by class, in the order in which they are
    learned. left_out: what is not taken, or is read in another way than it is written. bare: photos without a
    reference.
    """

    folders: tuple[Path, ...]
    category_ids: dict[str, int]
    references: tuple[FoundReference, ...]
    left_out: tuple[LeftOut, ...] = ()
    bare: tuple[Path, ...] = ()

    def table(self) -> dict[str, list[FoundReference]]:
        """The references of each class, in class index order."""
        found: dict[str, list[FoundReference]] = {name: [] for name in self.category_ids}
        for reference in self.references:
            found[reference.class_name].append(reference)
        return found

    @property
    def boxes(self) -> int:
        """How many references need SAM 2 to make their masks."""
        return sum(reference.mask is None for reference in self.references)

    def shown(self, path: Path) -> str:
        """A path as it appears in messages: below its folder."""
        for folder in self.folders:
            if folder in path.parents:
                return show_path(path.relative_to(folder) if len(self.folders) == 1 else path)
        return show_path(path)

    def reasons(self) -> list[str]:
        """A line for each reason why something is left out: how many, and the first."""
        self.note(notes := Notes())
        return list(notes.lines())

    def note(self, notes: Notes) -> None:
        """Add what is left out to notes, by reason."""
        for one in self.left_out:
            notes.add(one.said, self.place(one))

    def place(self, one: LeftOut) -> str:
        """The file, and the object in it, as they appear in messages."""
        return self.shown(one.file) + (f" object {one.number}" if one.number else "")

    def with_left_out(self, more: Iterable[LeftOut]) -> "FoundReferences":
        """The same; these were left out too."""
        return dataclasses.replace(self, left_out=(*self.left_out, *more))

    def sha256(self) -> str:
        """Of everything that the references are made from: names of classes and contents of files, in their order."""
        digest, contents = hashlib.sha256(), {}
        for one in self.references:
            hashes = []
            for file in (one.photo, one.source):
                if file not in contents:
                    contents[file] = _content(file)
                hashes.append(contents[file])
            box = None if one.box is None else [float(v).hex() for v in one.box]
            row = [one.class_name, self.category_ids[one.class_name], *hashes, one.number, one.kind, box]
            digest.update(f"{row!a}\n".encode("ascii"))
        return digest.hexdigest()


def _content(file: Path) -> str:
    digest = hashlib.sha256()
    with open_input(file, max_bytes=max(MAX_IMAGE_BYTES, os.stat(file).st_size)) as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
