"""The job behind `ntt-jax segment --everything`: all masks of photos, without a memory and without classes."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ntt_jax
from ntt_jax.config import arithmetic
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.everything.found import CLASS
from ntt_jax.everything.generator import MaskGenerator
from ntt_jax.everything.settings import MaskSettings
from ntt_jax.formats import check_formats
from ntt_jax.images.polygons import POLYGON_ERROR
from ntt_jax.images.remote import Address, Location
from ntt_jax.loading import load_sam2
from ntt_jax.runs import inputs
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.models import Compute
from ntt_jax.runs.observer import SILENT, Observer
from ntt_jax.runs.segment_job import segment_photos
from ntt_jax.runs.segment_output import PICTURES, Categories, Shown, check_pictures
from weight_port.files import sha256


@dataclasses.dataclass(frozen=True)
class EverythingPass:
    """All masks of images as a description that a process can be sent, as `TargetPass`. sam2: converted checkpoint."""

    sam2: Path
    settings: MaskSettings

    def load(self, compute: Compute) -> "Masks":
        """What makes the masks."""
        dtype, precision = arithmetic(compute.dtype)
        return Masks(MaskGenerator(load_sam2(self.sam2, dtype), self.settings, matmul_precision=precision))


@dataclasses.dataclass(frozen=True)
class Masks:
    """A generator as the target pass of a job: images in, their masks as detections of one class out, in order."""

    generator: MaskGenerator

    def __call__(self, images: Iterable[np.ndarray]) -> Iterator[HostDetections]:
        return (self.generator(image).detections for image in images)

    def group(self, images: Sequence[np.ndarray]) -> list[HostDetections]:
        """The same when all are there."""
        return list(self(images))


def segment_everything(
    out: Path | FolderLock,
    photos: Sequence[Location],
    *,
    sam2: Path,
    settings: MaskSettings | None = None,
    score_threshold: float = 0.0,
    pictures: Collection[str] = PICTURES,
    formats: Collection[str] = (),
    polygon_error: float = POLYGON_ERROR,
    compute: Compute | None = None,
    exif: str = "upright",
    restart: bool = False,
    copy_to: Address | None = None,
    whole: bool = True,
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """All masks of photos, in the files of `segment`: one class, "object", and predicted IoUs as scores.

    Args:
      settings: of the generator, SAM 2's if None. score_threshold: masks with a lower predicted IoU are not written.
      Others as for `segment`; `compute` gives the arithmetic, each photo runs on one device.

    Returns and raises as `segment`.
    """
    settings, compute = settings or MaskSettings(), compute or Compute()
    pictures, formats = check_pictures(pictures), check_formats(formats)
    shown = Shown(np.array([score_threshold], np.float32), None, pictures, formats, polygon_error, by_instance=True)
    identity = {
        "ntt-jax": ntt_jax.__version__,
        "SAM 2 checkpoint": sha256(sam2),
        "everything": dataclasses.asdict(settings),
        "dtype": compute.dtype,
        **inputs.exif_identity(exif),
    }
    return segment_photos(
        out,
        photos,
        EverythingPass(sam2, settings),
        Categories((CLASS,), (1,)),
        shown,
        identity=identity,
        files={"sam2": sam2},
        compute=compute,
        exif=exif,
        restart=restart,
        copy_to=copy_to,
        whole=whole,
        observer=observer,
    )
