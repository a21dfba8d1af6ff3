"""Target images to detections (METHOD stage 3) as pure functions; `predictor` compiles them for long runs.

`segment` is the whole of stage 3 for one image. Its parts: `encode_images`, `propose_masks` (what depends on no
memory), `merge_proposals`, `draw_masks`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntt_jax.config import DetectConfig
from ntt_jax.detection.full_size import resize_masks
from ntt_jax.detection.merge import Candidates, Detections, Merged, describe_candidates, merge_candidates
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import encoder_input, sam_input
from ntt_jax.images.resize import pil_resize_bicubic
from ntt_jax.memory.aggregate import Memory
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.point_grid.decode_grid import decode_grid, grid_points
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2


def propose_masks(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    grid: tuple[int, int],
    config: DetectConfig,
    points: Array | None = None,
    **sizes: int,
) -> tuple[Candidates, Array, Array]:
    """Steps 4 to 6 for one encoded image: what does not depend on any memory. Pure.

    grid: rows and columns of DINOv2's patches. points: some `[P, 2]` of the image's grid of points, all of it if None.
    sizes: as for `decode_grid`. Returns the candidates (not `valid`: empty, or a predicted IoU that does
    not pass), their logits `[P, m, m]` and predicted IoUs `[P]`.
    """
    if points is None:
        points = jnp.asarray(grid_points(sam2.config.image_size, config.points_per_side))
    logits, ious, passing = decode_grid(sam2, features, points, pred_iou_threshold=config.pred_iou_threshold, **sizes)
    candidates = describe_candidates(logits, grid)
    return Candidates(candidates.weights, candidates.boxes, candidates.valid & passing), logits, ious


def _merge_image(
    sam2: Sam2,
    features: ImageFeatures,
    patches: Array,
    prototypes: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
    negatives: Array | None,
) -> tuple[Merged, Array]:
    """Steps 4 to 10 for one encoded image -> detections without masks, and the candidates' logits `[P, m, m]`."""
    proposals = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), config)
    return merge_proposals(patches, proposals, prototypes, height, width, config, negatives), proposals[1]


def merge_proposals(
    patches: Array,
    proposals: tuple[Candidates, Array, Array],
    prototypes: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
    negatives: Array | None,
) -> Merged:
    """Steps 6 to 10 for what `propose_masks` returned of an image with these patches `[h, w, C]`. Pure."""
    candidates, logits, ious = proposals
    return merge_candidates(
        patches.astype(jnp.float32),
        candidates,
        logits,
        ious,
        prototypes,
        height=height,
        width=width,
        config=config,
        negatives=negatives,
    )


def encode_images(sam2: Sam2, dinov2: DinoVisionTransformer, images: Array) -> tuple[ImageFeatures, Array]:
    """Steps 2 and 3 for images `[B, S, S, 3]` uint8 -> SAM 2's features and patches `[B, h, w, C]`. Pure."""
    return sam2.encode_image(sam_input(images)), dinov2(encoder_input(images, dinov2.config.input_size))


def map_images(
    sam2: Sam2,
    dinov2: DinoVisionTransformer,
    images: Array,
    sizes: Array,
    one: Callable[[ImageFeatures, Array, Array], Any],
) -> Any:
    """Encode images `[B, S, S, 3]` together, then `one(features, patches, size)` for each in turn, stacked. Pure."""
    return jax.lax.map(lambda image: one(*image), (*encode_images(sam2, dinov2, images), sizes))


def segment(
    sam2: Sam2,
    dinov2: DinoVisionTransformer,
    prototypes: Array,
    image: Array,
    config: DetectConfig | None = None,
    *,
    negatives: Array | None = None,
) -> Detections:
    """Segment every instance of the prototypes' classes in one image: the whole of METHOD stage 3.

    Pure; jit it with `config` closed over or static. Every new image size compiles anew: for many images of many sizes
    use `Predictor`, which does not.

    Args:
      prototypes: `[K, C]`, one per class, L2-normalised (`aggregate_memory(...).prototypes`).
      image: `[H, W, 3]` uint8 RGB.
      config: constants; the default is the published ones.
      negatives: `[K, N, C]`, what looks like a class and is none (`match.similarities`).

    Returns:
      `Detections` with D = config.max_detections: masks `[D, H, W]`, boxes in pixels, best first.

    Raises:
      InputError: models in the wrong order, an image of another shape or type, prototypes or negatives of another
        encoder, a whole `Memory` in place of its prototypes.
    """
    config = DetectConfig() if config is None else config
    check_models(sam2, dinov2)
    if not hasattr(image, "ndim"):
        raise InputError(f"segment: expected an image as an array uint8 [H, W, 3], found {type(image).__name__}")
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != jnp.uint8:
        raise InputError(f"segment: expected an image uint8 [H, W, 3], found {image.dtype} {list(image.shape)}")
    prototypes, negatives = as_classes(prototypes, negatives, [dinov2.config.embed_dim])
    height, width = image.shape[:2]
    size = sam2.config.image_size
    features, patches = encode_images(sam2, dinov2, pil_resize_bicubic(jnp.asarray(image), (size, size))[None])
    merged, logits = _merge_image(sam2, features[0], patches[0], prototypes, height, width, config, negatives)
    masks = resize_masks(logits, merged.source, jnp.sum(merged.valid), height, width, (height, width))
    return Detections(masks, merged.boxes, merged.scores, merged.labels, merged.valid)


