"""COCO annotations that give boxes or points in place of masks, and the same annotations with masks.

Everything that the file says beside the masks is kept as it is.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntt_jax.compiled.prompt_masker import Prompt
from ntt_jax.datasets.coco import MAX_ANNOTATION_BYTES, parse_coco
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path
from ntt_jax.images.rle import Rle, rle_areas, rle_boxes

_WHAT = "annotation file"


@dataclass(frozen=True)
class PromptedAnnotations:
    """content: the file's JSON. dataset: the same, checked. sha256: of the file.

    prompts: for each image with something to do, position in `content["annotations"]` and prompt. kept: annotations
    that keep the mask they have. crowds: of which no mask is made.
    """

    content: dict[str, Any]
    dataset: CocoDataset
    sha256: str
    prompts: Mapping[int, tuple[tuple[int, Prompt], ...]]
    kept: int
    crowds: int

    def names(self, positions: Sequence[int]) -> list[str]:
        """The classes of the annotations at these positions."""
        dataset = self.dataset
        places = range(len(dataset.annotations)) if dataset.positions is None else dataset.positions
        by_position = dict(zip(places, dataset.annotations.values(), strict=True))
        return [dataset.categories[by_position[i].category_id].name for i in positions]


def load_prompted(path: PathLike, *, replace: bool = False) -> PromptedAnnotations:
    """Read COCO annotations whose entries have "bbox", or "points" as [[x, y], ...] or [[x, y, label], ...], or both.

    Labels are 1 on the object (the default), 0 beside it. Annotations that have a segmentation keep it, unless
    `replace`; crowds keep theirs always.

    Raises `InputError`: as `load_coco`, or an annotation has neither box nor points, or a box without a size.
    """
    data = read_bytes(path, max_bytes=MAX_ANNOTATION_BYTES, what=_WHAT)
    sha256, name = hashlib.sha256(data).hexdigest(), show_path(path)
    content = parse_json(data, path, what=_WHAT)
    dataset = parse_coco(data, path, pointed=True)
    prompts: dict[int, list[tuple[int, Prompt]]] = {}
    kept = crowds = 0
    if content["annotations"] and not dataset.annotations:
        raise InputError(f"{name}: none of its annotations can be used: {dataset.notes[-1]}")
    positions = range(len(dataset.annotations)) if dataset.positions is None else dataset.positions
    for i, annotation in zip(positions, dataset.annotations.values(), strict=True):
        entry = content["annotations"][i]
        if annotation.iscrowd:
            crowds += 1
        elif annotation.segmentation is not None and not replace:
            kept += 1
        else:
            try:
                points = entry.get("points") or []
                box = annotation.bbox if any(annotation.bbox) or not points else None
                prompts.setdefault(annotation.image_id, []).append((i, _prompt(box, points)))
            except InputError as error:
                raise InputError(f"{name}: annotation {annotation.id}: {error}") from None
    by_image = {image_id: tuple(found) for image_id, found in prompts.items()}
    return PromptedAnnotations(content, dataset, sha256, by_image, kept, crowds)


def _prompt(box: tuple[float, float, float, float] | None, points: Any) -> Prompt:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) in (2, 3) for p in points):
        raise InputError(f'"points": expected [[x, y], ...] or [[x, y, label], ...], found {describe(points)}')
    labels = tuple(p[2] if len(p) == 3 else 1 for p in points)
    return Prompt(box, tuple((p[0], p[1]) for p in points), labels)


def with_masks(prompted: PromptedAnnotations, masks: Mapping[int, tuple[Rle, float]]) -> dict[str, Any]:
    """The file's content with masks: by position in its annotations, run lengths and predicted IoU.

    Sets "segmentation", "area" and "predicted_iou", and "bbox" (the mask's own) where there was none. An annotation
    whose mask is empty or was not made stays without one.
    """
    content = copy.copy(prompted.content)
    content["annotations"] = list(content["annotations"])
    for i, (rle, predicted_iou) in masks.items():
        area = int(rle_areas([rle])[0])
        if area:
            entry = {**content["annotations"][i], "segmentation": dict(rle), "area": area}
            entry["predicted_iou"] = round(predicted_iou, 4)
            entry.setdefault("bbox", [float(v) for v in rle_boxes([rle])[0]])
            content["annotations"][i] = entry
    return content
