"""PASCAL VOC as it is distributed: image lists (ImageSets), one XML file per image, masks in SegmentationObject.

    VOCdevkit/VOC2007/ImageSets/Main/test.txt      names of images, one a line: this file stands for the data set
    VOCdevkit/VOC2007/Annotations/000001.xml       size and objects of an image
    VOCdevkit/VOC2007/JPEGImages/000001.jpg
    VOCdevkit/VOC2007/SegmentationObject/000001.png   of some images: pixel value n is the n-th object, 255 its border

`VOC2007+VOC2012` in the path of a list takes the lists of both years. File names start at the folder that holds the
years, so that is the image folder.
"""

import hashlib
import math
import pathlib
import re
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from ntt_jax.datasets.class_lists import VOC_CLASSES
from ntt_jax.datasets.dataset import CocoAnnotation, CocoCategory, CocoDataset, CocoImage, make_dataset
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, read_bytes, show_path
from ntt_jax.images.reading import MAX_PIXELS, SUFFIXES, read_index_image
from ntt_jax.notes import Notes
from ntt_jax.text import number_in

MAX_LIST_BYTES = 64 * 1024**2
MAX_XML_BYTES = 4 * 1024**2
MAX_MASK_BYTES = 256 * 1024**2
_MAX_DEPTH = 16
_MAX_COORDINATE = 1e6
_OBJECTS_PER_IMAGE = 10_000
_FLAGS = {"": False, "0": False, "1": True, "false": False, "true": True, "unspecified": False}
_OFFICIAL = re.compile(r"(\d{4}_)?\d{6}")


