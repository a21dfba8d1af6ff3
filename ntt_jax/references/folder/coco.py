"""COCO's JSON: masks, or boxes where there is no mask. Its images lie where their names say, or anywhere in the folder.

A reference has the annotation's own box, so that the memory is that of `ntt-jax memory`, bit for bit.
"""

from functools import partial
from pathlib import Path, PurePosixPath

from ntt_jax.datasets.coco import MAX_ANNOTATION_BYTES, parse_coco
from ntt_jax.datasets.dataset import CocoAnnotation, CocoDataset, CocoImage
from ntt_jax.datasets.image_files import names_in_folder
from ntt_jax.errors import InputError
from ntt_jax.files import describe, read_bytes
from ntt_jax.images.rle import rle_areas
from ntt_jax.images.tree import Tree
from ntt_jax.references.folder.found import FoundReference, Lazy, Part, mentions
from ntt_jax.references.folder.labelme import is_labelme

_NAMES = 16
"""Names that an image's written one may stand for, the longest first, that are looked for."""


def read(tree: Tree) -> Part:
    """References of all annotation files of this kind, by file, then in its order."""
    part = Part()
    ids: list[dict[str, int]] = []
    known: set[object] = set()  # exports of a part and of the whole lie side by side
    for file in tree.of(".json"):
        try:
            data = read_bytes(file, max_bytes=MAX_ANNOTATION_BYTES, what="annotation file")
            if mentions(data, "annotations", "categories", "images") and not is_labelme(data):
                ids.append(_read_file(file, data, tree, part, known))
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: "))
    if ids and all(one == ids[0] for one in ids):
        part.category_ids = ids[0]
    return part


def _read_file(file: Path, data: bytes, tree: Tree, part: Part, known: set[object]) -> dict[str, int]:
    dataset = parse_coco(data, file)
    found: dict[int, tuple[Path, CocoImage] | InputError] = {}
    for note in dataset.notes:
        part.remark(file, note)
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
            reference = _reference(dataset, annotation, *photo, file, number)
            mask = annotation.segmentation
            key = (reference.photo, reference.class_name, annotation.bbox, repr(mask) if mask is not None else None)
            if key in known:
                raise InputError("the same object as another one, taken once")
            known.add(key)
            part.references.append(reference)
        except InputError as error:
            part.leave_out(file, str(error).removeprefix(f"{file}: annotation {annotation.id}: "), number)
    # Roboflow's root category may have the name of the class below it, and holds nothing.
    used = {annotation.category_id for annotation in dataset.annotations.values()}
    categories = [one for one in dataset.categories.values() if one.id in used]
    names = [category.name for category in categories]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two of its categories are called {describe(twice)}; rename one")
    return {category.name: category.id for category in (*dataset.categories.values(), *categories)}


def _photo(file: Path, image: CocoImage, tree: Tree) -> tuple[Path, CocoImage] | InputError:
    """The photo of an image entry, and the entry with its size."""
    near = (file.parent, file.parent / "images", file.parent.parent, file.parent.parent / "images", *tree.folders)
    written = [PurePosixPath(name) for name in names_in_folder(image.written or image.file_name)[:_NAMES]]
    names = [PurePosixPath(image.file_name), *(name for name in written if tree.named(name.stem))]
    photo = next((there for folder in near if (there := tree.photo_at(folder / names[0]))), None)
    photo = photo or next((there for name in names if (there := tree.photo_ending(name.parts))), None)
    stems = dict.fromkeys(name.stem for name in names)
    photo = photo or next((there for stem in stems if (there := tree.photo_named(stem, file))), None)
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
