"""Data sets of annotated instances; the reader of COCO's and LVIS's JSON (`datasets.load_dataset` knows the others)."""

import gc
import hashlib
import pathlib
from typing import Any

from ntt_jax.datasets.dataset import CocoAnnotation, CocoCategory, CocoDataset, CocoImage, make_dataset
from ntt_jax.datasets.lvis import federated_lists
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path
from ntt_jax.images.reading import MAX_PIXELS
from ntt_jax.images.rle import check_polygons, check_rle_size

MAX_ANNOTATION_BYTES = 2 * 1024**3
"""Default size limit of an annotation file (COCO train2017: 470 MB)."""
_MAX_ID = 2**63 - 1
_MAX_COORDINATE = 1e9


def load_coco(path: PathLike, *, max_bytes: int = MAX_ANNOTATION_BYTES) -> CocoDataset:
    """Read a COCO or LVIS instance annotation file.

    Checked: JSON, the three lists, every entry's keys and types, unique ids, finite boxes, links from annotations to
    images and categories, file names that stay inside their folder, image sizes, and the form of segmentations. What
    lies inside a segmentation is checked when its mask is asked for. Unknown keys are ignored; `iscrowd` and
    `isimpossible` default to 0; an empty segmentation counts as none. A file whose images say which categories were
    looked for in vain (`neg_category_ids`) is LVIS's; without "file_name", the last two parts of "coco_url" count.

    Raises `InputError`: one line with the file and the entry.
    """
    data = read_bytes(path, max_bytes=max_bytes, what="annotation file")
    return parse_coco(data, path)


def parse_coco(data: bytes, path: PathLike) -> CocoDataset:
    """`load_coco` for a file's contents; `path` names them in messages."""
    name = show_path(path)
    # A million small objects without a cycle: the collector only costs time here (a third of it).
    collecting = gc.isenabled()
    gc.disable()
    try:
        content = parse_json(data, path, what="annotation file")
        if not isinstance(content, dict):
            raise InputError(f"{name}: expected a COCO annotation object, found {describe(content)}")
        lists = {key: _list(content, key, name) for key in ("images", "categories", "annotations")}
        images = _by_id((_image(v, f"{name}: images[{i}]") for i, v in enumerate(lists["images"])), f"{name}: images")
        categories = _by_id(
            (_category(v, f"{name}: categories[{i}]") for i, v in enumerate(lists["categories"])), f"{name}: categories"
        )
        annotations = _by_id(
            (_annotation(v, name, i, images, categories) for i, v in enumerate(lists["annotations"])),
            f"{name}: annotations",
        )
        federated = federated_lists(lists["images"], lists["categories"], name)
    finally:
        if collecting:
            gc.enable()
    return make_dataset(path, hashlib.sha256(data).hexdigest(), images, annotations, categories, federated=federated)


def _list(content: dict[str, Any], key: str, name: str) -> list[Any]:
    if key not in content:
        raise InputError(f'{name}: not a COCO instance annotation file: the key "{key}" is missing')
    if not isinstance(content[key], list):
        raise InputError(f'{name}: "{key}": expected a list, found {describe(content[key])}')
    return content[key]


def _by_id(entries: Any, where: str) -> dict[int, Any]:
    result: dict[int, Any] = {}
    for entry in entries:
        if entry.id in result:
            raise InputError(f"{where}: the id {entry.id} occurs more than once; ids must be unique")
        result[entry.id] = entry
    return result


def _integer(entry: Any, key: str, where: str, *, minimum: int = 0, maximum: int = _MAX_ID) -> int:
    if type(entry) is not dict:
        raise InputError(f"{where}: expected an object, found {describe(entry)}")
    value = entry.get(key)
    if type(value) is not int or not minimum <= value <= maximum:
        found = describe(value) if key in entry else "no such key"
        limit = f"of at least {minimum}" if maximum == _MAX_ID else f"in {minimum}..{maximum}"
        raise InputError(f'{where}: "{key}": expected an integer {limit}, found {found}')
    return value


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if type(value) is not str or not value:
        raise InputError(f'{where}: "{key}": expected text, found {describe(value) if key in entry else "no such key"}')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f'{where}: "{key}": not valid Unicode: {describe(value)}') from error
    return value


