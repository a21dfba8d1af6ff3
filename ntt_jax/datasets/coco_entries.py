"""Images, categories and annotations of a COCO file as the tools of the field write them, one entry at a time.

What is lossless and certain is put right, what cannot be used is left out; `Notes` counts both by kind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ntt_jax.datasets.annotation_boxes import MAX_COORDINATE, ROUNDING, number, read_box, without_doubt
from ntt_jax.datasets.dataset import CocoAnnotation, CocoCategory, CocoImage
from ntt_jax.datasets.image_files import safe_name
from ntt_jax.datasets.segmentations import extent, is_plain, tidy
from ntt_jax.files import describe
from ntt_jax.images.reading import MAX_PIXELS
from ntt_jax.notes import Notes
from ntt_jax.text import number_in

_MAX_ID = 2**63 - 1
_MAX_WRITTEN_ID = 2**128
_MAX_DIGITS = 18
_FILE_KEYS = ("file_name", "filename", "path")
_YES_NO = {"": 0, "false": 0, "no": 0, "f": 0, "n": 0, "true": 1, "yes": 1, "t": 1, "y": 1}


@dataclass
class Ids:
    """The ids of a list: whole numbers from 0 on are themselves, all others get a number of their own.

    numbers: from the id in the file to the number. written: from the number to the id in the file, where they differ.
    """

    numbers: dict[int | str, int] = field(default_factory=dict)
    written: dict[int, int | str] = field(default_factory=dict)

    def find(self, value: Any) -> int | None:
        """The number of an id, written in any of its forms (7, 7.0, "7"); None if it is not in the list."""
        plain = plain_id(value)
        if plain is None:
            return None
        found = self.numbers.get(plain)
        if found is None:
            found = self.numbers.get(str(plain) if type(plain) is int else _as_number(plain, plain))
        if found is None and type(plain) is str:
            text = plain.strip()
            found = self.numbers.get(text)
            if found is None:  # "000000000030" is 30
                found = self.numbers.get(_as_number(text.lstrip("0") or "0", text))
        return found


@dataclass
class Entries:
    """The usable entries of a list by number; plain: all of them are, under ids that are numbers."""

    by_id: dict[int, Any]
    ids: Ids
    plain: bool
    _called: dict[str, int | None] = field(default_factory=dict)

    def called(self, name: Any) -> int | None:
        """The number of the only category of a name, or image of a file name, its last part or that without ending."""
        if type(name) is not str:
            return None
        if not self._called:
            for one in self.by_id.values():
                for text in _names(one):
                    self._called[text] = one.id if self._called.get(text, one.id) == one.id else None
        return self._called.get(name)


def _names(one: CocoImage | CocoCategory) -> set[str]:
    if isinstance(one, CocoCategory):
        return {one.name}
    path = PurePosixPath(one.file_name)
    return {one.written or one.file_name, one.file_name, path.name, path.stem}


def plain_id(value: Any) -> int | str | None:
    """An id as a whole number or a text; None for anything else."""
    if type(value) is int:
        return value if abs(value) <= _MAX_WRITTEN_ID else None
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value if type(value) is str and 0 < len(value) <= 1000 and _is_unicode(value) else None


def _as_number(text: Any, default: Any) -> Any:
    """The number that a text is, if it is written as Python would."""
    if type(text) is str and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and str(int(text)) == text:
        return int(text)
    return default


def _number_ids(plain: Iterable[int | str]) -> Ids:
    ids = Ids()
    others: list[int | str] = []
    taken: set[int] = set()
    for value in plain:
        if type(value) is int and 0 <= value <= _MAX_ID:
            ids.numbers[value] = value
            taken.add(value)
        else:
            others.append(value)
    following, highest = 0, max(taken, default=0)
    for value in others:
        number = _as_number(value, -1)
        if number < 0 or number in taken:
            following = max(following, min(highest + 1, 2**53))
            while following in taken:
                following += 1
            number = following
        taken.add(number)
        highest = max(highest, number)
        ids.numbers[value], ids.written[number] = number, value
    return ids


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def whole(value: Any) -> int | None:
    """A whole number, also written as 640.0, "640" or "640.0"; None for anything else."""
    if type(value) is int:
        return value
    if type(value) is str:
        value = _as_number(value.strip(), number_in(value))
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value if type(value) is int else None


def _collect(entries: list[Any], what: str, notes: Notes, read: Any) -> Entries:
    """Entries of a list that have an id of their own. read: makes one of number, entry, where and notes."""
    raw = [plain_id(entry.get("id")) if isinstance(entry, dict) else None for entry in entries]
    ids = _number_ids(dict.fromkeys(value for value in raw if value is not None))
    if ids.written:
        first = next(iter(ids.written.values()))
        notes.add(
            f"ids of {what} that are text, below 0 or of more than 63 bits, kept as they are",
            describe(first),
            count=len(ids.written),
        )
    first_entry: dict[int, Any] = {}
    clashing: set[int] = set()
    by_id: dict[int, Any] = {}
    plain = True
    for i, (entry, value) in enumerate(zip(entries, raw, strict=True)):
        where = f"{what}[{i}]"
        if value is None:
            found = describe(entry.get("id") if "id" in entry else None) if isinstance(entry, dict) else describe(entry)
            notes.add(f"{what} without an id, left out", f"{where}: found {found}")
            plain = False
            continue
        number = ids.numbers[value]
        plain &= type(entry["id"]) is int and number == entry["id"]
        if number in first_entry:
            plain = False
            if entry == first_entry[number] or by_id.get(number, entry) == read(number, entry, "", Notes()):
                notes.add(f"{what} written twice, taken once", f"{where} (id {value})")
            elif number not in clashing:
                clashing.add(number)
                notes.add(f"ids of several {what}, none of which can be told from the other: left out", f"id {value}")
            continue
        first_entry[number] = entry
        made = read(number, entry, f"{where} (id {value})", notes)
        if made is None:
            plain = False
        else:
            by_id[number] = made
    for number in clashing:
        by_id.pop(number, None)
    return Entries(by_id, ids, plain)


def read_images(entries: list[Any], notes: Notes) -> Entries:
    """`CocoImage`s; height and width 0 where the file has no sound size."""

    def read(number: int, entry: dict[str, Any], where: str, notes: Notes) -> CocoImage | None:
        key = next((key for key in _FILE_KEYS if key in entry), None)
        if key or "coco_url" not in entry:
            written = entry.get(key) if key else None
            if key != "file_name" and written is not None:
                notes.add(f'images without "file_name", whose "{key}" counts', where)
        else:  # LVIS: the images of COCO, from its training and validation folders mixed
            written = entry["coco_url"]
            written = "/".join(written.split("/")[-2:]) if type(written) is str else None
        if type(written) is not str or not written or not _is_unicode(written) or not (name := safe_name(written)):
            notes.add("images without a file name, left out", f"{where}: found {describe(written)}")
            return None
        height, width = entry.get("height"), entry.get("width")
        if type(height) is not int or type(width) is not int:
            height, width = whole(height), whole(width)
            if height is not None and width is not None:
                notes.add('sizes of images written as 640.0 or "640"', where)
        if height is None or width is None or height < 1 or width < 1:
            height = width = 0
        if height * width > MAX_PIXELS:
            notes.add(f"images over the limit of {MAX_PIXELS:,} pixels, left out", where)
            return None
        return CocoImage(number, name, height, width, None if name == written else written)

    found = _collect(entries, "images", notes, read)
    names: dict[str, int] = {}
    for image in found.by_id.values():
        first = names.setdefault(image.file_name, image.id)
        if first != image.id:
            what = "images of the same file as another image, each taken by itself"
            notes.add(what, f"{describe(image.file_name)} is image {first} and {image.id}")
    return found


def read_categories(entries: list[Any], notes: Notes) -> Entries:
    """`CocoCategory`s."""

    def read(number: int, entry: dict[str, Any], where: str, notes: Notes) -> CocoCategory | None:
        name = entry.get("name")
        if type(name) is int:
            name = str(name)
            notes.add("names of categories that are numbers", where)
        if type(name) is not str or not name or not _is_unicode(name):
            notes.add("categories without a name, left out", f"{where}: found {describe(name)}")
            return None
        return CocoCategory(number, name)

    return _collect(entries, "categories", notes, read)


def read_annotations(
    entries: list[Any], images: Entries, categories: Entries, notes: Notes, *, pointed: bool = False
) -> tuple[dict[int, CocoAnnotation], tuple[int, ...]]:
    """Annotations by id, and the position of each in the list. Sizes that only run lengths know go to `images`.

    pointed: as for `coco.parse_coco`.
    """
    taken: dict[int, int] = {}  # id -> position
    for i, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is int and 0 <= number <= _MAX_ID:
            taken.setdefault(number, i)
    following = min(max(taken, default=0) + 1, 2**53)
    result: dict[int, CocoAnnotation] = {}
    positions: list[int] = []
    small, beyond = 0, 0
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            notes.add("annotations that are no objects, left out", f"annotations[{i}]: found {describe(entry)}")
            continue
        number: Any = entry.get("id")
        fits = type(number) is int and taken.get(number) == i
        where = f"annotation {number}" if fits else f"annotations[{i}]"
        if not fits and type(number) is int and number in taken and entry == entries[taken[number]]:
            notes.add("annotations written twice, taken once", where)
            continue
        made = _annotation(entry, images, categories, where, notes, pointed)
        if made is None:
            continue
        if not fits:
            number = whole(number)
            if number is None or not 0 <= number <= _MAX_ID or number in taken:
                while following in taken:
                    following += 1
                number = following
                notes.add("annotations without an id of their own, numbered anew", f"{where} is {number}")
            taken[number] = i
        one = result[number] = CocoAnnotation(number, *made)
        positions.append(i)
        x, y, width, height = one.bbox
        if width <= 1 and height <= 1:
            small += width + height > 0
        else:
            image = images.by_id[one.image_id]
            beyond += x + width > image.width + ROUNDING or y + height > image.height + ROUNDING
    if beyond or (small and small == len(result)):
        result.update(without_doubt(result, images.by_id, notes))
    return result, tuple(positions)


def _annotation(
    entry: dict[str, Any], images: Entries, categories: Entries, where: str, notes: Notes, pointed: bool
) -> tuple[Any, ...] | None:
    """The fields of `CocoAnnotation` after its id; None if it cannot be used."""
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not images.plain or type(image_id) is not int:
        image_id = images.ids.find(image_id)
    if not categories.plain or type(category_id) is not int:
        category_id = categories.ids.find(category_id)
    if image_id is None and (image_id := images.called(entry.get("image_id"))) is not None:
        notes.add('names in place of the id in "image_id"', f"{where}: {describe(entry['image_id'])}")
    if category_id is None and (category_id := categories.called(entry.get("category_id"))) is not None:
        notes.add('names in place of the id in "category_id"', f"{where}: {describe(entry['category_id'])}")
    if image_id not in images.by_id:
        shown = f"{where}: image {describe(entry.get('image_id'))}"
        notes.add("annotations of images that are not in the file, left out", shown)
        return None
    if category_id not in categories.by_id:
        shown = f"{where}: category {describe(entry.get('category_id'))}"
        notes.add("annotations of categories that are not in the file, left out", shown)
        return None
    image: CocoImage = images.by_id[image_id]
    segmentation = entry.get("segmentation")
    if type(segmentation) is not list or not is_plain(segmentation):
        segmentation = tidy(segmentation, image.height, image.width, where, notes)
    if type(segmentation) is dict and not image.height:
        height, width = segmentation["size"]
        image = CocoImage(image.id, image.file_name, height, width, image.written)
        if image.height * image.width <= MAX_PIXELS:
            images.by_id[image_id] = image
            notes.add("images without a size, which their masks say", where)
        else:
            segmentation = None
    segmentation = segmentation or None
    bbox = read_box(entry.get("bbox"), where, notes)
    if bbox is None or (segmentation is not None and min(bbox[2:]) <= 0):
        box = extent(segmentation, image.height, image.width) if segmentation is not None else None
        if box is not None:
            notes.add("annotations without a box, which is taken from the mask", where)
            bbox = box
    if segmentation is None and (bbox is None or max(bbox[2:]) <= 0):
        if not (pointed and entry.get("points")):
            notes.add("annotations without a mask and without a box of any size, left out", where)
            return None
        bbox = (0.0, 0.0, 0.0, 0.0)
    if bbox is None:
        notes.add("annotations without a box, of an unsound mask, left out", where)
        return None
    written: Any = entry.get("area")
    area: Any = number_in(written) if type(written) is str else written
    if area is None and written is not None:
        area = written
    if area is not None and not (type(area) in (int, float) and 0 <= area <= MAX_COORDINATE**2):
        notes.add(
            "areas that are no number of at least 0, taken from the mask or the box", f"{where}: {describe(area)}"
        )
        area = None
    return (
        image_id,
        category_id,
        bbox,
        None if area is None else float(area),
        _flag(entry, "iscrowd", where, notes),
        _flag(entry, "isimpossible", where, notes),
        segmentation,
    )


def _flag(entry: Mapping[str, Any], key: str, where: str, notes: Notes) -> bool:
    value = entry.get(key, 0)
    if value is None or value is False or value is True or (type(value) is int and value in (0, 1)):
        return bool(value)
    if value != value:  # NaN: how pandas writes what is missing
        return False
    found = _YES_NO.get(value.strip().lower()) if type(value) is str else None
    if found is None:
        found = number(value)
    if found not in (0, 1):
        notes.add(
            f'values of "{key}" other than 0 and 1, taken as pycocotools takes them', f"{where}: {describe(value)}"
        )
        return bool(value)
    return bool(found)
