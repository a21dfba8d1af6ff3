"""What `Segmenter.predict` found in one image: arrays, names, COCO entries, a picture. Host only."""

import dataclasses
import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.detection.boxes import BoxedImage
from ntt_jax.detection.on_host import HostDetections, OfDetections
from ntt_jax.detection.thresholds import by_class, choose, class_indices
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import coco_results, require_image_id
from ntt_jax.files import describe, show_path
from ntt_jax.formats import Photo, labelme, yolo
from ntt_jax.images.photos import photos_of_folder
from ntt_jax.images.polygons import POLYGON_ERROR
from ntt_jax.images.reading import read_image
from ntt_jax.notes import Notes
from ntt_jax.runs.segment_output import draw_overlay
from ntt_jax.segmenter.boxed import boxed_image
from ntt_jax.segmenter.inputs import images_ahead, is_image
from ntt_jax.text import counted

_NOTEBOOK_SIDE = 1024  # longest side of the picture a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(OfDetections):
    """The detections of one image, best first.

    detections: what was found, on the host; its sizes, boxes, scores, labels and masks are attributes here too.
    classes, category_ids: names and COCO category ids of all K classes of the segmenter, in class index order.
    source: the path or the array the image came from; `draw` reads it again, so a changed file changes the picture.
    exif: how a photo with an orientation tag was read. drawn: the lowest score that `draw` shows by default, float32
    `[K]` by class.
    """

    detections: HostDetections
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: str | os.PathLike[str] | np.ndarray = field()
    exif: str = "upright"
    drawn: np.ndarray | None = None

    @classmethod
    def select(
        cls,
        found: HostDetections,
        classes: Sequence[str],
        category_ids: Sequence[int],
        source: str | os.PathLike[str] | np.ndarray,
        *,
        thresholds: np.ndarray | None,
        max_detections: int,
        wanted: Sequence[int] | None = None,
        exif: str = "upright",
    ) -> "Prediction":
        """The best `max_detections` of those that reach their class's threshold and have a wanted class index.

        thresholds: float32 `[K]`; None: everything, of which `draw` shows what reaches `DEFAULT_THRESHOLD`.
        """
        lowest = np.zeros(len(classes), np.float32) if thresholds is None else thresholds
        best = choose(found, lowest, wanted, max_detections)
        return cls(best, tuple(classes), tuple(category_ids), source, exif, thresholds)

    def chosen(
        self,
        *,
        score_threshold: float | Mapping[str, float] = 0.0,
        max_detections: int | None = None,
        classes: Iterable[str] | None = None,
    ) -> "Prediction":
        """Those of the detections that `Segmenter.predict` would give with these arguments.

        Raises `InputError` for an unknown class.
        """
        lowest = by_class(score_threshold, self.classes)
        wanted = None if classes is None else class_indices(classes, self.classes, "classes")
        return dataclasses.replace(self, detections=choose(self.detections, lowest, wanted, max_detections))

    @property
    def scores(self) -> np.ndarray:
        """`[n]` float32, in descending order."""
        return self.detections.scores

    @property
    def labels(self) -> np.ndarray:
        """`[n]` int32, indices into `classes`."""
        return self.detections.labels

    def __repr__(self) -> str:
        names = ", ".join(f"{count} {name}" for name, count in Counter(self.class_names).items())
        found = counted(len(self), "detection")
        return f"Prediction({self.width} x {self.height} pixels, {found}{': ' if names else ''}{names})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each detection, n names."""
        return tuple(self.classes[label] for label in self.labels)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of COCO's results format, best first: image_id, category_id, bbox x y w h, score, segmentation."""
        require_image_id(image_id, "to_coco")
        return coco_results(self.detections, image_id, self.category_ids)

    def to_labelme(self, *, polygon_error: float = POLYGON_ERROR) -> dict[str, Any]:
        """The content of a LabelMe JSON file that lies beside the image, with masks as polygons (`docs/formats.md`).

        polygon_error: how far, in pixels, a polygon may be from its mask's border.
        """
        photo = self._photo(polygon_error)
        return labelme.annotation(photo, self.classes, photo.file.name)

    def to_yolo(self, *, boxes: bool = False, polygon_error: float = POLYGON_ERROR) -> str:
        """The content of a YOLO label file: a line for each object, its class index, then a polygon, or its box.

        polygon_error: as for `to_labelme`.
        """
        photo = self._photo(polygon_error)
        return "".join(f"{line}\n" for line in (yolo.box_lines if boxes else yolo.polygon_lines)(photo))

    def _photo(self, polygon_error: float) -> Photo:
        name = "image.png" if isinstance(self.source, np.ndarray) else Path(self.source).name
        return Photo(name, Path(name), self.detections, polygon_error)

    def to_supervision(self) -> Any:
        """`supervision.Detections` with xyxy, mask, confidence, class_id and data["class_name"].

        Raises `InputError` if that library is not installed; nothing else here needs it.
        """
        return self._to_supervision({"class_name": np.array(self.class_names, dtype=str)})

    def image(self) -> np.ndarray:
        """The image itself, `[H, W, 3]` uint8. Raises `InputError` if its file is gone or of another size by now."""
        if isinstance(self.source, np.ndarray):
            return self.source
        image = read_image(self.source, exif=self.exif)
        if image.shape[:2] != (self.height, self.width):
            found, expected = f"{image.shape[1]} x {image.shape[0]}", f"{self.width} x {self.height}"
            raise InputError(f"{Path(self.source)}: the image is now {found} pixels, it was {expected}; predict again")
        return image

    def draw(self, *, score_threshold: float | Mapping[str, float] | None = None, opacity: float = 0.45) -> Image.Image:
        """The image with masks, outlines and captions, at full size. Save it with `.save("picture.png")`.

        score_threshold: what scores lower is not drawn; as for `Segmenter.predict`. By default what `predict` was asked
        for, and where it was asked for everything, 0.5, as `ntt-jax segment`.
        """
        lowest = self.drawn if score_threshold is None else by_class(score_threshold, self.classes)
        lowest = by_class(DEFAULT_THRESHOLD, self.classes) if lowest is None else lowest
        shown = choose(self.detections, lowest)
        return Image.fromarray(draw_overlay(self.image(), shown, self.classes, side=None, opacity=opacity))

    def _repr_png_(self) -> bytes:
        picture = self.draw()
        picture.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


