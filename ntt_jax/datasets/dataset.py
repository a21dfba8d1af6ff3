"""An annotated data set in memory, whatever file it came from, and the choice of its classes."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from ntt_jax.datasets.class_lists import CLASS_LISTS
from ntt_jax.datasets.lvis import FederatedLists
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, show_path
from ntt_jax.images.reading import read_header, read_image
from ntt_jax.images.remote import Address, Location
from ntt_jax.images.rle import Rle, decode_rle, encode_masks, segmentation_to_rle
from ntt_jax.text import close_names


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image entry.

    height, width: in pixels; 0 where the file does not say and the image has not been asked (`image_files.survey`).
    file_name: relative, stays inside its folder. written: the name as the annotation file has it, if that is another.
    """

    id: int
    file_name: str
    height: int
    width: int
    written: str | None = None


@dataclass(frozen=True, slots=True)
class CocoCategory:
    """One category entry."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """One annotation entry.

    bbox: x, y, width, height in pixels (not necessarily inside the image). area: as in the file, None where it has
    none. isimpossible: no reference, and VOC's "difficult". segmentation: the JSON value, or a function that reads the
    mask, bool `[H, W]`, from its own file; decoded by `CocoDataset.rle`. None where there is none (boxes only).
    """

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None
    iscrowd: bool
    isimpossible: bool
    segmentation: Any


@dataclass(frozen=True)
class CocoDataset:
    """A checked data set. Mappings are read-only.

    path, sha256: of the annotation file, or of everything that was read in its stead. images, annotations: by id, in
    the file's order. categories: by id, ascending. image_annotations: annotations of every image id, in the file's
    order. protocol: whose rules results are measured by, "coco", "voc" or "lvis". federated: what LVIS knows beside.
    notes: what was read in another way than it is written, a line for each kind. exif: how photos with an orientation
    tag lie under the annotations (`images.reading.EXIF`). files: the names of files that are not those of the entries,
    or where they are if that is elsewhere.
    image_ids, category_ids: ids as the file has them, where those are text. positions: of the annotations in the file's
    list, None where none was left out.
    """

    path: str
    sha256: str
    images: Mapping[int, CocoImage]
    annotations: Mapping[int, CocoAnnotation]
    categories: Mapping[int, CocoCategory]
    image_annotations: Mapping[int, tuple[CocoAnnotation, ...]]
    protocol: str = "coco"
    federated: FederatedLists | None = None
    notes: tuple[str, ...] = ()
    exif: str = "upright"
    files: Mapping[int, str | Address] = field(default_factory=dict)
    image_ids: Mapping[int, int | str] = field(default_factory=dict)
    category_ids: Mapping[int, int | str] = field(default_factory=dict)
    positions: tuple[int, ...] | None = None

    def rle(self, annotation: CocoAnnotation) -> Rle:
        """The annotation's mask, compressed. Raises `InputError` naming file and entry if the segmentation is unsound
        (what reading the file has not looked at: coordinates and runs) or absent."""
        image = self.images[annotation.image_id]
        where = f"{show_path(self.path)}: annotation {annotation.id}"
        if annotation.segmentation is None:
            raise InputError(
                f"{where}: has no segmentation, but its mask is needed (`ntt-jax masks` makes masks of boxes)"
            )
        if not image.height:
            raise InputError(
                f"{where}: the size of its image {show_path(image.file_name)} is not known; give its folder"
            )
        if callable(annotation.segmentation):
            return encode_masks(np.asarray(annotation.segmentation())[None])[0]
        return segmentation_to_rle(annotation.segmentation, image.height, image.width, where)

    def mask(self, annotation: CocoAnnotation) -> np.ndarray:
        """The annotation's mask, bool `[H, W]`. Raises as `rle`."""
        return decode_rle(self.rle(annotation))

    def image_path(self, folder: PathLike, image_id: int) -> Location:
        """Where an image's file is, given the folder that holds the data set's images."""
        name = self.files.get(image_id, self.images[image_id].file_name)
        if isinstance(name, Address):
            return name
        return (folder if isinstance(folder, Address) else pathlib.Path(folder)) / name

    def with_sizes(self, images: Mapping[int, CocoImage], notes: tuple[str, ...] = ()) -> "CocoDataset":
        """The same with these entries in place of those of their ids, and more notes."""
        if not images:
            return dataclasses.replace(self, notes=self.notes + notes) if notes else self
        every = MappingProxyType({i: images.get(i, image) for i, image in self.images.items()})
        return dataclasses.replace(self, images=every, notes=self.notes + notes)

    def read_image(self, folder: PathLike, image_id: int) -> np.ndarray:
        """An image, uint8 RGB `[H, W, 3]`, turned as its annotations lie on it.

        Raises `InputError`, naming the file, if it cannot be read or is not of the size that the annotations say.
        """
        path, entry = self.image_path(folder, image_id), self.images[image_id]
        if not entry.height and isinstance(self.files.get(image_id), Address):  # nobody has looked at it yet
            return read_image(path, exif=self.exif)
        expected = (entry.height, entry.width)
        read = read_image(path, exif=self.exif, fits=expected)
        if read.shape[:2] == expected:
            return read
        found = f"is {read.shape[1]} x {read.shape[0]} pixels"
        if (header := read_header(path)).orientation != 1:
            stored = "" if read.shape[:2] == header.upright else ", as stored; --exif upright turns it"
            found += f" (EXIF orientation {header.orientation}{stored})"
        raise InputError(f"{show_path(path)}: {found}, its annotations are for {entry.width} x {entry.height}")


