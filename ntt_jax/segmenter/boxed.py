"""Boxes that people give beside images, in whatever form the images come. Host only."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ntt_jax.config import DetectConfig
from ntt_jax.detection.boxes import BoxedImage, as_boxes, inside
from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.segmenter.inputs import is_image


def boxes_beside(images: Any, boxes: Any, scores: Any) -> Iterator[np.ndarray] | None:
    """Rows `[n, 5]` (`detection.boxes`) of the boxes that belong to each image; None without boxes.

    boxes, scores: of one image an array, of several as many arrays, of an iterator one of arrays. scores may be None.
    Raises `InputError` for what does not fit; of an iterator at the turn of an image.
    """
    if boxes is None:
        if scores is not None:
            raise InputError("box_scores: given without boxes")
        return None
    if is_image(images):
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            raise InputError("boxes: not for a folder; give a list of its photos, and a list of their boxes")
        return iter([as_boxes(boxes, scores)])
    for name, given in (("boxes", boxes), ("box_scores", scores)):
        if given is not None and (not isinstance(given, Iterable) or isinstance(given, (str, bytes, dict))):
            raise InputError(f"{name}: expected one array for each image, found {describe(given)}")
        if isinstance(images, (list, tuple)) and given is not None and len(given := list(given)) != len(images):
            raise InputError(f"{name}: expected one array for each of {len(images)} images, found {len(given)}")
    return _each(boxes, scores)


def _each(boxes: Iterable[Any], scores: Iterable[Any] | None) -> Iterator[np.ndarray]:
    ranks = None if scores is None else iter(scores)
    for index, one in enumerate(boxes):
        rank = None
        if ranks is not None and (rank := next(ranks, None)) is None:
            raise InputError(f"box_scores: image {index} has none")
        yield as_boxes(one, rank, f"image {index}: boxes")


def boxed_image(image: np.ndarray, rows: Iterator[np.ndarray], config: DetectConfig) -> BoxedImage:
    """An image with the next rows.

    Raises `InputError` if there are none, one lies outside the image, or more than `max_proposals` have equal scores:
    then there are no best ones.
    """
    found = next(rows, None)
    if found is None:
        raise InputError("boxes: there are fewer than images")
    height, width = image.shape[:2]
    cut = inside(found, height, width)
    if (outside := np.flatnonzero((cut[:, 2:4] <= cut[:, :2]).any(axis=1))).size:
        where = [round(float(v), 2) for v in found[outside[0], :4]]
        raise InputError(f"boxes: box {outside[0]} lies outside its image of {width} x {height} pixels: {where}")
    if len(found) > config.max_proposals and np.unique(found[:, 4]).size == 1:
        raise InputError(
            f"boxes: {len(found)}, but max_proposals is {config.max_proposals}; give box_scores, and the best are "
            "taken, or a Segmenter a larger max_proposals"
        )
    return BoxedImage(image, cut)