def detect_images(
    sam2: Sam2,
    dinov2: DinoVisionTransformer,
    prototypes: Array,
    images: Array,
    sizes: Array,
    config: DetectConfig,
    negatives: Array | None = None,
) -> tuple[Merged, Array]:
    """Stage 3 but for drawing the masks, for a batch of images of any sizes. Pure.

    Args:
      prototypes: `[K, C]`. images: `[B, S, S, 3]` uint8, resized by `resize_for_sam`.
      sizes: `[B, 2]` int32, height and width of the original images. negatives: `[K, N, C]`.

    Returns:
      `Merged` with a leading batch axis, and the logits of its rows, `[B, D, m, m]`.
    """

    def one(features: ImageFeatures, patches: Array, size: Array) -> tuple[Merged, Array]:
        merged, logits = _merge_image(sam2, features, patches, prototypes, size[0], size[1], config, negatives)
        return merged, logits[merged.source]

    return map_images(sam2, dinov2, images, sizes, one)


def detect_shard(
    shared: tuple[Any, ...], rows: tuple[Array, Array], there: Array, *, config: DetectConfig
) -> tuple[Merged, Array]:
    """`detect_images` as a per-shard function for `parallel.sharded` and `parallel.pmapped`.

    shared: both models, prototypes, and negatives if there are any; rows: images and sizes.
    """
    del there
    sam2, dinov2, prototypes, *negatives = shared
    return detect_images(sam2, dinov2, prototypes, *rows, config, *negatives)


def draw_masks(logits: Array, count: Array, size: Array, canvas: tuple[int, int], *, packed: bool) -> Array:
    """Full-size masks of the first `count` rows of `[n, m, m]` logits, on a canvas of this height and width.

    `[n, *canvas]` bool, or, `packed`, the last axis an eighth as long, uint8 (eight columns to a byte, high bit first).
    """
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)
    masks = resize_masks(logits, rows, count, size[0], size[1], canvas)
    return jnp.packbits(masks, axis=-1) if packed else masks


def check_models(sam2: Any, dinov2: Any) -> None:
    """Raise `InputError` unless these are the two models, in this order."""
    for name, model, kind in (("sam2", sam2, Sam2), ("dinov2", dinov2, DinoVisionTransformer)):
        if not isinstance(model, kind):
            raise InputError(f"{name}: expected a {kind.__name__}, found {type(model).__name__}")


def as_classes(prototypes: Any, negatives: Any, size: Sequence[int]) -> tuple[Array, Array | None]:
    """Prototypes `[n, *size]` as float32, and negatives, with one axis more before the last. Raises `InputError`."""
    if isinstance(prototypes, Memory):
        raise InputError("prototypes: expected an array [K, C], found a whole Memory; give its .prototypes")
    shape, advice = np.shape(prototypes), "was the memory made with another encoder?"
    if len(shape) != 1 + len(size) or shape[1:] != tuple(size) or not shape[0]:
        raise InputError(f"prototypes: expected [K, {str(list(size))[1:]}, found {list(shape)}; {advice}")
    if negatives is None:
        return jnp.asarray(prototypes, jnp.float32), None
    found = np.shape(negatives)
    if len(found) != len(shape) + 1 or found[:-2] + found[-1:] != shape:
        expected = ", ".join(map(str, [*shape[:-1], "N", shape[-1]]))
        raise InputError(f"negatives: expected [{expected}], found {list(found)}; {advice}")
    return jnp.asarray(prototypes, jnp.float32), jnp.asarray(negatives, jnp.float32)


_compiled: list[str] = []  # every program of the target pass made in this process, by what it is for


def note_compilation(name: str) -> None:
    """For the body of a jitted function, which runs when the program is traced and not when it is called."""
    _compiled.append(name)


def compile_count() -> int:
    """Programs of the target pass compiled in this process: main passes, and one for each canvas and row count."""
    return len(_compiled)
