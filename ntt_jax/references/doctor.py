"""The reference doctor: which references of a memory are likely to cost accuracy, why, and what could replace them.

Two kinds of evidence. The shape of a reference (its mask, box and image size alone) tells what the encoder can see of
it. Its mean feature, compared with the other references, tells whether it looks like its class: each reference is
treated as an object to be named by a memory that was made without it, and without the worst of the others. Host only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ntt_jax.datasets.dataset import CocoAnnotation, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import crop_box, mask_to_grid, reference_mask
from ntt_jax.memory.aggregate import Memory
from ntt_jax.references.sampling import MIN_BORDER_DISTANCE, Reference, ReferenceSet, is_valid_reference

SMALL_SHARE = 0.05
"""A mask that weighs less than this share of the patch grid averages over too few patches to be a stable mean."""
LARGE_ENLARGEMENT = 8.0
"""A crop that is enlarged by more than this for the encoder has lost its texture."""
MIN_BOX_AGREEMENT = 0.7
"""Least IoU of the annotation's box with the box of its mask: the crop follows the box, so they must agree."""
OUTLIER = 3.0
"""A similarity this many (robust) standard deviations below what is usual is an outlier."""
MIN_SPREAD = 0.03
"""Standard deviation below which differences of cosines are taken as noise."""
ENOUGH = 4
"""References from which a class has a usual similarity of its own; classes with fewer are compared with all."""

SEVERE, MILD = "replace", "check"
VERDICTS = ("replace", "check", "good")


@dataclass(frozen=True)
class Shape:
    """What can be said of a reference without its pixels.

    patches: of the grid, with any weight. share: weight of the mask on the grid, as a share of all its patches.
    border: pixels from its box to the nearest border of the image, negative where it sticks out. enlargement: input
    side of the encoder over the longer side of the crop. box_agreement: IoU of the box with that of the mask.
    """

    patches: int
    share: float
    border: float
    enlargement: float
    box_agreement: float


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a reference. code: what, for programs; severity: "replace" or "check"; text: why."""

    code: str
    severity: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """One reference, position `[label, number]` of the memory.

    own: cosine with its class's other references together, None if there are none. nearest: index of the other class
    whose prototype is most like it, with nearest_cosine (None with one class). margin: own - nearest_cosine.
    verdict: "replace", "check" or "good".
    """

    label: int
    number: int
    own: float | None
    nearest: int | None
    nearest_cosine: float | None
    shape: Shape | None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def margin(self) -> float | None:
        """How much more it looks like its class than like any other; below 0 it would be taken for another class."""
        return None if self.own is None or self.nearest_cosine is None else self.own - self.nearest_cosine

    @property
    def verdict(self) -> str:
        """The most severe finding's, "good" without any."""
        severities = {finding.severity for finding in self.findings}
        return next((verdict for verdict in VERDICTS if verdict in severities), "good")

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self) | {"margin": self.margin, "verdict": self.verdict}


def measure(dataset: CocoDataset, annotation: CocoAnnotation, *, input_size: int, grid: int) -> Shape:
    """The shape of one reference, given the encoder's input side in pixels and its patches per side.

    Raises `InputError` if its mask is unsound or its box covers no pixel.
    """
    image, mask = dataset.images[annotation.image_id], dataset.mask(annotation)
    x, y, width, height = annotation.bbox
    left, top, right, bottom = crop_box(image.height, image.width, annotation.bbox)
    weights = mask_to_grid(reference_mask(mask, annotation.bbox, input_size), grid)  # [g, g]
    return Shape(
        patches=int(np.count_nonzero(weights)),
        share=float(weights.mean()),
        border=float(min(x, y, image.width - (x + width), image.height - (y + height))),
        enlargement=input_size / max(right - left, bottom - top),
        box_agreement=_box_agreement(mask, annotation.bbox),
    )


def _box_agreement(mask: np.ndarray, box: tuple[float, float, float, float]) -> float:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0
    x, y, width, height = box
    wide = min(x + width, columns[-1] + 1) - max(x, columns[0])
    high = min(y + height, rows[-1] + 1) - max(y, rows[0])
    common = max(0.0, wide) * max(0.0, high)
    own = (columns[-1] + 1 - columns[0]) * (rows[-1] + 1 - rows[0])
    return float(common / (own + width * height - common))


