"""COCO's JSON: masks, or boxes where there is no mask. Its images lie where their names say, or anywhere in the folder.

A reference has the annotation's own box, so that the memory is that of `ntt-jax memory`, bit for bit.
"""

from functools import partial
from pathlib import Path, PurePosixPath

from ntt_jax.datasets.coco import MAX_ANNOTATION_BYTES, parse_coco
from ntt_jax.datasets.dataset import CocoAnnotation, CocoDataset, CocoImage
from ntt_jax.errors import InputError
from ntt_jax.files import describe, read_bytes
from ntt_jax.images.rle import rle_areas
from ntt_jax.images.tree import Tree
from ntt_jax.references.folder.found import FoundReference, Lazy, Part
from ntt_jax.references.folder.labelme import is_labelme


def read(tree: Tree) -> Part:
    """References of all annotation files of this kind, by file, then in its order."""
    part = Part()
    ids: list[dict[str, int]] = []
    for file in tree.of(".json"):
        try:
            data = read_bytes(file, max_bytes=MAX_ANNOTATION_BYTES, what="annotation file")
            if b'"annotations"' in data and b'"categories"' in data and b'"images"' in data and not is_labelme(data):
                ids.append(_read_file(file, data, tree, part))
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: "))
    if ids and all(one == ids[0] for one in ids):
        part.category_ids = ids[0]
    return part


def _read_file(file: Path, data: bytes, tree: Tree, part: Part) -> dict[str, int]:
    dataset = parse_coco(data, file)
    found: dict[int, tuple[Path, CocoImage] | InputError] = {}
    for note in dataset.notes:
        part.leave_out(file, note)
    for number, annotation in enumerate(dataset.annotations.values(), 1):
        try:
            if annotation.iscrowd or annotation.isimpossible:
                raise InputError("a crowd" if annotation.iscrowd else "marked impossible")
            image = dataset.images[annotation.image_id]
            if image.id not in found:
                found[image.id] = _photo(file, image, tree)
            photo = found[image.id]
            if isinstance(photo, InputError):
                raise photo
            part.references.append(_reference(dataset, annotation, *photo, file, number))
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: annotation {annotation.id}: "), number)
    names = [category.name for category in dataset.categories.values()]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two of its categories are called {describe(twice)}; rename one")
    return {category.name: category.id for category in dataset.categories.values()}


def _photo(file: Path, image: CocoImage, tree: Tree) -> tuple[Path, CocoImage] | InputError:
    """The photo of an image entry, and the entry with its size."""
    name = PurePosixPath(image.file_name)
    near = (file.parent, file.parent / "images", file.parent.parent, file.parent.parent / "images", *tree.folders)
    photo = next((there for folder in near if (there := tree.photo_at(folder / name))), None)
    photo = photo or tree.photo_ending(name.parts) or tree.photo_named(name.stem, file)
    if photo is None:
        return InputError("its photo is not in the folders given, or there are several of this name")
    try:
        if not image.height:
            height, width = tree.size(photo)
            return photo, CocoImage(image.id, image.file_name, height, width, image.written)
        tree.check_size(photo, image.height, image.width)
    except InputError as error:
        return error
    return photo, image


def _reference(
    dataset: CocoDataset, annotation: CocoAnnotation, photo: Path, image: CocoImage, file: Path, number: int
) -> FoundReference:
    name = dataset.categories[annotation.category_id].name
    if min(annotation.bbox[2:]) <= 0:
        raise InputError("a box without a size")
    if annotation.segmentation is None:
        return FoundReference(name, photo, file, photo, None, annotation.bbox, number)
    sized = dataset if image is dataset.images[image.id] else dataset.with_sizes({image.id: image})
    if not rle_areas([sized.rle(annotation)])[0]:
        raise InputError("a mask without a pixel")
    lazy = Lazy(partial(sized.mask, annotation), {"annotations": file.name, "annotation": annotation.id})
    return FoundReference(name, photo, file, photo, lazy, annotation.bbox, number)
