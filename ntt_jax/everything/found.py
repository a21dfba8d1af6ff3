"""What was found in an image without classes: masks as run lengths, and what SAM 2 says of each. Host only."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import coco_results
from ntt_jax.images.rle import Rle, decode_rle, rle_areas

CLASS = "object"
"""The name of the one class, id 1, where a format wants one."""


@dataclass(frozen=True, eq=False, repr=False)
class FoundMasks:
    """All masks of one image, in the order of SAM 2's generator: by predicted IoU; with crops, the smaller crops first.

    detections: masks as run lengths, boxes, and predicted IoUs as scores; every label is 0.
    points: `[n, 2]` float32, the prompt (x, y) of each mask in pixels. stability: `[n]` float32. crop_boxes: `[n, 4]`
    int, x1, y1, x2, y2 of the part of the image that it was found in, the end not included.
    """

    detections: HostDetections
    points: np.ndarray
    stability: np.ndarray
    crop_boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        return f"FoundMasks({self.width} x {self.height} pixels, {len(self)} masks)"

    @property
    def height(self) -> int:
        """Of the image, in pixels."""
        return self.detections.height

    @property
    def width(self) -> int:
        """Of the image, in pixels."""
        return self.detections.width

    @property
    def boxes(self) -> np.ndarray:
        """`[n, 4]` float32 x1, y1, x2, y2 in pixels, corners inclusive."""
        return self.detections.boxes

    @property
    def predicted_ious(self) -> np.ndarray:
        """`[n]` float32, what SAM 2 expects of each mask."""
        return self.detections.scores

    @property
    def rles(self) -> tuple[Rle, ...]:
        """The n masks as COCO run lengths."""
        return self.detections.rles

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """Pixels of each mask, int64 `[n]`."""
        return rle_areas(self.rles)

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """All masks, bool `[n, H, W]`; decoded when first asked for. `rles` hold them in far less memory."""
        masks = np.zeros((len(self), self.height, self.width), np.bool_)
        for mask, rle in zip(masks, self.rles, strict=True):
            mask[:] = decode_rle(rle)
        return masks

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of COCO's results format: image_id, category_id 1, bbox x y w h, score, segmentation."""
        if type(image_id) is not int or image_id < 0:
            raise InputError(f"to_coco: expected the image's id, an integer of at least 0, found {image_id!r:.60}")
        return coco_results(self.detections, image_id, [1])

    def to_sam(self) -> list[dict[str, Any]]:
        """As SAM 2's generator returns them with `output_mode="coco_rle"`."""
        x1, y1, x2, y2 = self.boxes.T.tolist() if len(self) else [[]] * 4
        boxes = [[a, b, c - a, d - b] for a, b, c, d in zip(x1, y1, x2, y2, strict=True)]
        crops = [[int(a), int(b), int(c - a), int(d - b)] for a, b, c, d in self.crop_boxes]
        rows = zip(
            self.rles,
            self.areas.tolist(),
            boxes,
            self.predicted_ious.tolist(),
            self.points.tolist(),
            self.stability.tolist(),
            crops,
            strict=True,
        )
        names = ("segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box")
        return [
            dict(zip(names, (rle, area, box, iou, [point], stable, crop), strict=True))
            for rle, area, box, iou, point, stable, crop in rows
        ]

    def to_supervision(self) -> Any:
        """`supervision.Detections` with xyxy, mask and confidence, the predicted IoU.

        Raises `InputError` if that library is not installed; nothing else here needs it.
        """
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(f'to_supervision needs the library: "pip install supervision" ({error})') from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=self.predicted_ious,
            class_id=np.zeros(len(self), int),
            data={"stability_score": self.stability, "class_name": np.array([CLASS] * len(self), dtype=str)},
        )
