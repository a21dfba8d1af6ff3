"""Instance masks from boxes and points by SAM 2's own prompts, as Meta's `SAM2ImagePredictor` makes them.

For people who have boxes only, where the method asks for masks. The image is resized, prompts are embedded and masks
are brought to full size as there. A box, or several points, gets the single mask, unless that is unstable: then the one
of the other three that SAM 2 rates best. One point alone may mean a whole or a part: it always gets that one.
"""

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.config import COMPILER_OPTIONS
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from ntt_jax.images.resize import resize_host
from ntt_jax.models.sam2.box_prompts import without_memory
from ntt_jax.models.sam2.sam2_base import ImageFeatures, Sam2
from ntt_jax.models.sam2.single_mask import STABILITY_OFFSET, STABILITY_THRESHOLD, choose_mask

PROMPTS_AT_ONCE = 16
"""Prompts decoded together; fewer are filled up, so that one program serves any number."""
_BOX_LABELS = (2, 3)
_LARGEST = 1e9


@dataclass(frozen=True)
class Prompt:
    """What to make a mask of, in pixels of the image: a box, points, or both.

    box: COCO's x, y, width, height. points: x, y each. labels: per point 1 where the object is, 0 where it is not; all
    1 by default.

    Raises `InputError` if neither is given, or numbers are missing, not finite, or no sizes or labels.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        box = None if self.box is None else _numbers([self.box], 4, "a box of x, y, width, height")[0]
        if box is not None and min(box[2:]) <= 0:
            raise InputError(f"prompt: expected a box with a width and a height, found {box[2]:g} x {box[3]:g}")
        points = tuple(_numbers(self.points, 2, "points of x, y"))
        if box is None and not points:
            raise InputError("prompt: expected a box or points, found neither")
        labels = (1,) * len(points) if self.labels is None else tuple(self.labels)
        if len(labels) != len(points) or not all(label in (0, 1) for label in labels):
            raise InputError(f"prompt: expected a label 0 or 1 for each of {len(points)} points, found {labels!r:.80}")
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", tuple(map(int, labels)))


def _numbers(rows: Any, size: int, what: str) -> list[Any]:
    try:
        found = [tuple(float(v) for v in row) for row in rows if not isinstance(row, (str, bytes))]
        fits = len(found) == len(rows) and all(len(row) == size for row in found)
        # Comparing also refuses NaN.
        if fits and all(abs(v) <= _LARGEST for row in found for v in row):
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"prompt: expected {what} in pixels, finite numbers, found {rows!r:.80}")


def _is_stable(logits: np.ndarray) -> bool:
    """As `decode_prompts` decides it, of one mask `[m, m]` on the host."""
    inner, outer = (int(np.count_nonzero(logits > offset)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
    return outer == 0 or bool(np.float32(inner) / np.float32(outer) >= np.float32(STABILITY_THRESHOLD))


def decode_prompts(
    sam2: Sam2, features: ImageFeatures, points: Array, labels: Array, *, ambiguous: bool
) -> tuple[Array, Array]:
    """One mask for each of P prompts on one image. Pure.

    Args:
      features: of one image, `no_mem_embed` added where the model has one.
      points: `[P, N, 2]` pixels of the model's input, (x, y); labels `[P, N]`: 1 foreground, 0 background, 2 and 3 the
        corners of a box, -1 padding.
      ambiguous: take the best rated of masks 1..3 always, not only where mask 0 is unstable.

    Returns:
      logits `[P, m, m]` and predicted_ious `[P]`, float32.
    """
    return choose_mask(*sam2.decode(features, points, labels), ambiguous=ambiguous)


@functools.partial(jax.jit, static_argnames=("definition",), compiler_options=COMPILER_OPTIONS)
def _encode(state: Any, image: Array, *, definition: Any) -> ImageFeatures:
    sam2 = nnx.merge(definition, state)
    return without_memory(sam2.no_mem_embed[...], sam2.encode_image(image[None]))


@functools.partial(jax.jit, static_argnames=("definition", "ambiguous"), compiler_options=COMPILER_OPTIONS)
def _decode(
    state: Any, features: ImageFeatures, points: Array, labels: Array, *, definition: Any, ambiguous: bool
) -> tuple[Array, Array]:
    return decode_prompts(nnx.merge(definition, state), features, points, labels, ambiguous=ambiguous)


@functools.partial(jax.jit, static_argnames=("definition",), compiler_options=COMPILER_OPTIONS)
def _decode_all(
    state: Any, features: ImageFeatures, points: Array, labels: Array, *, definition: Any
) -> tuple[Array, Array]:
    return nnx.merge(definition, state).decode(features, points, labels)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image that SAM 2 has encoded, to be asked for masks again and again; height and width in pixels."""

    features: ImageFeatures
    height: int
    width: int