def make_dataset(
    path: PathLike,
    sha256: str,
    images: dict[int, CocoImage],
    annotations: dict[int, CocoAnnotation],
    categories: dict[int, CocoCategory],
    *,
    protocol: str = "coco",
    federated: FederatedLists | None = None,
    notes: tuple[str, ...] = (),
    image_ids: Mapping[int, int | str] = MappingProxyType({}),
    category_ids: Mapping[int, int | str] = MappingProxyType({}),
    positions: tuple[int, ...] | None = None,
) -> CocoDataset:
    """A data set from checked entries by id, whose ids fit together."""
    per_image: dict[int, list[CocoAnnotation]] = {image_id: [] for image_id in images}
    for annotation in annotations.values():
        per_image[annotation.image_id].append(annotation)
    return CocoDataset(
        path=os.fspath(path),
        sha256=sha256,
        images=MappingProxyType(images),
        annotations=MappingProxyType(annotations),
        categories=MappingProxyType({i: categories[i] for i in sorted(categories)}),
        image_annotations=MappingProxyType({i: tuple(v) for i, v in per_image.items()}),
        protocol=protocol if federated is None else "lvis",
        federated=federated,
        notes=notes,
        image_ids=MappingProxyType(dict(image_ids)),
        category_ids=MappingProxyType(dict(category_ids)),
        positions=positions,
    )


def select_classes(dataset: CocoDataset, classes: str | Sequence[str | int]) -> tuple[CocoCategory, ...]:
    """The chosen categories, ascending by category id: a category's position here is its class index.

    classes: "all" (every category of the file), a list of `CLASS_LISTS` ("novel", "coco20i-0", ...), category names or
    ids, or several of these separated by commas or in a sequence. A name wins over an id written the same way.

    Raises `InputError` on an unknown or ambiguous class (with the names that come close) and on an empty choice.
    """
    tokens = [t.strip() for t in classes.split(",")] if isinstance(classes, str) else list(classes)
    by_name: dict[str, list[int]] = {}
    for category in dataset.categories.values():
        by_name.setdefault(category.name, []).append(category.id)
    chosen: set[int] = set()
    for token in tokens:
        if token == "all":
            chosen.update(dataset.categories)
        elif isinstance(token, str) and token in CLASS_LISTS:
            if missing := [name for name in CLASS_LISTS[token] if name not in by_name]:
                raise InputError(
                    f'class list "{token}": {show_path(dataset.path)} has no category {missing[0]!r}'
                    f' ({len(missing)} of its {len(CLASS_LISTS[token])} classes are missing); use "all" or names'
                )
            chosen.update(_category_id(name, by_name, dataset) for name in CLASS_LISTS[token])
        elif token != "":
            chosen.add(_category_id(token, by_name, dataset))
    if not chosen:
        raise InputError(f"no class chosen: {describe(classes)}; {_listing(dataset)}")
    return tuple(dataset.categories[i] for i in sorted(chosen))


def _category_id(token: str | int, by_name: dict[str, list[int]], dataset: CocoDataset) -> int:
    if isinstance(token, str) and token in by_name:
        if len(by_name[token]) > 1:
            ids = ", ".join(map(str, by_name[token]))
            raise InputError(f"class {token!r}: {show_path(dataset.path)} has several of this name; use an id ({ids})")
        return by_name[token][0]
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) <= 19:
        token = int(token)
    if type(token) is int and token in dataset.categories:
        return token
    close = close_names(str(token), [*by_name, "all", *CLASS_LISTS])
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise InputError(f"unknown class {describe(token)}: {hint}{_listing(dataset)}")


def _listing(dataset: CocoDataset) -> str:
    names = [c.name for c in dataset.categories.values()]
    shown = ", ".join(describe(n, 30)[1:-1] for n in names[:10]) + (", ..." if len(names) > 10 else "")
    return (
        f'classes are "all", {", ".join(CLASS_LISTS)}, or names or ids from "categories" of {show_path(dataset.path)}'
        f" ({len(names)}: {shown})"
    )