@dataclass(frozen=True, slots=True)
class VocMask:
    """Reads the mask of the `number`-th object (from 1) of an image when it is called: bool `[H, W]`.

    Raises `InputError` naming the file if it is no image of object numbers of the expected size, or most of the mask
    lies outside the object's box (x, y, width, height): then the numbers do not follow the order of the XML. height,
    width: 0 where the XML does not say.
    """

    path: pathlib.Path
    number: int
    height: int
    width: int
    bbox: tuple[float, float, float, float]

    def __call__(self) -> np.ndarray:
        return self.of(read_index_image(self.path))

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The mask in object numbers `[H, W]` that have been read; as calling it, and with its errors."""
        if self.height and numbers.shape != (self.height, self.width):
            found, expected = f"{numbers.shape[1]} x {numbers.shape[0]}", f"{self.width} x {self.height}"
            raise InputError(f"{show_path(self.path)}: is {found} pixels, the annotation says {expected}")
        mask = numbers == self.number
        x, y, w, h = self.bbox
        inside = mask[max(int(y), 0) : max(math.ceil(y + h), 0), max(int(x), 0) : max(math.ceil(x + w), 0)]
        if 2 * np.count_nonzero(inside) < np.count_nonzero(mask):
            raise InputError(
                f"{show_path(self.path)}: object {self.number} lies outside its box; expected the numbers of the "
                "objects to follow their order in the XML"
            )
        return mask


def image_lists(path: PathLike) -> list[pathlib.Path]:
    """The list files that a path stands for: itself, or several if one of its folders is written `VOC2007+VOC2012`."""
    path = pathlib.Path(path)
    joined = [i for i, part in enumerate(path.parts[:-1]) if "+" in part]
    if not joined or path.exists():
        return [path]
    before, years, after = path.parts[: joined[-1]], path.parts[joined[-1]].split("+"), path.parts[joined[-1] + 1 :]
    return [pathlib.Path(*before, year, *after) for year in years]


def year_folder(path: PathLike) -> pathlib.Path:
    """The folder `VOC2007` of a list `VOC2007/ImageSets/Main/test.txt`."""
    return pathlib.Path(path).absolute().parent.parent.parent


def load_voc(path: PathLike) -> CocoDataset:
    """Read the images of a VOC list, `VOCdevkit/VOC2007/ImageSets/Main/test.txt`, or of several (`image_lists`).

    Ids do not depend on the list: an image's is its name's digits, an annotation's 10,000 times that plus the object's
    number; where names are not VOC's, images are numbered in the order of the list. Categories are the 20 of VOC with
    ids from 1 in its order, or for other names those that occur, sorted. Boxes become x, y, width, height from VOC's
    inclusive corners that count from 1. `difficult` objects are `isimpossible`: never sampled as references. Objects
    that cannot be used are left out, and counted in the `notes`; an image's size is 0 where its XML does not say.

    Raises `InputError`, naming the file, for a list that is not one, or XML that is missing, malformed, declares
    entities, is nested or large beyond reason, or lacks what is needed.
    """
    digest = hashlib.sha256()
    found: list[tuple[pathlib.Path, str]] = []
    for file in image_lists(path):
        found += _names(file, digest)
    if len(set(found)) != len(found):
        raise InputError(f"{show_path(path)}: an image is listed twice")
    official = all(_OFFICIAL.fullmatch(name) for _, name in found)
    images: dict[int, CocoImage] = {}
    objects: list[tuple[CocoImage, pathlib.Path | None, dict[int, VocObject]]] = []
    notes = Notes()
    for number, (year, name) in enumerate(found, 1):
        image_id = int(name.replace("_", "")) if official else number
        if image_id in images:
            raise InputError(f"{show_path(path)}: an image of the name {name} is in two of its folders")
        file = year / "Annotations" / f"{name}.xml"
        data = read_bytes(file, max_bytes=MAX_XML_BYTES, what="VOC annotation")
        digest.update(data)
        images[image_id], read = _parse(data, file, image_id, year.name, name, notes)
        masks = year / "SegmentationObject" / f"{name}.png"
        if there := masks.exists():
            digest.update(read_bytes(masks, max_bytes=MAX_MASK_BYTES, what="VOC mask"))
        objects.append((images[image_id], masks if there else None, read))
    names = {one.name for _, _, many in objects for one in many.values()}
    ordered = VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names)
    category_ids = {name: i for i, name in enumerate(ordered, 1)}
    annotations: dict[int, CocoAnnotation] = {}
    for image, masks, many in objects:
        for number, one in many.items():
            annotation_id = image.id * _OBJECTS_PER_IMAGE + number
            annotations[annotation_id] = CocoAnnotation(
                id=annotation_id,
                image_id=image.id,
                category_id=category_ids[one.name],
                bbox=one.bbox,
                area=None,
                iscrowd=False,
                isimpossible=one.difficult,
                segmentation=VocMask(masks, number, image.height, image.width, one.bbox) if masks else None,
            )
    categories = {i: CocoCategory(i, name) for name, i in category_ids.items()}
    if notes.lines() and not annotations:
        raise InputError(f"{show_path(path)}: no object can be used: {notes.lines()[0]}")
    return make_dataset(path, digest.hexdigest(), images, annotations, categories, protocol="voc", notes=notes.lines())


@dataclass(frozen=True, slots=True)
class VocObject:
    """An object in an XML file. bbox: x, y, width, height in pixels from 0."""

    name: str
    bbox: tuple[float, float, float, float]
    difficult: bool


def _names(path: pathlib.Path, digest: "hashlib._Hash") -> list[tuple[pathlib.Path, str]]:
    """The images of one list: the folder of their year, their name."""
    data = read_bytes(path, max_bytes=MAX_LIST_BYTES, what="list of VOC images")
    shown = show_path(path)
    digest.update(data)
    try:
        lines = [line.split() for line in data.decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{shown}: neither JSON nor a list of VOC images") from None
    lines = [line for line in lines if line]
    if bad := next((line for line in lines if len(line) != 1 or not re.fullmatch(r"\w[\w.-]*", line[0])), None):
        raise InputError(
            f"{shown}: expected the name of an image on each line, as in ImageSets/Main/test.txt, found "
            f"{describe(' '.join(bad))}"
        )
    year = year_folder(path)
    if not (year / "Annotations").is_dir():
        raise InputError(f"{shown}: expected VOC's folders, but there is no {show_path(year / 'Annotations')}")
    if not lines:
        raise InputError(f"{shown}: lists no image")
    return [(year, line[0]) for line in lines]


def _parse(
    data: bytes, path: pathlib.Path, image_id: int, year: str, name: str, notes: Notes
) -> tuple[CocoImage, dict[int, VocObject]]:
    """One image and its objects, by number from 1, from its XML."""
    root = parse_xml(data, path)
    height, width, found = voc_objects(root, path)
    objects = {number: one for number, one in enumerate(found, 1) if isinstance(one, VocObject)}
    for number, one in enumerate(found, 1):
        if isinstance(one, InputError):
            notes.add(f"objects left out: {one}", f"{show_path(path)}: object {number}")
    suffix = pathlib.PurePosixPath(root.findtext("filename") or "").suffix
    file_name = f"{year}/JPEGImages/{name}{suffix if suffix.lower() in SUFFIXES else '.jpg'}"
    return CocoImage(image_id, file_name, height, width), objects


def voc_objects(root: ElementTree.Element, path: PathLike) -> tuple[int, int, list[VocObject | InputError]]:
    """Height and width in pixels and the objects of a parsed annotation; `path` names the file in messages.

    The size is 0, 0 where it is missing, or 0 as labelImg and others write it. For an object whose name or box is
    missing or not sound, the error stands in its place.
    Raises `InputError` for other sizes that are not sound, and for too many objects.
    """
    shown = show_path(path)
    size = root.find("size")
    height, width = (_side(size, key, f"{shown}: size") for key in ("height", "width"))
    if not height or not width:
        height = width = 0
    if height * width > MAX_PIXELS:
        raise InputError(f"{shown}: height x width is over the limit of {MAX_PIXELS:,} pixels")
    found = root.findall("object")
    if len(found) >= _OBJECTS_PER_IMAGE:
        raise InputError(f"{shown}: {len(found)} objects, more than {_OBJECTS_PER_IMAGE - 1}")
    return height, width, [_object(entry) for entry in found]


def _object(entry: ElementTree.Element) -> VocObject | InputError:
    name = (entry.findtext("name") or "").strip()
    if not name:
        return InputError("has no name")
    written = (entry.findtext("difficult") or "").strip()
    if (difficult := _FLAGS.get(written.lower())) is None:
        return InputError(f"difficult: expected 0 or 1, found {describe(written)}")
    box = entry.find("bndbox")
    try:
        x1, y1, x2, y2 = (_number(box, key, "bndbox") for key in ("xmin", "ymin", "xmax", "ymax"))
    except InputError as error:
        return error
    if x2 < x1 or y2 < y1:
        return InputError("bndbox: xmax and ymax must not be smaller than xmin and ymin")
    if max(x2, y2) <= 1 and not x1.is_integer():
        return InputError("bndbox: expected pixels, found shares of the image's size")
    return VocObject(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), difficult)


def _number(parent: ElementTree.Element | None, key: str, where: str) -> float:
    text = parent.findtext(key) if parent is not None else None
    value = number_in(text) if text is not None else None
    if value is None or not abs(value) <= _MAX_COORDINATE:
        raise InputError(f"{where}: {key}: expected a number, found {'nothing' if text is None else describe(text)}")
    return value


def _side(size: ElementTree.Element | None, key: str, where: str) -> int:
    """The image's height or width in pixels; 0 where it is missing or not above 0."""
    if size is None or not (size.findtext(key) or "").strip():
        return 0
    value = _number(size, key, where)
    if value != int(value):
        raise InputError(f"{where}: {key}: expected a whole number of pixels, found {value:g}")
    return max(int(value), 0)


def parse_xml(data: bytes, path: PathLike) -> ElementTree.Element:
    """The root element of an XML document without a document type: no entities, nothing fetched, no deep nesting.

    Raises `InputError`, naming the file, for anything else.
    """
    shown = show_path(path)
    parser = DefusedXMLParser(target=_ShallowTree(), forbid_dtd=True)
    try:
        parser.feed(data)
        return parser.close()
    except DefusedXmlException:
        raise InputError(f"{shown}: refused: the XML declares a document type, which can hold entities") from None
    except ElementTree.ParseError as error:
        line = error.position[0]
        raise InputError(f"{shown}: not valid XML: {expat.ErrorString(error.code)} (line {line})") from error
    except (LookupError, ValueError) as error:  # an encoding that is unknown or does not fit
        if isinstance(error, InputError):
            raise InputError(f"{shown}: {error}") from None
        raise InputError(f"{shown}: not valid XML: {type(error).__name__}") from error


class _ShallowTree(ElementTree.TreeBuilder):
    """Builds the tree while it is at most `_MAX_DEPTH` deep."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise InputError("the XML is nested too deeply to be read")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)
