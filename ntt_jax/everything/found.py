"""What was found in an image without classes: masks as run lengths, and what SAM 2 says of each. Host only."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.detection.on_host import HostDetections, OfDetections
from ntt_jax.evaluation.results import coco_results, require_image_id
from ntt_jax.images.rle import rle_areas

CLASS = "object"
"""The name of the one class, id 1, where a format wants one."""


@dataclass(frozen=True, eq=False, repr=False)
class FoundMasks(OfDetections):
    """All masks of one image, in the order of SAM 2's generator: by predicted IoU; with crops, the smaller crops first.

    detections: masks as run lengths, boxes, and predicted IoUs as scores; every label is 0.
    points: `[n, 2]` float32, the prompt (x, y) of each mask in pixels. stability: `[n]` float32. crop_boxes: `[n, 4]`
    int, x1, y1, x2, y2 of the part of the image that it was found in, the end not included.
    """

    detections: HostDetections
    points: np.ndarray
    stability: np.ndarray
    crop_boxes: np.ndarray

    def __repr__(self) -> str:
        return f"FoundMasks({self.width} x {self.height} pixels, {len(self)} masks)"

    @property
    def predicted_ious(self) -> np.ndarray:
        """`[n]` float32, what SAM 2 expects of each mask."""
        return self.detections.scores

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """Pixels of each mask, int64 `[n]`."""
        return rle_areas(self.rles)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of COCO's results format: image_id, category_id 1, bbox x y w h, score, segmentation."""
        require_image_id(image_id, "to_coco")
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
        class_names = np.array([CLASS] * len(self), dtype=str)
        return self._to_supervision({"stability_score": self.stability, "class_name": class_names})
