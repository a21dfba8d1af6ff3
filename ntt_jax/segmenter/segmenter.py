"""`Segmenter`: classes from a few references each, then their instances in any images. The whole method for people.

Every reference is encoded alone, by one compiled program, and its mean feature is kept. Whatever classes and references
were added or removed on the way, the memory is the one of fitting what is there now at once, bit for bit.
"""

import copy
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.detection.thresholds import by_class, checked, of_memory
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, show_path
from ntt_jax.hub import DEFAULT_DINOV2, DEFAULT_SAM2
from ntt_jax.images.reading import EXIF
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.aggregate import Memory
from ntt_jax.memory.bank import load_memory, require_encoder, save_memory
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.notes import Notes
from ntt_jax.pipeline import check_models
from ntt_jax.references.build import Negatives
from ntt_jax.references.folder import FoundReferences, find_references
from ntt_jax.references.negatives import negative_set
from ntt_jax.references.sampling import ReferenceSet, load_references
from ntt_jax.segmenter.boxed import boxes_beside
from ntt_jax.segmenter.classes import (
    ClassReferences,
    from_bank,
    indices_of,
    memory_of,
    padded_classes,
    require_weights,
    to_bank,
    without,
    without_negative,
)
from ntt_jax.segmenter.inputs import as_image, as_prompt, merged_config
from ntt_jax.segmenter.learner import Learner
from ntt_jax.segmenter.prediction import Prediction, detection_limit, predict_any, predict_lazily
from ntt_jax.tiles.layout import as_tiles
from ntt_jax.tiles.predictor import tiled