def detection_limit(wanted: Any, most: int) -> int:
    """How many detections of an image are returned at most: all of the `most` that are made, if `wanted` is None.

    Raises `InputError` for what is no number from 1 to `most`.
    """
    if wanted is None:
        return most
    if not isinstance(wanted, int) or not 1 <= wanted <= most:
        raise InputError(
            f"max_detections: expected 1 to {most}, found {wanted!r:.40}; for more, make the Segmenter with a larger"
            " max_detections"
        )
    return wanted


def predict_lazily(
    predictor: Predictor,
    finish: Callable[..., Prediction],
    ahead: int,
    images: Iterable[Any],
    exif: str = "upright",
    skipped: Notes | None = None,
    boxes: Iterator[np.ndarray] | None = None,
) -> Iterator[Prediction]:
    """What `predictor` finds in each image that people hand over, in order; `ahead` images are read in advance.

    finish: makes a `Prediction` of `HostDetections` and its `source`. exif: as for `read_image`. skipped: as for
    `images_ahead`. boxes: of each image (`boxed.boxes_beside`). Raises `InputError` at the turn of an image that cannot
    be used.
    """
    sources: deque[Any] = deque()

    def pixels() -> Iterator[np.ndarray | BoxedImage]:
        for source, image in images_ahead(images, ahead, exif, skipped):
            sources.append(source)
            yield image if boxes is None else boxed_image(image, boxes, predictor.config)

    for found in predictor(pixels()):
        yield finish(found, source=sources.popleft())


def predict_any(run: Callable[..., Iterator[Prediction]], images: Any) -> Any:
    """What `run` (`predict_lazily`) finds in images in any of the forms that `Segmenter.predict` takes."""
    if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
        return predict_folder(run, Path(images))
    if is_image(images):
        (found,) = run([images])
        return found
    if isinstance(images, (list, tuple)):
        return list(run(images))
    if isinstance(images, Iterable):
        # A camera may write each image over the one before, which has not been used by then: copies.
        return run(np.array(image) if isinstance(image, np.ndarray) else image for image in images)
    raise InputError(f"predict: expected images, a folder or an iterable of images, found {describe(images)}")


def predict_folder(run: Callable[..., Iterator[Prediction]], folder: Path) -> list[Prediction]:
    """What `run` (`predict_lazily`) finds in all photos of a folder and below, by path.

    Photos that cannot be read are left out, and warned of, as what else in the folder is not taken.
    Raises `InputError` if none is left.
    """
    photos = photos_of_folder(folder)
    found = list(run(photos.files, skipped=photos.notes))
    if not found:
        raise InputError(f"{show_path(folder)}: none of its images can be read; {photos.notes.lines()[-1]}")
    photos.notes.warn()
    return found
