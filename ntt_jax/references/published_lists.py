"""References that others have chosen: the published lists of few-shot detection, or every annotation of a file.

cocosplit   seed1/full_box_10shot_dog_trainval.json: COCO annotations, a file for each class and number of shots
vocsplit    seed1/box_10shot_dog_train.txt: paths of images in which all objects of the class are references
a file      COCO annotations, all of them references (the 10_shot.json of CD-FSOD)

Both splits are those of Wang et al., Frustratingly Simple Few-Shot Object Detection (2020); cocosplit was drawn from
COCO 2014 without the 5,000 images that are val2017 now, so all of it is in instances_train2017.json under the same ids.
"""

import pathlib
from collections.abc import Iterable, Sequence

from ntt_jax.datasets.coco import parse_coco
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, read_bytes, show_path
from ntt_jax.references.sampling import ClassReferences, Reference, ReferenceSet, require_shots

MAX_LIST_BYTES = 512 * 1024**2


def read_reference_lists(
    path: PathLike, dataset: CocoDataset, classes: Sequence[CocoCategory], shots: int, *, allow_fewer: bool = False
) -> ReferenceSet:
    """The references of `classes` that a folder of lists, or a COCO file, gives for `dataset`.

    Args:
      path: `cocosplit/seed1`, `vocsplit/seed1` (without the seed: seed 0), or a COCO file.
      shots: references per class; lists of this number are read. Where a VOC list's last image holds more objects than
        are wanted, the first in the XML's order are taken.

    Nothing is sampled, and the rules for sampled references (size, border, one per image) do not apply.

    Raises `InputError`, naming the file, if a class has no list, a list no reference that `dataset` has, more than
    `shots`, or fewer without `allow_fewer`.
    """
    ordered = sorted(classes, key=lambda category: category.id)
    path = pathlib.Path(path)
    if path.is_dir():
        found = {category.id: _published(path, dataset, category, shots) for category in ordered}
    else:
        given = parse_coco(read_bytes(path, max_bytes=MAX_LIST_BYTES, what="reference list"), path)
        found = {category.id: _annotated(given, dataset, category, shots) for category in ordered}
    result = ReferenceSet(
        tuple(ClassReferences(c.id, c.name, found[c.id]) for c in ordered),
        shots,
        annotations_name=dataset.path.replace("\\", "/").rsplit("/", 1)[-1],
        annotations_sha256=dataset.sha256,
    )
    require_shots(result, path, allow_fewer=allow_fewer)
    return result


def _published(folder: pathlib.Path, dataset: CocoDataset, category: CocoCategory, shots: int) -> tuple[Reference, ...]:
    coco = folder / f"full_box_{shots}shot_{category.name}_trainval.json"
    voc = folder / f"box_{shots}shot_{category.name}_train.txt"
    if coco.exists():
        data = read_bytes(coco, max_bytes=MAX_LIST_BYTES, what="reference list")
        return _annotated(parse_coco(data, coco), dataset, category, shots)
    if not voc.exists():
        raise InputError(
            f"{show_path(folder)}: has neither {coco.name!r} nor {voc.name!r}; expected the lists of one seed, which "
            "exist for 1, 2, 3, 5 and 10 shots, of COCO also for 30"
        )
    lines = read_bytes(voc, max_bytes=MAX_LIST_BYTES, what="reference list").decode(errors="replace").split()
    ids = {pathlib.PurePosixPath(image.file_name).stem: image.id for image in dataset.images.values()}
    taken: dict[Reference, None] = {}
    for line in lines:
        image_id = ids.get(pathlib.PurePosixPath(line).stem)
        if image_id is None:
            raise InputError(
                f"{show_path(voc)}: {show_path(dataset.path)} has no image {describe(line)}; give the annotations that "
                "the lists were drawn from (VOC2007+VOC2012/ImageSets/Main/trainval.txt)"
            )
        objects = [a for a in dataset.image_annotations[image_id] if a.category_id == category.id]
        if not objects:
            raise InputError(f"{show_path(voc)}: image {describe(line)} has no {category.name}")
        taken.update(dict.fromkeys(Reference(image_id, entry.id) for entry in objects))
    return tuple(taken)[:shots]


def _annotated(given: CocoDataset, dataset: CocoDataset, category: CocoCategory, shots: int) -> tuple[Reference, ...]:
    """The annotations of one class in `given`, as references in `dataset`."""
    name = show_path(given.path)
    theirs = given.categories.get(category.id)
    if theirs is None or theirs.name != category.name:
        found = f"is {describe(theirs.name)}" if theirs else "does not exist"
        raise InputError(f"{name}: category {category.id} {found}, expected {describe(category.name)}")
    taken = [Reference(a.image_id, a.id) for a in given.annotations.values() if a.category_id == category.id]
    _require_known(taken, dataset, category, name)
    if len(taken) > shots:
        raise InputError(f"{name}: {len(taken)} references of {describe(category.name)}, more than {shots} shots")
    return tuple(taken)


def _require_known(references: Iterable[Reference], dataset: CocoDataset, category: CocoCategory, name: str) -> None:
    for reference in references:
        entry = dataset.annotations.get(reference.annotation_id)
        if entry is None or (entry.image_id, entry.category_id) != (reference.image_id, category.id):
            raise InputError(
                f"{name}: {show_path(dataset.path)} has no {category.name} with annotation id "
                f"{reference.annotation_id} in image {reference.image_id}; give the annotations that the lists were "
                "drawn from (for cocosplit instances_train2017.json)"
            )