class Segmenter:
    """Find every instance of classes that are given by a few references each.

        segmenter = Segmenter(sam2, dinov2)
        segmenter.fit({"bird": [(image, mask), ...], "boat": [...]})
        segmenter.predict("photo.jpg").draw()

    An image is uint8 RGB `[H, W, 3]`, a path, or a PIL image; an EXIF orientation turns it upright. A reference is
    `(image, mask)` or `(image, mask, box)`, with the mask of ONE instance: `[H, W]`, a path or a PIL image, 0 where
    background and one other value on the object. The box is COCO's x, y, width, height in pixels; without it, the
    mask's own (first pixel, number of pixels). Annotations drawn as polygons have boxes with fractions, which can move
    the crop by a pixel: give theirs, or use `fit_coco`, to get the memory of `ntt-jax memory` exactly.

    In place of the mask there may be a box, points `[(x, y), ...]` on the object, or a `Prompt`: SAM 2 makes the mask
    (`masks` shows it).

    Class indices follow the order in which classes were first added. Prototypes depend on a class's own references in
    their order alone, so the order of the classes changes the labels' numbers, not what is found (but for exact ties).

    Args:
      sam2, dinov2: the models, from `load_sam2` and `load_dinov2`.
      config: constants of the method, the published ones by default; thresholds: single ones of them by name, as
        `max_detections=20, nms_iou_threshold=0.6` (`DetectConfig` lists them).
      method: file of the constants in place of `config`, as method.json of `ntt-jax tune`.
      batch_size, devices, matmul_precision, canvas: as for `Predictor`; a batch is filled up, so one image costs as
        much as `batch_size` images. On CPUs devices divide the points of every image: `ntt_jax.use_all_cores()`.
      exif: photos with an orientation tag: "upright", as viewers show them (where a mask or annotations fit only the
        stored pixels, those), or "raw", always as stored.

    Raises:
      InputError: models in the wrong order, unknown or impossible constants.
    """

    def __init__(
        self,
        sam2: Sam2,
        dinov2: Encoder,
        config: DetectConfig | None = None,
        *,
        batch_size: int = 1,
        devices: Sequence[Any] | None = None,
        matmul_precision: str = "highest",
        canvas: int = 640,
        exif: str = "upright",
        method: PathLike | None = None,
        **thresholds: Any,
    ):
        check_models(sam2, dinov2)
        self.config = merged_config(config, thresholds, method)
        self._models = sam2, dinov2
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "devices": devices,
            "matmul_precision": matmul_precision,
            "canvas": canvas,
        }
        if exif not in EXIF:
            raise InputError(f"Segmenter: exif: expected {' or '.join(EXIF)}, found {exif!r:.40}")
        self._exif = exif
        self._learner = Learner(sam2, dinov2, devices=devices, matmul_precision=matmul_precision, exif=exif)
        self._ahead = max(2, batch_size)
        self._predictors: dict[DetectConfig, Predictor] = {}
        self._classes: dict[str, ClassReferences] = {}
        self._memory: Memory | None = None
        self._provenance: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls, sam2: PathLike = DEFAULT_SAM2, dinov2: PathLike = DEFAULT_DINOV2, *, dtype: str = "float32", **options: Any
    ) -> "Segmenter":
        """A segmenter with models by name, fetched and converted on first use.

        Args:
          sam2, dinov2: names, ids of the Hugging Face Hub or checkpoints, as for `load_sam2` and `load_dinov2`; the
            defaults are the paper's.
          dtype: "float32" or "bfloat16", as there.
          options: as for `Segmenter`.

        Raises:
          InputError: as `load_sam2`, `load_dinov2` and `Segmenter`.
        """
        return cls(load_sam2(sam2, dtype), load_dinov2(dinov2, dtype), **options)

    # What has been learned

    @property
    def classes(self) -> dict[str, int]:
        """Number of references of every class, in class index order."""
        return {name: len(one.means) for name, one in self._classes.items()}

    @property
    def negatives(self) -> dict[str, int]:
        """Number of negative references of every class, in class index order."""
        return {name: len(one.negatives) for name, one in self._classes.items()}

    @property
    def category_ids(self) -> dict[str, int]:
        """COCO category id of every class."""
        return {name: one.category_id for name, one in self._classes.items()}

    @property
    def memory(self) -> Memory:
        """Prototypes, means and negatives of the K classes. Raises `InputError` before the first `fit` or `add`."""
        if self._memory is None:
            raise InputError("the segmenter knows no class yet; call fit or add first")
        return self._memory

    def __repr__(self) -> str:
        names = ", ".join(
            f"{name} ({len(one.means)}{f', {len(one.negatives)} negative' if one.negatives else ''})"
            for name, one in self._classes.items()
        )
        return f"Segmenter({self._models[0].config.name}, {self._models[1].config.name}; {names or 'no classes yet'})"

    def fit(
        self,
        references: Mapping[str, Iterable[Any]] | PathLike | FoundReferences,
        negatives: Mapping[str, Iterable[Any]] | None = None,
        *,
        instances: bool = False,
    ) -> "Segmenter":
        """Learn these classes, each from its references, in place of all earlier ones. Returns the segmenter.

        references: by class; or a folder of photos with masks, LabelMe, COCO, VOC or YOLO files beside them, or what
        `references.folder.find_references` took of some. What cannot be used of a folder is left out, and warned of.

        negatives: of some of the classes, as `add_negative` takes them. instances: masks may hold the numbers of
        several instances; each number beside 0 becomes a reference of its own. What is doubtful (a mask that covers
        everything, a box that leaves its image) is warned of, as `InputNote`.
        Raises `InputError`, naming class and reference, if one cannot be used; then nothing has changed.
        """
        classes: dict[str, ClassReferences] = {}
        if isinstance(references, (str, os.PathLike)):
            references = find_references(references, instances=instances, exif=self._exif)
        if isinstance(references, FoundReferences):
            classes, unusable = self._learner.from_folder(references, notes := Notes())
            references.with_left_out(unusable).note(notes)
            notes.warn()
            references = {}
        elif not isinstance(references, Mapping) or not references:
            raise InputError(
                f"fit: expected {{class name: [(image, mask), ...]}} with a class, found {describe(references)}"
            )
        for name, given in references.items():
            classes[name] = self._learner.with_references(classes, name, given, instances=instances)
        negatives = {} if negatives is None else negatives
        if not isinstance(negatives, Mapping):
            raise InputError(f"negatives: expected {{class name: [(image, mask), ...]}}, found {describe(negatives)}")
        for name, given in negatives.items():
            classes[name] = self._learner.with_negatives(classes, name, given, instances=instances)
        self._set(classes, {})
        return self

    def add(
        self, name: str, references: Iterable[Any], *, category_id: int | None = None, instances: bool = False
    ) -> "Segmenter":
        """Learn one more class, or append references to one; no other reference is encoded again.

        category_id: for `to_coco` and the memory file; of a new class one above the highest by default, from 1.
        instances: as for `fit`.
        Raises `InputError` as `fit`, and for a category id that is taken; then nothing has changed.
        """
        changed = self._learner.with_references(self._classes, name, references, category_id, instances=instances)
        self._set({**self._classes, name: changed}, None)
        return self

    def add_negative(self, name: str, references: Iterable[Any]) -> "Segmenter":
        """Append negative references to a class: instances that look like it and are none, given as references are.

        What looks more like one of them than like the class scores lower (`match.similarities`, METHOD section 4).
        Raises `InputError` as `add`, and for an unknown class; then nothing has changed.
        """
        self._set({**self._classes, name: self._learner.with_negatives(self._classes, name, references)}, None)
        return self

    def remove_negative(self, name: str, index: int | None = None) -> "Segmenter":
        """Forget all negative references of a class, or one of them by its position, as if it had never been there.

        Raises `InputError` for an unknown class or position.
        """
        self._set(without_negative(self._classes, name, index), None)
        return self

    def remove(self, name: str, index: int | None = None) -> "Segmenter":
        """Forget a class, or one reference of it by its position; the memory is as if it had never been there.

        Raises `InputError` for an unknown class or position, and for a class's only reference.
        """
        self._set(without(self._classes, name, index), None)
        return self

    def fit_coco(
        self,
        annotations: CocoDataset | PathLike,
        images: PathLike,
        references: ReferenceSet | PathLike,
        *,
        negatives: CocoDataset | PathLike | None = None,
        negative_images: PathLike | None = None,
    ) -> "Segmenter":
        """Learn the classes of a reference set, in place of all earlier ones, by ascending category id.

        The same memory as `ntt-jax memory` makes. Args: annotations, or what `load_dataset` read of them; the folder of
        their images; a reference file of `ntt-jax sample`, or what `sample_references` returned; negatives: annotations
        of what looks like a class and is none, and the folder of their images, the same one by default.

        Raises `InputError`, naming the reference, if one cannot be used; then nothing has changed.
        """
        dataset = annotations if isinstance(annotations, CocoDataset) else load_dataset(annotations)
        chosen = references if isinstance(references, ReferenceSet) else load_references(references)
        provenance = {"annotations_sha256": dataset.sha256, "shots": chosen.shots, "seed": chosen.seed}
        negative_references = None
        if negatives is not None:
            others = negatives if isinstance(negatives, CocoDataset) else load_dataset(negatives)
            negative_references = Negatives(others, Path(negative_images or images), negative_set(others, chosen))
            provenance["negatives_sha256"] = others.sha256
        self._set(self._learner.from_coco(dataset, Path(images), chosen, negative_references), provenance)
        return self

    def masks(self, image: Any, prompts: Iterable[Any]) -> np.ndarray:
        """The masks that SAM 2 makes of boxes and points in one image, to look at before they become references.

        prompts: each a box x, y, width, height, a list of points, or a `Prompt`, in pixels. Returns bool `[n, H, W]`; a
        mask may be empty. Raises `InputError` for an image or prompt that cannot be used.
        """
        found = [as_prompt(prompt) for prompt in prompts]
        if None in found:
            raise InputError(f"masks: expected boxes, lists of points or Prompts, found {describe(prompts)}")
        return self._learner.masks(as_image(image, self._exif), [prompt for prompt in found if prompt])[0]

    # Finding

    def predict(
        self,
        images: Any,
        *,
        score_threshold: float | Mapping[str, float] | None = None,
        max_detections: int | None = None,
        classes: Iterable[str] | None = None,
        boxes: Any = None,
        box_scores: Any = None,
        tiles: Any = None,
    ) -> Any:
        """Find the instances of all classes.

        Args:
          images: one image -> one `Prediction`; a list or tuple of images -> a list; the path of a folder -> a list,
            by path, of all photos in it and below (`photos_of_folder`; those that cannot be read are left out, and
            warned of); any other iterable -> an iterator, which works while it is asked and reads a few images ahead.
          score_threshold: detections that score lower are left out: a number, or numbers by class name, where classes
            that are not named take 0.5. None: none is left out.
          max_detections: at most this many per image, the best ones; up to `config.max_detections`.
          classes: names of those to return, all by default. The others compete: what looks more like them is not found.
          boxes: what SAM 2 is asked for in place of its grid of points (or beside it: `config.proposals`), from a
            detector or a proposal network: of one image `[N, 4]` x1, y1, x2, y2 in pixels, of several one array for
            each. box_scores: `[N]` for each, their objectness, 1 if None (docs/proposals.md).
          tiles: of images that are large for their objects: how many along the longer side, "auto", or a `TileConfig`
            (docs/tiles.md). None: only the whole image is looked at. None but boxes compiles anything anew.

        The first call compiles; afterwards neither number nor sizes of images do, except that the drawing of the masks
        is compiled once for each of the sides 640 (or `canvas`), 1024, 2048, ... that a larger image needs. Classes may
        come and go: up to 8, 16, 32, ... share a program; so do negative references, up to 8, 16, ... of a class.

        Raises:
          InputError: nothing has been learned, an image that cannot be used (an iterator raises it at its turn).
        """
        cut, rows = as_tiles(tiles), boxes_beside(images, boxes, box_scores)
        predictor = tiled(self._ready_predictor(self.config if rows is None else self.config.taking_boxes()), cut)
        finish = functools.partial(
            Prediction.select,
            classes=tuple(self._classes),
            category_ids=tuple(one.category_id for one in self._classes.values()),
            thresholds=None if score_threshold is None else by_class(score_threshold, tuple(self._classes)),
            max_detections=detection_limit(max_detections, self.config.max_detections),
            wanted=None if classes is None else indices_of(self._classes, classes),
            exif=self._exif,
        )
        run = functools.partial(predict_lazily, predictor, finish, self._ahead, exif=self._exif, boxes=rows)
        return predict_any(run, images)

    def snapshot(self) -> "Segmenter":
        """This one as it is now; models and programs are shared. Raises `InputError` if nothing has been learned."""
        self._ready_predictor(self.config)
        return copy.copy(self)

    # Keeping

    @property
    def thresholds(self) -> dict[str, float]:
        """The score thresholds by class name that the memory file keeps (`save`), as `predict` takes them."""
        return of_memory(self._provenance, tuple(self._classes))

    def save(self, path: PathLike, *, thresholds: Mapping[str, float] | None = None) -> None:
        """Write the memory file (`memory_file`), which `load` and the command line read. No image is in it.

        thresholds: score thresholds by class name to keep in it, which `ntt-jax segment` reads; those of the file that
        was loaded, if None. Raises `InputError` for a class that is unknown, and if the file cannot be written.
        """
        memory = self.memory
        if thresholds is not None:
            by_class(thresholds, tuple(self._classes), where="save: thresholds")
            self._provenance = self._provenance | {"thresholds": checked(dict(thresholds), "save")}
        kept = {"thresholds": self.thresholds} if self.thresholds else {}
        save_memory(path, to_bank(self._classes, memory, self._models[1], self._provenance | kept))

    @classmethod
    def load(cls, path: PathLike, sam2: Sam2, dinov2: Encoder, *args: Any, **options: Any) -> "Segmenter":
        """A segmenter with the classes of a memory file, of `save` or of `ntt-jax memory`; further arguments as `cls`.

        Raises `InputError` for a file that is not sound, or made with another encoder: another configuration, or, where
        `save` made the file, other weights (of the same type: float32 and bfloat16 cannot be told apart).
        """
        bank = load_memory(path)
        segmenter = cls(sam2, dinov2, *args, **options)
        try:
            require_encoder(bank, dinov2.config)
            require_weights(bank, dinov2)
        except InputError as error:
            raise InputError(f"{show_path(path)}: {error}") from None
        segmenter._set(from_bank(bank), bank.provenance)
        return segmenter

    def _set(self, classes: dict[str, ClassReferences], provenance: dict[str, Any] | None) -> None:
        """Make these the classes: the memory first, which may refuse them. provenance None: they have been edited."""
        memory = memory_of(classes) if classes else None
        if provenance is None:  # how a set was sampled is no longer true; what made the features is
            kept = ("encoder_sha256", "annotations_sha256", "thresholds")
            provenance = {key: self._provenance[key] for key in kept if key in self._provenance}
        self._classes, self._memory, self._provenance = classes, memory, provenance
        if self._predictors and memory is not None:
            with published_numbers():
                padded = padded_classes(memory, self.config.classes_per_mask)
            self._predictors = {key: one.with_prototypes(*padded) for key, one in self._predictors.items()}

    def _ready_predictor(self, config: DetectConfig) -> Predictor:
        memory = self.memory  # raises where nothing has been learned
        if config not in self._predictors:
            with published_numbers():
                prototypes, negatives = padded_classes(memory, config.classes_per_mask)
            made = Predictor(*self._models, prototypes, config, negatives=negatives, **self._options)
            self._predictors = {**self._predictors, config: made}
        return self._predictors[config]
