"""YOLO's label files: a line for each object, as shares of the photo's width and height.

    0 0.5 0.5 0.2 0.3                  class, x and y of the box's centre, width, height
    0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5  class, x and y of the points of a polygon
    classes.txt, obj.names             names of the classes, a line each
    data.yaml                          names: [bird, boat], or {0: bird, 1: boat}

A label file has its photo's name and lies beside it or in a sister folder (images/train, labels/train). A number more
than these is the confidence of a prediction, which is not used. Between the numbers may be commas (or in them, if they
have no points), and in place of the class's number its name.
"""

import codecs
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ntt_jax.errors import InputError
from ntt_jax.files import describe, read_bytes
from ntt_jax.images.rle import decode_rle, rle_areas, segmentation_to_rle
from ntt_jax.images.tree import Tree
from ntt_jax.references.folder.found import FoundReference, Lazy, Part
from ntt_jax.text import number_in, numbers_of

MAX_BYTES = 16 * 1024**2
MAX_YAML_BYTES = 128 * 1024
_MAX_CLASSES = 100_000
_MAX_OBJECTS = 10_000
_MAX_NUMBERS = 100_000
_LISTS = re.compile(r"(?:classes|labels|class_names|.*[._-]?classes)\.txt|.*\.names|_darknet\.labels", re.I)
_MARGIN = 0.01
"""Shares may be below 0 or above 1 by this much, and are cut."""


def read(tree: Tree) -> Part:
    """References of all label files that have a photo."""
    part = Part()
    lists = _class_lists(tree, part)
    for file in tree.of(".txt"):
        if file in lists or _LISTS.fullmatch(file.name) or tree.photo_named(file.stem, file) is None:
            continue
        try:
            _read_file(file, tree, lists, part)
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: "))
    _number(part, lists)
    return part


def _number(part: Part, lists: dict[Path, list[str]]) -> None:
    """The classes' numbers in their list, from 1, where all lists are one."""
    known = {tuple(names) for names in lists.values()}
    if len(known) == 1:
        part.category_ids = {name: i for i, name in reversed(list(enumerate(known.pop(), 1)))}


def _class_lists(tree: Tree, part: Part) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for file in tree.of(".txt", ".names", ".labels", ".yaml", ".yml"):
        try:
            if file.suffix.lower() in (".yaml", ".yml"):
                names = _yaml_names(file)
            elif _LISTS.fullmatch(file.name) and tree.photo_named(file.stem, file) is None:
                names = [line.strip() for line in _text(file, MAX_YAML_BYTES).splitlines()]
                while names and not names[-1]:
                    names.pop()
            else:
                continue
            if names and len(names) <= _MAX_CLASSES:
                found[file] = names
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: "))
    return found


class _NoAliases(yaml.SafeLoader):
    """YAML without references to itself, which a small file can make large with."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _yaml_names(file: Path) -> list[str]:
    """The list of classes in a data.yaml; empty if it is another kind of file."""
    text = _text(file, MAX_YAML_BYTES)
    if not re.search(r"^[\"']?names[\"']?\s*:", text, re.M):
        return []
    try:
        content = yaml.load(text, _NoAliases)
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            table = {_index(key): value for key, value in names.items()}
            top = max(table, default=-1)
            if not 0 <= top < _MAX_CLASSES:
                raise ValueError
            names = [table.get(i, "") for i in range(top + 1)]
        if isinstance(names, list) and all(isinstance(name, (str, int)) for name in names):
            return [str(name).strip() for name in names]  # ValueError: a number of thousands of digits
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error or "names").split())[:100]
        raise InputError(f"a list of classes that cannot be read: {reason}") from None
    raise InputError(f"names: expected a list of names, found {describe(names)}")


def _index(key: Any) -> int:
    """A class's number. Raises `ValueError`."""
    if type(key) is int or (isinstance(key, str) and key.isascii() and key.isdigit()):
        return int(key)
    raise ValueError


def _text(file: Path, limit: int) -> str:
    """The text of a file in UTF-8, or in UTF-16 if it says so at its start, as Windows' PowerShell writes it."""
    data = read_bytes(file, max_bytes=limit, what="label file")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("not text in UTF-8; save it in UTF-8") from None


def _list_for(file: Path, lists: dict[Path, list[str]], tree: Tree) -> list[str] | None:
    """The list of the label file's folder, or of the nearest folder above; else the only one there is."""
    for folder in (file.parent, *file.parent.parents):
        here = [names for path, names in lists.items() if path.parent == folder]
        if here:
            return here[0] if all(names == here[0] for names in here) else None
        if folder == tree.root(file):
            break
    distinct = {tuple(names): names for names in lists.values()}
    return next(iter(distinct.values())) if len(distinct) == 1 else None


