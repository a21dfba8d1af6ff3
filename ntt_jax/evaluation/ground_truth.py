"""What detections are measured against: the objects of the chosen classes in the evaluated images (METHOD stage 3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ntt_jax.datasets.class_lists import is_coco20i_fold
from ntt_jax.datasets.dataset import CocoAnnotation, CocoCategory, CocoDataset
from ntt_jax.datasets.lvis import FederatedLists
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.rle import Rle, rle_areas
from ntt_jax.notes import Notes

KINDS = ("bbox", "segm")
"""What is compared: boxes or masks. COCOeval's `iouType`."""


@dataclass(frozen=True)
class GroundTruth:
    """What detections are measured against: annotations of the chosen classes in the evaluated images.

    image_ids: ascending. categories: ascending by id, a class index each. entries: COCO annotations with compressed
    masks, ids counted from 1. kinds: "bbox" and "segm", or only "bbox". protocol: whose rules are applied, "coco",
    "coco20i", "voc" or "lvis"; federated: what LVIS's need beside. notes: which objects are not compared by mask, as
    they have none.
    """

    image_ids: tuple[int, ...]
    categories: tuple[CocoCategory, ...]
    entries: tuple[dict[str, Any], ...]
    kinds: tuple[str, ...]
    protocol: str = "coco"
    federated: FederatedLists | None = None
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[dict[str, Any], ...]:
        """The entries that are compared by this kind: by masks those that have one."""
        if kind != "segm":
            return self.entries
        return tuple(entry for entry in self.entries if "segmentation" in entry)


def prepare_ground_truth(
    dataset: CocoDataset,
    categories: Sequence[CocoCategory],
    image_ids: Iterable[int] | None = None,
    *,
    kinds: Sequence[str] | None = None,
) -> GroundTruth:
    """Gather and check the ground truth. Do this before a long run: it decodes every mask that will be needed.

    image_ids: the evaluated images, with or without annotations; None takes all of the file. Crowds are kept:
    COCOeval ignores what matches them. An annotation without "area" gets that of its mask (of its box without one).
    kinds: None takes boxes and masks, and boxes alone where the file has no masks, or VOC only some. An object without
    a (sound) mask among others is left out where masks are compared; `notes` says so.
    The rules are the data set's own; COCO's are joined by the semantic mIoU when the classes are a COCO-20i fold.

    Raises `InputError` if an image is not in the file, or "segm" is asked for and no object has a mask.
    """
    ids = sorted(set(dataset.images if image_ids is None else image_ids))
    ordered = tuple(sorted(categories, key=lambda category: category.id))
    if not ids or not ordered or (kinds is not None and (not kinds or not set(kinds) <= set(KINDS))):
        raise InputError("evaluation: expected at least one image and one class, and bbox or segm or both")
    chosen = {category.id for category in ordered}
    annotations: list[CocoAnnotation] = []
    for image_id in ids:
        if image_id not in dataset.images:
            raise InputError(f"{show_path(dataset.path)}: has no image {image_id} to evaluate")
        annotations += [a for a in dataset.image_annotations[image_id] if a.category_id in chosen]
    wanted = kinds is not None
    if kinds is None:
        with_mask = sum(a.segmentation is not None for a in annotations)
        enough = len(annotations) if dataset.protocol == "voc" else 1
        kinds = KINDS if with_mask >= enough or not annotations else ("bbox",)
    notes = Notes()
    rles, lacking = _masks(dataset, annotations) if "segm" in kinds else ({}, [])
    # VOC's and LVIS's rules judge boxes and masks of the same objects.
    left_out = bool(rles) and dataset.protocol != "coco"
    for what, where in lacking:
        notes.add(f"{what}, {'left out' if left_out else 'compared by box only'}", where)
    if annotations and all(annotation.iscrowd for annotation in annotations):
        what = "objects, all of them marked as crowds (as CVAT and datumaro write masks): nothing is measured"
        first = f"annotation {annotations[0].id}"
        notes.add(what, first, 'set "iscrowd" to 0 where each is one object', count=len(annotations))
    if "segm" in kinds and annotations and not rles:
        if wanted:
            raise InputError(f"{show_path(dataset.path)}: no object has a sound mask: {notes.lines()[0]}")
        kinds = ("bbox",)
    if "segm" in kinds and len(rles) < len(annotations) and dataset.protocol != "coco":
        if dataset.protocol == "voc":
            raise InputError(f"{show_path(dataset.path)}: {notes.lines()[0]}; VOC's rules compare all or none")
        annotations = [annotation for annotation in annotations if annotation.id in rles]
    entries: list[dict[str, Any]] = []
    for annotation in annotations:
        entry: dict[str, Any] = {
            # COCOeval marks a match by the annotation's id and takes 0 for "no match": the file's ids cannot serve.
            "id": len(entries) + 1,
            "image_id": annotation.image_id,
            "category_id": annotation.category_id,
            "bbox": list(annotation.bbox),
            "iscrowd": int(annotation.iscrowd),
            "difficult": int(dataset.protocol == "voc" and annotation.isimpossible),
        }
        area = annotation.area
        if annotation.id in rles:
            entry["segmentation"] = rles[annotation.id]
            area = float(rle_areas([entry["segmentation"]])[0]) if area is None else area
        entry["area"] = annotation.bbox[2] * annotation.bbox[3] if area is None else area
        entries.append(entry)
    fold = dataset.protocol == "coco" and "segm" in kinds and is_coco20i_fold({category.name for category in ordered})
    return GroundTruth(
        tuple(ids),
        ordered,
        tuple(entries),
        tuple(kind for kind in KINDS if kind in kinds),
        "coco20i" if fold else dataset.protocol,
        dataset.federated,
        notes.lines(),
    )


def _masks(dataset: CocoDataset, annotations: Sequence[CocoAnnotation]) -> tuple[dict[int, Rle], list[tuple[str, str]]]:
    """The sound masks by annotation id; of each object without one what it is, and where."""
    found: dict[int, Rle] = {}
    lacking: list[tuple[str, str]] = []
    for annotation in annotations:
        if annotation.segmentation is None:
            lacking.append(("objects without a mask", f"annotation {annotation.id}"))
            continue
        try:
            found[annotation.id] = dataset.rle(annotation)
        except InputError as error:
            if callable(annotation.segmentation):  # a file of its own, which can be mended
                raise
            lacking.append(("objects with an unsound mask", str(error)))
    return found, lacking
