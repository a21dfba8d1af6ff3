"""`TiledPredictor`: the compiled target pass over the tiles of large images, as if over the images.

    image    as it is, or `factor` times smaller where it is very large      one view
             its tiles, all of one size                                      one view each
    views    `Predictor`, which takes any number of images of any size       compiled once
    merge    run lengths of all views -> detections of the image             host

The tiles of an image are parts of its own array. Masks are run lengths from the moment they leave the device: no more
bitmaps exist at once than `Predictor` draws for one view.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.tiles.layout import Tile, TileConfig, check_tiles, tiles_of
from ntt_jax.tiles.merge import gather, merged

WHOLE_SIDE = 4096
"""Longest side, in pixels, at which a whole image is looked at; its masks have 256 a side, however large it is."""
_BLANK = np.zeros((8, 8, 3), np.uint8)  # fills a batch up


@dataclass(frozen=True)
class _Plan:
    """Views of one image that have been handed to the predictor: the whole image `factor` times smaller, and tiles."""

    height: int
    width: int
    factor: int
    tiles: list[Tile]


class TiledPredictor:
    """Called as `Predictor`: images in, the detections of each out, in order. Small images go through untouched.

    predictor: the compiled pass, which is not compiled anew. config: how images are cut. An image gets at most
    `max_detections` of the method's constants, as each of its views does.
    """

    def __init__(self, predictor: Predictor, config: TileConfig):
        self._predictor = predictor
        self._tiles = config

    def __call__(self, images: Iterable[np.ndarray]) -> Iterator[HostDetections]:
        """Detections of each image `[H, W, 3]` uint8 RGB, lazily and in order; errors as `Predictor`.

        Images are taken in groups of one batch, whose views are filled up to whole batches: an image's views lie in the
        same places of the same batches wherever a stopped run begins again.
        """
        plans: deque[_Plan | None] = deque()
        found: list[HostDetections] = []
        for one in self._predictor(self._views(images, plans)):
            if plans[0] is None:
                plans.popleft()
                continue
            found.append(one)
            plan = plans[0]
            if len(found) == 1 + len(plan.tiles):
                plans.popleft()
                yield self._merge(plan, found)
                found = []

    def group(self, images: Sequence[np.ndarray]) -> list[HostDetections]:
        """Detections of images, when they are there; threads may call it at the same time."""
        return list(self(images))

    def with_prototypes(self, prototypes: Any, negatives: Any = None) -> "TiledPredictor":
        """As `Predictor.with_prototypes`."""
        return TiledPredictor(self._predictor.with_prototypes(prototypes, negatives), self._tiles)

    def _views(self, images: Iterable[np.ndarray], plans: "deque[_Plan | None]") -> Iterator[np.ndarray]:
        size, views = self._predictor.batch_size, 0
        for number, image in enumerate(images, 1):
            if getattr(image, "ndim", 0) != 3 or not image.size:
                yield image  # which the predictor refuses
            plan = self._plan(image.shape[0], image.shape[1])
            plans.append(plan)
            yield _smaller(image, plan.factor)
            for left, top, right, bottom in plan.tiles:
                yield image[top:bottom, left:right]
            views += 1 + len(plan.tiles)
            if number % size == 0:
                for _ in range(-views % size):
                    plans.append(None)
                    yield _BLANK
                views = 0

    def _plan(self, height: int, width: int) -> _Plan:
        tiles = tiles_of(height, width, self._tiles, self._predictor.image_size)
        # A strip of a few pixels' height keeps one of them.
        factor = min(-(-max(height, width) // WHOLE_SIDE), height, width) if tiles else 1
        return _Plan(height, width, factor, tiles)

    def _merge(self, plan: _Plan, found: list[HostDetections]) -> HostDetections:
        whole, *parts = found
        if not plan.tiles:
            return whole
        views = gather(plan.height, plan.width, whole, plan.factor, plan.tiles, parts, self._predictor.image_size // 4)
        return merged(views, self._tiles.merge_threshold, self._predictor.config.max_detections)


def tiled(predictor: Any, config: TileConfig | None) -> Any:
    """The predictor over tiles, or itself where there are to be none. Raises `InputError` as `check_tiles`."""
    if config is None:
        return predictor
    check_tiles(config, predictor.config)
    return TiledPredictor(predictor, config)


def _smaller(image: np.ndarray, factor: int) -> np.ndarray:
    """The mean of every factor x factor pixels, `[H // factor, W // factor, 3]` uint8; what is left over goes."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    small = np.empty((height, width, 3), np.uint8)
    for row in range(height):  # one row at a time: sums of a large image would be several times its size
        part = image[row * factor : (row + 1) * factor, : width * factor].reshape(factor, width, factor, 3)
        small[row] = (part.sum(axis=(0, 2), dtype=np.uint32) + factor**2 // 2) // factor**2
    return small