def _read_file(file: Path, tree: Tree, lists: dict[Path, list[str]], part: Part) -> None:
    photo = tree.photo_named(file.stem, file)
    assert photo is not None
    try:
        lines = [_fields(line) for line in _text(file, MAX_BYTES).splitlines() if line.strip(" \t,")]
    except InputError as error:
        if "empty file" in str(error):  # a photo without an object
            return
        raise
    lines = [line for line in lines if not line[0].startswith("#")]
    if not lines:
        return
    if len(lines) > _MAX_OBJECTS:
        raise InputError(f"{len(lines):,} objects, more than {_MAX_OBJECTS:,}")
    if not _looks_like_labels(lines):
        return
    names = _list_for(file, lists, tree)
    if names is None and all(number_in(line[0]) is None for line in lines):
        names = sorted({line[0] for line in lines})
    if names is None:
        wanted = "classes.txt, obj.names or data.yaml"
        raise InputError(f"no list of classes ({wanted})" if not lists else f"several lists of classes ({wanted})")
    height, width = tree.size(photo)
    for number, line in enumerate(lines, 1):
        try:
            part.references.append(_object(line, names, photo, file, height, width, number))
        except InputError as error:
            part.leave_out(file, error, number)


def _looks_like_labels(lines: list[list[str]]) -> bool:
    """Whether a text beside a photo is a label file: its first line begins with a class and four numbers.

    A class that is written as a name must be followed by shares: other texts hold words and numbers as well.
    """
    first = lines[0]
    found = _numbers(first[1:5]) if len(first) >= 5 else None
    if found is None:
        return False
    return number_in(first[0]) is not None or all(-_MARGIN <= share <= 1 + _MARGIN for share in found)


def _fields(line: str) -> list[str]:
    """The class and the numbers of a line, which stand between spaces or commas; "0,5" is a half where no number of
    the line has a point and spaces are between them."""
    if "," not in line:
        return line.split()
    if "." not in line and len(line.split()) >= 5:
        return line.replace(",", ".").split()
    return line.replace(",", " ").split()


def _numbers(texts: list[str]) -> list[float] | None:
    if len(texts) > _MAX_NUMBERS:
        return None
    return numbers_of(texts)


def _object(
    line: list[str], names: list[str], photo: Path, file: Path, height: int, width: int, number: int
) -> FoundReference:
    number_of_class, shares = number_in(line[0]), _numbers(line[1:])
    if number_of_class is None and line[0] in names:
        number_of_class = float(names.index(line[0]))
    if number_of_class is None or shares is None or len(shares) < 4 or not number_of_class.is_integer():
        raise InputError("expected a class and numbers from 0 to 1")
    index = int(number_of_class)
    if not 0 <= index < len(names) or not names[index]:
        raise InputError(f"class {index} is not in the list of {len(names)} classes, which count from 0")
    if len(shares) % 2 and len(shares) > 4:  # the confidence of a prediction
        shares = shares[:-1]
    if not all(-_MARGIN <= share <= 1 + _MARGIN for share in shares):
        raise InputError("expected shares of the photo's width and height, from 0 to 1")
    if len(shares) == 4:
        x, y, w, h = (share * size for share, size in zip(shares, (width, height, width, height), strict=True))
        left, top = max(x - w / 2, 0.0), max(y - h / 2, 0.0)
        right, bottom = min(x + w / 2, float(width)), min(y + h / 2, float(height))
        if right <= left or bottom <= top:
            raise InputError("a box without a size")
        box = (left, top, right - left, bottom - top)
        return FoundReference(names[index], photo, file, photo, None, box, number)
    if len(shares) < 6:
        raise InputError(f"expected a box of 4 numbers or a polygon of 6 and more, found {len(shares)}")
    points = [
        min(max(share, 0.0), 1.0) * size for share, size in zip(shares, (width, height) * len(shares), strict=False)
    ]
    if not rle_areas([segmentation_to_rle([points], height, width, "polygon")])[0]:
        raise InputError("a polygon without a pixel")
    lazy = Lazy(partial(_mask, points, height, width), {"annotations": file.name, "line": number})
    return FoundReference(names[index], photo, file, photo, lazy, number=number)


def _mask(points: list[float], height: int, width: int) -> np.ndarray:
    return decode_rle(segmentation_to_rle([points], height, width, "polygon"))
