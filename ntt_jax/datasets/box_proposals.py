"""Boxes of a detector or a proposal network from a file in COCO's results format: prompts in place of points.

`[{"image_id": 42, "bbox": [x, y, width, height], "score": 0.9}, ...]`, in pixels; the score is the objectness, and
"category_id" and whatever else stands there is not looked at. In place of "image_id" there may be "file_name".
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ntt_jax.datasets.coco_entries import Ids, plain_id
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path
from ntt_jax.text import counted

MAX_PROPOSALS_BYTES = 2**30
"""Size limit of a file of boxes: some eight million of them."""
_LARGEST = 1e6  # pixels
_WHAT = "file of boxes"

RowsByImage = dict[Any, np.ndarray]


@dataclass(frozen=True)
class BoxProposals:
    """The boxes of a file, checked. by_id, by_name: by image id or by file name, rows float64 `[n, 5]`: x, y, width,
    height, score. unsound: how many were left out, having a number that is not finite or a side that is not above 0."""

    path: str
    sha256: str
    by_id: RowsByImage
    by_name: RowsByImage
    unsound: int

    def of_images(
        self,
        sizes: Mapping[int, tuple[int, int]],
        names: Mapping[str, int],
        ids: Mapping[int | str, int] | None = None,
    ) -> tuple[dict[int, np.ndarray], list[str]]:
        """The boxes of each image that has any, and in words what was left out or changed.

        Args:
          sizes: height and width of every image, by its id, 0 if not known yet. names: its id by the name of its file.
          ids: by the id that the file has, where that is another.

        Returns:
          By image id rows float32 `[n, 5]`: x1, y1, x2, y2 in pixels, cut at the image's border, and the score. Lines
          for a person.

        Raises:
          InputError: no box is of one of the images.
        """
        images: dict[int, list[np.ndarray]] = {}
        elsewhere = 0
        known = Ids(dict(ids) if ids is not None else {image_id: image_id for image_id in sizes})
        by_name = _with_plain_names(names)
        for rows, place in ((self.by_id, known.find), (self.by_name, by_name.get)):
            for key, found in rows.items():
                image_id = place(key)
                if image_id is None:
                    elsewhere += len(found)
                else:
                    images.setdefault(image_id, []).append(found)
        if not images:
            how = "by image_id (photos without annotations go by file_name)" if self.by_id else "by file_name"
            raise InputError(
                f"{show_path(self.path)}: none of its {counted(elsewhere, 'box', 'boxes')} belongs to the "
                f"{counted(len(sizes), 'image')}; it names images {how}"
            )
        outside, beyond, kept = 0, 0, {}
        for image_id, parts in images.items():
            height, width = sizes[image_id]
            whole = np.concatenate(parts)
            corners = np.concatenate([whole[:, :2], whole[:, :2] + whole[:, 2:4]], axis=1)
            known_size = [width, height] * 2 if height else [np.inf] * 4  # cut when it is known, on the device
            cut = np.clip(corners, 0, known_size)
            there = (cut[:, 2:] > cut[:, :2]).all(axis=1)
            outside += int((~there).sum())
            # Rounded numbers of a file may lie a pixel beyond the border.
            beyond += int((np.abs(cut - corners)[there] > 1).any(axis=1).sum())
            kept[image_id] = np.concatenate([cut, whole[:, 4:]], axis=1)[there].astype(np.float32)
        empty = sum(1 for image_id in sizes if not len(kept.get(image_id, ())))
        lines = [
            said.format(counted(count, noun, plural))
            for count, noun, plural, said in (
                (self.unsound, "box", "boxes", "{} left out: a number is not finite, or a side is not above 0"),
                (outside, "box", "boxes", "{} left out: outside the image"),
                (beyond, "box", "boxes", "{} cut at the border of the image"),
                (elsewhere, "box", "boxes", "{} of other images, not used"),
                (empty, "image", None, "{} without a box: nothing is proposed there"),
            )
            if count
        ]
        return kept, [f"{show_path(self.path)}: {line}" for line in lines]


def load_box_proposals(path: PathLike) -> BoxProposals:
    """The boxes of a file.

    Raises `InputError`, naming file and entry, for what is no such file: an entry without an image, four numbers and a
    score. Boxes whose numbers no image can have are left out and counted.
    """
    name = show_path(path)
    data = read_bytes(path, max_bytes=MAX_PROPOSALS_BYTES, what=_WHAT)
    content = parse_json(data, path, what=_WHAT)
    if not isinstance(content, list):
        raise InputError(f"{name}: expected a list of boxes in COCO's results format, found {describe(content)}")
    by_id: dict[Any, list[list[float]]] = {}
    by_name: dict[Any, list[list[float]]] = {}
    unsound = 0
    for i, entry in enumerate(content):
        if type(entry) is not dict:
            raise InputError(f"{name}: [{i}]: expected an object, found {describe(entry)}")
        box: Any = entry.get("bbox")
        score: Any = entry.get("score")
        if type(box) is not list or len(box) != 4 or not all(type(v) in (int, float) for v in box):
            raise InputError(f"{name}: [{i}]: bbox: expected x, y, width, height, found {describe(box)}")
        if type(score) not in (int, float):
            raise InputError(f"{name}: [{i}]: score: expected a number, the objectness, found {describe(score)}")
        image, rows = entry.get("image_id"), by_id
        if image is None and type(entry.get("file_name")) is str:
            image, rows = entry["file_name"], by_name
        elif (image := plain_id(image)) is None:
            found = describe(entry.get("image_id"))
            raise InputError(f"{name}: [{i}]: expected an image_id or a file_name, found {found}")
        # Comparing refuses NaN too.
        if not all(-_LARGEST <= v <= _LARGEST for v in (*box, score)) or not min(box[2:]) > 0:
            unsound += 1
        else:
            rows.setdefault(image, []).append([*box, score])
    if not by_id and not by_name:
        raise InputError(f"{name}: holds no box that can be used ({unsound:,} left out)")
    arrays = [{key: np.array(rows, np.float64) for key, rows in group.items()} for group in (by_id, by_name)]
    return BoxProposals(str(path), hashlib.sha256(data).hexdigest(), arrays[0], arrays[1], unsound)


def _with_plain_names(names: Mapping[str, int]) -> dict[str, int]:
    """Images by name, and by the last part of it where no other image has the same."""
    plain: dict[str, set[int]] = {}
    for name, image_id in names.items():
        plain.setdefault(PurePosixPath(name).name, set()).add(image_id)
    return {name: next(iter(found)) for name, found in plain.items() if len(found) == 1} | dict(names)