class Choices(NamedTuple):
    """The masks that one prompt may mean: logits `[n, m, m]` and predicted IoUs `[n]`, the best guess at index 0."""

    logits: np.ndarray
    predicted_ious: np.ndarray

    def mask(self, index: int, height: int, width: int) -> np.ndarray:
        """One of them at a size in pixels, bool `[height, width]`."""
        return resize_host(self.logits[index], (height, width), "bilinear") > 0


class PromptMasker:
    """`decode_prompts` compiled: an image and its prompts in, full-size masks out. Threads may share one.

    sam2: the model. Its `no_mem_embed` is added to the image embedding, as Meta's predictor does.
    """

    def __init__(self, sam2: Sam2, *, matmul_precision: str = "highest"):
        self.config = sam2.config
        self._precision = matmul_precision
        self._lock = threading.Lock()
        self._definition, self._state = nnx.split(sam2)

    def __call__(self, image: np.ndarray, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Masks `[n, H, W]` bool, which may be empty, and what SAM 2 expects of their IoU, `[n]` float32.

        image: `[H, W, 3]` uint8 RGB, encoded once for all prompts.
        """
        height, width = image.shape[:2]
        masks, ious = np.zeros((len(prompts), height, width), np.bool_), np.zeros(len(prompts), np.float32)
        # One program for each kind of prompt: padding would not be without effect.
        kinds: dict[tuple[bool, int], list[int]] = {}
        for i, prompt in enumerate(prompts):
            kinds.setdefault((prompt.box is not None, len(prompt.points)), []).append(i)
        with self._lock, published_numbers(self._precision):
            features = None
            for kind, members in kinds.items():
                for start in range(0, len(members), PROMPTS_AT_ONCE):
                    chunk = members[start : start + PROMPTS_AT_ONCE]
                    if features is None:
                        features = _encode(self._state, self._input(image), definition=self._definition)
                    points, labels = self._tokens([prompts[i] for i in chunk], height, width)
                    logits, rated = _decode(
                        self._state, features, points, labels, definition=self._definition, ambiguous=kind == (False, 1)
                    )
                    logits, ious[chunk] = np.asarray(logits), np.asarray(rated)[: len(chunk)]
                    for row, i in enumerate(chunk):
                        masks[i] = resize_host(logits[row], (height, width), "bilinear") > 0
        return masks, ious

    def encode(self, image: np.ndarray) -> EncodedImage:
        """An image `[H, W, 3]` uint8 RGB, encoded for `choices`."""
        with self._lock, published_numbers(self._precision):
            features = _encode(self._state, self._input(image), definition=self._definition)
            return EncodedImage(jax.block_until_ready(features), image.shape[0], image.shape[1])

    def choices(self, image: EncodedImage, prompt: Prompt) -> Choices:
        """All that a prompt may mean: the mask `__call__` would give first, the others by their predicted IoU.

        One point alone means a whole or a part: three masks. Anything more has a fourth, the single mask. Each number
        of points, with and without a box, is compiled once.
        """
        points, labels = self._tokens([prompt], image.height, image.width, rows=1)
        with self._lock, published_numbers(self._precision):
            found = _decode_all(self._state, image.features, points, labels, definition=self._definition)
            logits, ious = (np.asarray(part)[0] for part in found)
        others = 1 + np.argsort(-ious[1:], kind="stable")
        if prompt.box is None and len(prompt.points) == 1:
            order = others
        else:
            order = np.array([0, *others] if _is_stable(logits[0]) else [*others, 0])
        return Choices(logits[order], ious[order])

    def _input(self, image: np.ndarray) -> np.ndarray:
        """As torchvision resizes a tensor: `[S, S, 3]` float32, normalised."""
        size = self.config.image_size
        resized = resize_host(image.astype(np.float32) / np.float32(255), (size, size), "bilinear", antialias=True)
        return ((resized - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(np.float32)

    def _tokens(
        self, prompts: list[Prompt], height: int, width: int, rows: int = PROMPTS_AT_ONCE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points `[rows, N, 2]` and labels `[rows, N]` of prompts of one kind, corners of the box first."""
        points, labels = [], []
        for prompt in [*prompts, *[prompts[-1]] * (rows - len(prompts))]:
            corners: tuple[tuple[float, float], ...] = ()
            if prompt.box is not None:
                x, y, w, h = prompt.box
                corners = ((x, y), (x + w, y + h))
            points.append([*corners, *prompt.points])
            labels.append([*(_BOX_LABELS if corners else ()), *(prompt.labels or ())])
        scaled = (
            np.array(points, np.float32) / np.array([width, height], np.float32) * np.float32(self.config.image_size)
        )
        return scaled, np.array(labels, np.int32)