def own_similarity(memory: Memory, trusted: np.ndarray | None = None) -> np.ndarray:
    """Cosine of each reference's mean with that of its class's other references together: `[K, S]` float64.

    trusted: `[K, S]` bool, which references count as others; all if None. NaN where there is no such reference or no
    other. (1 + cosine) / 2, averaged over a class, is `memory.leave_one_out_similarity` of references that have one
    patch each, their instance mean.
    """
    means, valid = np.asarray(memory.instance_means, np.float64), np.asarray(memory.valid)
    counted = np.where((valid if trusted is None else valid & trusted)[:, :, None], means, 0.0)
    others = counted.sum(axis=1, keepdims=True) - counted
    lengths = np.linalg.norm(means, axis=-1) * np.linalg.norm(others, axis=-1)
    defined = valid & (np.abs(others).max(axis=-1) > 1e-6 * np.abs(means).max()) & (lengths > 0)
    return np.where(defined, (means * others).sum(axis=-1) / np.where(defined, lengths, 1.0), np.nan)


def nearest_other(memory: Memory, trusted: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The other class whose prototype is most like each reference: class index `[K, S]` int, cosine `[K, S]` float64.

    trusted: `[K, S]` bool, the references that prototypes are made of; all if None. -1 and NaN where there is no such
    reference or only one class.
    """
    means, valid = np.asarray(memory.instance_means, np.float64), np.asarray(memory.valid)
    sums = np.where((valid if trusted is None else valid & trusted)[:, :, None], means, 0.0).sum(axis=1)
    prototypes = sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-30)  # [K, C]
    lengths = np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-30)
    cosines = (means / lengths) @ prototypes.T  # [K, S, K]
    classes = len(cosines)
    cosines[np.arange(classes), :, np.arange(classes)] = -np.inf
    nearest = np.argmax(cosines, axis=-1)
    comparable = valid & (classes > 1)
    best = np.take_along_axis(cosines, nearest[..., None], axis=-1)[..., 0]
    return np.where(comparable, nearest, -1), np.where(comparable, best, np.nan)


def _trusted(memory: Memory) -> np.ndarray:
    """References `[K, S]` bool that others may be judged by: a bad one must not make its neighbours look bad.

    Class by class the worst of those that are out of line is set aside, until none is.
    """
    trusted = np.asarray(memory.valid).copy()
    while True:
        own, (_, other) = own_similarity(memory, trusted), nearest_other(memory, trusted)
        margin = own - other
        with np.errstate(invalid="ignore"):
            bad = trusted & ((_outliers(margin, trusted) & (margin < 0)) | (_outliers(own, trusted) & ~(margin >= 0)))
        bad &= trusted.sum(axis=1, keepdims=True) > 1
        if not bad.any():
            return trusted
        judged = np.where(bad, np.where(np.isfinite(margin), margin, own), np.inf)
        rows = np.flatnonzero(bad.any(axis=1))
        trusted[rows, judged[rows].argmin(axis=1)] = False


def examine(
    memory: Memory, class_names: Sequence[str], shapes: Sequence[Sequence[Shape | None]] | None = None
) -> list[Diagnosis]:
    """Examine every reference of a memory, class by class in its order.

    shapes: of each class's references where known. Raises `InputError` if they are not as many as the memory's.
    """
    valid = np.asarray(memory.valid)
    if shapes is not None and [len(row) for row in shapes] != valid.sum(axis=1).tolist():
        raise InputError(
            f"references: the memory has {valid.sum(axis=1).tolist()} references per class, "
            f"found {[len(row) for row in shapes]}"
        )
    trusted = _trusted(memory)
    own = own_similarity(memory, trusted)
    nearest, other = nearest_other(memory, trusted)
    margin = own - other
    far, odd = _outliers(own, trusted), _outliers(margin, trusted)
    alike = _alike(memory)
    result = []
    for k in range(len(valid)):
        for number, s in enumerate(np.flatnonzero(valid[k])):
            shape = None if shapes is None else shapes[k][number]
            findings = [] if shape is None else _shape_findings(shape)
            name = class_names[nearest[k, s]] if nearest[k, s] >= 0 else ""
            if margin[k, s] < 0 and odd[k, s]:
                text = f"looks like {name}, not like the other references of its class"
                findings.append(Finding("wrong class", SEVERE, text))
            elif far[k, s]:
                # An unusual view that still is nearest to its own class may be what the class needs.
                severity = MILD if margin[k, s] >= 0 else SEVERE
                findings.append(Finding("far", severity, "unlike the other references of its class"))
            elif margin[k, s] < 0:
                text = f"as much like {name} as like its own class: a memory without it calls it {name}"
                findings.append(Finding("confusable", MILD, text))
            elif np.isnan(own[k, s]) and alike[k, nearest[k, s]]:
                findings.append(Finding("confusable", MILD, f"the only reference, and much like {name}"))
            result.append(
                Diagnosis(
                    label=k,
                    number=number,
                    own=_number(own[k, s]),
                    nearest=int(nearest[k, s]) if nearest[k, s] >= 0 else None,
                    nearest_cosine=_number(other[k, s]),
                    shape=shape,
                    findings=tuple(sorted(findings, key=lambda finding: VERDICTS.index(finding.severity))),
                )
            )
    return result


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _shape_findings(shape: Shape) -> list[Finding]:
    found = []
    if shape.share < SMALL_SHARE:
        text = f"mask covers {shape.share:.1%} of the patch grid ({shape.patches} patches)"
        found.append(Finding("small", SEVERE, text))
    if shape.box_agreement < MIN_BOX_AGREEMENT:
        text = f"its box and its mask lie apart (IoU {shape.box_agreement:.2f}), and the crop follows the box"
        found.append(Finding("box", SEVERE, text))
    if shape.border < MIN_BORDER_DISTANCE:
        where = "touches the border" if shape.border < 1 else f"{shape.border:.0f} px from the border"
        found.append(Finding("border", MILD, f"{where} of its image: perhaps cut off"))
    if shape.enlargement > LARGE_ENLARGEMENT:
        found.append(Finding("blurred", MILD, f"enlarged {shape.enlargement:.0f}x for the encoder"))
    return found


def _outliers(values: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Which of `[K, S]` are far below what is usual among the trusted of their class, or of all for a class of few.

    NaN never is.
    """
    result = np.zeros(values.shape, bool)
    known = trusted & np.isfinite(values)
    for k, row in enumerate(values):
        usual = row[known[k]] if known[k].sum() >= ENOUGH else values[known]
        if len(usual) >= ENOUGH:
            centre = np.median(usual)
            spread = max(MIN_SPREAD, 1.4826 * float(np.median(np.abs(usual - centre))))
            with np.errstate(invalid="ignore"):
                result[k] = row < centre - OUTLIER * spread
    return result


def _alike(memory: Memory) -> np.ndarray:
    """Pairs of classes `[K, K]` bool that are far more alike than is usual between the classes of this memory."""
    prototypes = np.asarray(memory.prototypes, np.float64)
    cosines = prototypes @ prototypes.T
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    if len(pairs) < ENOUGH:
        return np.zeros(cosines.shape, bool)
    centre = np.median(pairs)
    spread = max(MIN_SPREAD, 1.4826 * float(np.median(np.abs(pairs - centre))))
    return cosines > centre + OUTLIER * spread


def suggest_replacements(
    dataset: CocoDataset, references: ReferenceSet, diagnoses: Sequence[Diagnosis], *, input_size: int, grid: int
) -> dict[tuple[int, int], Reference]:
    """For each reference to be replaced, by (label, number), an unused annotation of its class, where there is one.

    It is one that `sample` would accept, in an image the class has no reference in, and whose shape is without fault;
    what shows most of the object at the largest size comes first. Whether it looks like its class is not known before
    it is encoded: examine the new set again.
    """
    result: dict[tuple[int, int], Reference] = {}
    for label, chosen in enumerate(references.classes):
        ill = [d for d in diagnoses if d.label == label and d.verdict == SEVERE]
        if not ill:
            continue
        used = {reference.image_id for reference in chosen.references}
        candidates = [
            annotation
            for annotation in dataset.annotations.values()
            if annotation.category_id == chosen.category_id
            and annotation.image_id not in used
            and annotation.segmentation is not None
            and not annotation.isimpossible
            and is_valid_reference(annotation, dataset.images[annotation.image_id])
        ]
        candidates.sort(key=lambda annotation: -min(annotation.bbox[2:]))
        for diagnosis in ill:
            while candidates:
                annotation = candidates.pop(0)
                sound = not _shape_findings(measure(dataset, annotation, input_size=input_size, grid=grid))
                if sound and annotation.image_id not in used:
                    used.add(annotation.image_id)
                    result[label, diagnosis.number] = Reference(annotation.image_id, annotation.id)
                    break
    return result
