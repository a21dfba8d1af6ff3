"""From what people hand over to what a `Segmenter` has learned: every reference is encoded alone, by one program."""

import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.compiled.prompt_masker import Prompt, PromptMasker
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.datasets.image_files import survey
from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.remote import Location
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.notes import InputNote, Notes
from ntt_jax.references.build import Negatives, read_reference
from ntt_jax.references.folder.found import FoundReferences, LeftOut
from ntt_jax.references.sampling import Reference, ReferenceSet, check_references
from ntt_jax.segmenter.classes import Classes, ClassReferences, known, place_for
from ntt_jax.segmenter.inputs import Crop, each_instance, origin, reference_crops, reference_jobs


def _crop_or_error(job: Callable[[], Crop]) -> Crop | InputError:
    try:
        return job()
    except InputError as error:
        return error


class Learner:
    """Encodes references, and makes masks where boxes or points are given in their place.

    sam2, dinov2: the models; without SAM 2 no masks are made. devices: the first is used. matmul_precision: as for
    `Predictor`.
    """

    def __init__(
        self,
        sam2: Sam2 | None,
        dinov2: Encoder,
        *,
        devices: Sequence[Any] | None,
        matmul_precision: str,
        exif: str = "upright",
    ):
        # Alone, not in batches: a reference's mean must not depend on which others are encoded with it.
        first = None if devices is None else list(devices)[:1]
        self._encoder = ReferenceEncoder(dinov2, devices=first, matmul_precision=matmul_precision)
        self._sam2, self._precision, self._exif = sam2, matmul_precision, exif
        self._masker: PromptMasker | None = None
        self._making = threading.Lock()

    def with_references(
        self, classes: Classes, name: Any, references: Any, category_id: int | None = None, *, instances: bool = False
    ) -> ClassReferences:
        """The class `name` of `classes`, or a new one, with more references. Raises `InputError`, naming one."""
        place = place_for(classes, name, category_id)
        return place.with_references(*self._learn(name, references, instances))

    def with_negatives(
        self, classes: Classes, name: Any, references: Any, *, instances: bool = False
    ) -> ClassReferences:
        """The class `name` of `classes` with more negative references. Raises `InputError`, naming one."""
        one = known(classes, name, "negative references")
        try:
            return one.with_negatives(*self._learn(name, references, instances))
        except InputError as error:
            raise InputError(f"negative references: {error}") from None

    def from_coco(
        self, dataset: CocoDataset, folder: Location, references: ReferenceSet, negatives: Negatives | None
    ) -> dict[str, ClassReferences]:
        """The classes of a reference set, and of a set of negative ones. Raises `InputError`, naming a reference."""
        dataset = self._looked_at(dataset, folder, references)
        if negatives is not None:
            seen = self._looked_at(negatives.dataset, negatives.folder, negatives.references)
            negatives = negatives._replace(dataset=seen)
        check_references(references, dataset)
        classes: dict[str, ClassReferences] = {}
        for k, one in enumerate(references.classes):
            if one.name in classes:
                raise InputError(f"fit_coco: two of the classes are called {describe(one.name)}; rename one")
            found = ClassReferences(one.category_id, (), ())
            found = found.with_references(*self._read(dataset, folder, one.references))
            if negatives is not None:
                given = negatives.references.classes[k].references
                found = found.with_negatives(*self._read(negatives.dataset, negatives.folder, given))
            classes[one.name] = found
        return classes

    def from_folder(
        self, found: FoundReferences, notes: Notes, *, step: Callable[[int], None] = lambda count: None
    ) -> tuple[dict[str, ClassReferences], list[LeftOut]]:
        """The classes of folders, and references that turn out not to be usable (empty on the patch grid, say).

        notes: hears what is doubtful. step: called with 1 after each reference.
        Raises `InputError` for a class of which none can be used.
        """
        classes: dict[str, ClassReferences] = {}
        left_out: list[LeftOut] = []
        for name, references in found.table().items():
            place = place_for(classes, name, found.category_ids[name])
            jobs = reference_jobs(name, [one.given for one in references], **self._reading(notes))
            means, origins = [], []
            for one, crop in zip(references, map_ahead(_crop_or_error, jobs, ahead=4), strict=True):
                if isinstance(crop, InputError):
                    left_out.append(LeftOut(one.source, str(crop).partition(": ")[2], one.number))
                else:
                    means += self._encode([crop])
                    origins.append(origin(one.given))
                step(1)
            if not means:
                last = FoundReferences(found.folders, {}, (), tuple(left_out[-len(references) :])).reasons()
                raise InputError(f"class {describe(name)}: none of its references can be used: {last[0]}")
            classes[name] = place.with_references(tuple(means), tuple(origins))
        return classes, left_out

    def _reading(self, notes: Notes) -> dict[str, Any]:
        """The options of `reference_jobs`."""
        config = self._encoder.config
        return {
            "input_size": config.input_size,
            "grid": config.grid,
            "make_masks": self.masks,
            "notes": notes,
            "exif": self._exif,
        }

    def _looked_at(self, dataset: CocoDataset, folder: Location, references: ReferenceSet) -> CocoDataset:
        ids = {reference.image_id for chosen in references.classes for reference in chosen.references}
        found = survey(dataset, folder, exif=self._exif, image_ids=ids)
        for line in found.notes[len(dataset.notes) :]:
            warnings.warn(line, InputNote, stacklevel=4)
        return found

    def masks(self, image: np.ndarray, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """`PromptMasker`, made when first needed."""
        with self._making:
            if self._masker is None:
                if self._sam2 is None:
                    raise InputError("SAM 2 makes masks of boxes and points; give it")
                self._masker = PromptMasker(self._sam2, matmul_precision=self._precision)
        return self._masker(image, prompts)

    def _learn(self, name: Any, references: Any, instances: bool) -> tuple[tuple[np.ndarray, ...], tuple[Any, ...]]:
        """Means and origins of references as people give them; what is doubtful about them is warned of."""
        if isinstance(references, (str, Path, Mapping)) or not isinstance(references, Iterable):
            raise InputError(f"class {describe(name)}: expected a list of (image, mask), found {describe(references)}")
        given = list(references)
        if not given:
            raise InputError(f"class {describe(name)}: expected at least one reference (image, mask), found none")
        origins: list[Any] = []
        if instances:
            given, origins = map(list, zip(*each_instance(name, given), strict=True))
        notes = Notes()
        means = self._encode(reference_crops(name, given, **self._reading(notes)))
        notes.warn()
        return means, tuple(origins or map(origin, given))

    def _read(
        self, dataset: CocoDataset, folder: Location, references: Sequence[Reference]
    ) -> tuple[tuple[np.ndarray, ...], tuple[Any, ...]]:
        """Means and origins of annotations."""
        size = {"input_size": self._encoder.config.input_size, "grid": self._encoder.config.grid}
        read = functools.partial(read_reference, dataset, folder, **size)
        means = self._encode(map_ahead(read, references, ahead=4))
        return means, tuple([r.image_id, r.annotation_id] for r in references)

    def _encode(self, crops: Iterable[Crop]) -> tuple[np.ndarray, ...]:
        return tuple(self._encoder([crop], [mask])[0] for crop, mask in crops)