def _flag(entry: dict[str, Any], key: str, where: str) -> bool:
    value = entry.get(key, 0)
    if value is not True and value is not False and not (type(value) is int and value in (0, 1)):
        raise InputError(f'{where}: "{key}": expected 0 or 1, found {describe(value)}')
    return bool(value)


def _image(entry: Any, where: str) -> CocoImage:
    image_id = _integer(entry, "id", where)
    where = f"{where} (id {image_id})"
    if "file_name" in entry or "coco_url" not in entry:
        file_name = _text(entry, "file_name", where)
    else:  # LVIS: the images of COCO, from its training and validation folders mixed
        file_name = "/".join(_text(entry, "coco_url", where).split("/")[-2:]) or "/"
    parts = pathlib.PureWindowsPath(file_name).parts  # understands both separators and drive letters
    if ".." in parts or file_name[0] in "/\\" or ":" in file_name[:3] or "\0" in file_name:
        raise InputError(
            f'{where}: "file_name": expected a relative path inside the image folder, found {describe(file_name)}'
        )
    height = _integer(entry, "height", where, minimum=1)
    width = _integer(entry, "width", where, minimum=1)
    if height * width > MAX_PIXELS:
        raise InputError(f"{where}: height x width is over the limit of {MAX_PIXELS:,} pixels")
    return CocoImage(image_id, file_name, height, width)


def _category(entry: Any, where: str) -> CocoCategory:
    category_id = _integer(entry, "id", where)
    return CocoCategory(category_id, _text(entry, "name", f"{where} (id {category_id})"))


def _annotation(
    entry: Any, name: str, index: int, images: dict[int, CocoImage], categories: dict[int, CocoCategory]
) -> CocoAnnotation:
    where = f"{name}: annotations[{index}]"
    annotation_id = _integer(entry, "id", where)
    where = f"{where} (id {annotation_id})"
    image_id = _integer(entry, "image_id", where)
    category_id = _integer(entry, "category_id", where)
    if image_id not in images:
        raise InputError(f'{where}: "image_id": {image_id} is not the id of an image in this file')
    if category_id not in categories:
        raise InputError(f'{where}: "category_id": {category_id} is not the id of a category in this file')
    bbox = entry.get("bbox")
    if type(bbox) is not list or len(bbox) != 4 or not all(map(_is_coordinate, bbox)) or bbox[2] < 0 or bbox[3] < 0:
        found = describe(bbox) if "bbox" in entry else "no such key"
        raise InputError(f'{where}: "bbox": expected finite numbers [x, y, width, height], found {found}')
    area = entry.get("area")
    if area is not None and not (type(area) in (int, float) and 0 <= area <= _MAX_COORDINATE**2):
        raise InputError(f'{where}: "area": expected a finite number of at least 0, found {describe(area)}')
    segmentation = entry.get("segmentation")
    if segmentation is not None:
        image = images[image_id]
        if type(segmentation) is list:
            check_polygons(segmentation, where)
        elif type(segmentation) is dict:
            check_rle_size(segmentation, image.height, image.width, where)
        else:
            raise InputError(
                f"{where}: segmentation: expected polygons or an RLE object, found {describe(segmentation)}"
            )
    return CocoAnnotation(
        id=annotation_id,
        image_id=image_id,
        category_id=category_id,
        bbox=(float(bbox[0]), float(bbox[1]), float(bbox[2]), float(bbox[3])),
        area=None if area is None else float(area),
        iscrowd=_flag(entry, "iscrowd", where),
        isimpossible=_flag(entry, "isimpossible", where),
        segmentation=segmentation or None,
    )


def _is_coordinate(value: Any) -> bool:
    """A number, not a bool, of bearable size; comparing is also what refuses NaN, infinities and huge integers."""
    return type(value) in (float, int) and -_MAX_COORDINATE <= value <= _MAX_COORDINATE
