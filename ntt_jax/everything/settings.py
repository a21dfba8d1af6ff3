"""What a `MaskGenerator` keeps, under the names that SAM 2's automatic generator has for it. Host only, without JAX
and NumPy."""

import dataclasses
import math
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from ntt_jax.config import Checked, Limits, constant
from ntt_jax.errors import InputError


@dataclass(frozen=True)
class MaskSettings(Checked):
    """Settings of `sam2.automatic_mask_generator.SAM2AutomaticMaskGenerator`, with its names and defaults.

    points_per_side: of the grid of points; three masks each. pred_iou_thresh: masks whose predicted IoU is not above it
    are dropped. stability_score_thresh: so are masks whose stability is below it: the pixels with a logit above
    +stability_score_offset as a share of those above -stability_score_offset.
    box_nms_thresh: of two masks whose boxes' IoU is above it, the one with the lower predicted IoU is dropped.
    crop_n_layers: layer i of so many has 2^i x 2^i overlapping crops of the image, each looked at by itself.
    crop_overlap_ratio: overlap of the crops of layer 1 as a part of the image's short side; in layer i 2^(i - 1) times
    less. crop_n_points_downscale_factor: layer i has points_per_side / factor^i points a side. crop_nms_thresh: as
    box_nms_thresh, between crops; masks of the smaller crop stay.

    Raises `InputError`, naming the setting, for a value that may not be.
    """

    points_per_side: int = constant(32, Limits(int, 1, 256))
    pred_iou_thresh: float = constant(0.8, Limits(float, 0, 1))
    stability_score_thresh: float = constant(0.95, Limits(float, 0, 1))
    stability_score_offset: float = constant(1.0, Limits(float, 0))
    box_nms_thresh: float = constant(0.7, Limits(float, 0, 1))
    crop_n_layers: int = constant(0, Limits(int, 0, 5))
    crop_nms_thresh: float = constant(0.7, Limits(float, 0, 1))
    crop_overlap_ratio: float = constant(512 / 1500, Limits(float, 0, 1))
    crop_n_points_downscale_factor: int = constant(1, Limits(int, 1, 256))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points_of(self.crop_n_layers) < 1:
            raise InputError(
                f"crop_n_points_downscale_factor: {self.crop_n_points_downscale_factor} leaves no point in layer "
                f"{self.crop_n_layers}"
            )

    @classmethod
    def of(cls, settings: "MaskSettings | None", changes: dict[str, Any]) -> "MaskSettings":
        """Settings with single ones replaced by name. Raises `InputError` for a name that is none."""
        known = [setting.name for setting in dataclasses.fields(cls)]
        if unknown := sorted(set(changes) - set(known)):
            raise InputError(f"generate_masks: unknown setting {unknown[0]!r}; known: {', '.join(known)}")
        return dataclasses.replace(settings or cls(), **changes)

    def points_of(self, layer: int) -> int:
        """Points a side of the crops of a layer; layer 0 is the image."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)


class Crop(NamedTuple):
    """A part of an image in pixels: first column and row, and those behind the last; and its layer."""

    left: int
    top: int
    right: int
    bottom: int
    layer: int


def crops_of(height: int, width: int, settings: MaskSettings) -> list[Crop]:
    """The image and the crops of all layers, in the order of SAM 2's generator (`amg.generate_crop_boxes`).

    Parts of crops that lie outside a small image are left out, and crops that lie there wholly.
    """
    crops = [Crop(0, 0, width, height, 0)]
    for layer in range(1, settings.crop_n_layers + 1):
        count = 2**layer
        overlap = int(settings.crop_overlap_ratio * min(height, width) * (2 / count))
        wide, high = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for i, j in product(range(count), range(count)):
            left, top = (wide - overlap) * i, (high - overlap) * j
            if left < width and top < height:
                crops.append(Crop(left, top, min(left + wide, width), min(top + high, height), layer))
    return crops
