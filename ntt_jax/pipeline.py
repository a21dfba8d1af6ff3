"""Target images to detections (METHOD stage 3): one pure function for researchers, one compiled pass for long runs.

`segment` is the whole of stage 3 for one image. `Predictor` runs the same steps over any number of images of any sizes:

    host    PIL resize to the model's side                                threads, ahead of the device
    device  `detect_images`: both encoders, decoder, matching, merging    one program, whatever the images' sizes
    device  `draw_masks`: the returned masks at full size                 one program per canvas (640, powers of two)
    host    COCO run lengths                                              a thread, behind the device
"""

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ntt_jax.config import COMPILER_OPTIONS, DetectConfig
from ntt_jax.detection import Candidates, Detections, Merged, describe_candidates, merge_candidates
from ntt_jax.dinov2 import DinoVisionTransformer
from ntt_jax.errors import InputError
from ntt_jax.merge import resize_masks
from ntt_jax.parallel import AXIS, device_mesh, over_mesh
from ntt_jax.preprocess import encoder_input, resize_for_sam, sam_input
from ntt_jax.resize import pil_resize_bicubic
from ntt_jax.rle import Rle, encode_masks
from ntt_jax.sam2.grid import decode_grid, grid_points
from ntt_jax.sam2.model import ImageFeatures, Sam2

CANVAS_SIDES = (256, 640, 1024, 2048, 4096, 8192, 16384, 32768)
_CANVAS_PIXELS = 2**28  # masks drawn together hold at most this many pixels: 256 MiB


def propose_masks(
    sam2: Sam2, features: ImageFeatures, grid: tuple[int, int], config: DetectConfig
) -> tuple[Candidates, Array, Array]:
    """Steps 4 to 6 for one encoded image: what does not depend on any memory. Pure.

    grid: rows and columns of DINOv2's patches. Returns the candidates (not `valid`: empty, or a predicted IoU that does
    not pass), their logits `[P, m, m]` and predicted IoUs `[P]`.
    """
    points = grid_points(sam2.config.image_size, config.points_per_side)
    logits, ious, passing = decode_grid(sam2, features, points, pred_iou_threshold=config.pred_iou_threshold)
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
    candidates, logits, ious = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), config)
    merged = merge_candidates(
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
    return merged, logits


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
      InputError: an image of another shape or type, prototypes or negatives of another encoder.
    """
    config = DetectConfig() if config is None else config
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != jnp.uint8:
        raise InputError(f"segment: expected an image uint8 [H, W, 3], found {image.dtype} {list(image.shape)}")
    prototypes, negatives = _as_classes(prototypes, negatives, [dinov2.config.embed_dim])
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


def draw_masks(logits: Array, count: Array, size: Array, canvas: int, *, packed: bool) -> Array:
    """Full-size masks of the first `count` rows of `[n, m, m]` logits.

    `[n, canvas, canvas]` bool, or, `packed`, `[n, canvas, canvas / 8]` uint8 (eight columns to a byte, high bit first).
    """
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)
    masks = resize_masks(logits, rows, count, size[0], size[1], (canvas, canvas))
    return jnp.packbits(masks, axis=-1) if packed else masks


@dataclass(frozen=True, eq=False)
class HostDetections:
    """The detections of one image on the host, best first.

    height, width in pixels; boxes `[n, 4]` float32 x1, y1, x2, y2, inclusive; scores `[n]` float32; labels `[n]` int32
    class index; rles: n COCO run-length masks of the image's size.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: list[Rle]


def _as_classes(prototypes: Any, negatives: Any, size: Sequence[int]) -> tuple[Array, Array | None]:
    """Prototypes `[n, *size]` as float32, and negatives, with one axis more before the last. Raises `InputError`."""
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


# The compiled entry points. They belong to no object, so that predictors of equal shapes share them.

_compiled: list[str] = []  # every program made in this process, by what it is for


def compile_count() -> int:
    """Programs of the target pass compiled in this process: main passes, and one for each canvas and row count."""
    return len(_compiled)


@functools.partial(
    jax.jit, static_argnames=("detect", "definitions", "config", "mesh"), compiler_options=COMPILER_OPTIONS
)
def _detect_batch(
    state: Any,
    classes: tuple[Array, Array | None],
    images: Array,
    sizes: Array,
    *,
    detect: Callable[..., Any],
    definitions: Any,
    config: DetectConfig,
    mesh: Mesh,
) -> Any:
    """`detect` (`detect_images` or its like) over the images of a mesh."""
    _compiled.append(detect.__name__)  # runs when the program is traced, not when it is called

    def shard(shared: Any, images: Array, sizes: Array) -> Any:
        state, (prototypes, negatives) = shared
        return detect(*nnx.merge(definitions, state), prototypes, images, sizes, config, negatives)

    return over_mesh(shard, mesh)((state, classes), images, sizes)


@functools.partial(jax.jit, static_argnames=("canvas", "rows", "packed"))
def _draw_rows(
    logits: Array, image: Array, start: Array, count: Array, size: Array, *, canvas: int, rows: int, packed: bool
) -> Array:
    """`draw_masks` for rows [start, start + rows) of one image of `[B, D, m, m]`."""
    _compiled.append(f"draw_masks {canvas}")
    part = jax.lax.dynamic_slice(logits, (image, start, 0, 0), (1, rows, *logits.shape[2:]))[0]
    return draw_masks(part, count, size, canvas, packed=packed)


class Predictor:
    """The compiled target pass: an iterable of images in, their detections out, in order.

    Args:
      sam2, dinov2: the models. prototypes: `[K, C]`. config: constants of the method.
      negatives: `[K, N, C]`, what looks like a class and is none (`match.similarities`).
      batch_size: images per device and step.
      devices: those to use, the default one if None. Each works on its own share of every batch.
      matmul_precision: "highest" for float32 products; "tensorfloat32" trades exactness for speed on GPUs that have it.
      canvas: longest image side to expect; masks are drawn on a canvas of at least this side. Without it, the first
        larger image compiles the drawing program anew (never the main one).

    Raises:
      InputError: prototypes or negatives of another encoder, a batch size below 1, no devices.
    """

    def __init__(
        self,
        sam2: Sam2,
        dinov2: DinoVisionTransformer,
        prototypes: Any,
        config: DetectConfig | None = None,
        *,
        negatives: Any = None,
        batch_size: int = 1,
        devices: Sequence[Any] | None = None,
        matmul_precision: str = "highest",
        canvas: int = 0,
    ):
        self.config = DetectConfig() if config is None else config
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        mesh = device_mesh(devices)
        self.batch_size = batch_size * mesh.size
        self.image_size = sam2.config.image_size
        self._canvas = canvas
        self._precision = matmul_precision
        self._packed = mesh.devices.flat[0].platform != "cpu"
        # Split once: handing a state to a compiled function is cheaper than handing it a module.
        definitions, state = nnx.split((sam2, dinov2))
        self._sharded, self._shared = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
        self._state = jax.device_put(state, self._shared)
        self._classes = self._place(prototypes, negatives, [dinov2.config.embed_dim])
        self._program = functools.partial(
            _detect_batch, detect=detect_images, definitions=definitions, config=self.config, mesh=mesh
        )

    def __call__(self, images: Iterable[np.ndarray]) -> Iterator[HostDetections]:
        """Detections of each image `[H, W, 3]` uint8 RGB, lazily and in order.

        At most three batches are in memory. An exception from `images` is raised after the detections of the images
        before it have been given out. Raises `InputError` for an image of another shape or type.
        """
        images = iter(images)
        pending: deque[Future[list[HostDetections]]] = deque()
        with ThreadPoolExecutor(4) as workers, ThreadPoolExecutor(1) as collector:
            failure: BaseException | None = None
            while failure is None:
                batch: list[np.ndarray] = []
                try:
                    for image in islice(images, self.batch_size):
                        batch.append(_check_image(image))
                except Exception as error:
                    failure = error
                if not batch:
                    break
                sizes = [(image.shape[0], image.shape[1]) for image in batch]
                resized = list(workers.map(functools.partial(resize_for_sam, size=self.image_size), batch))
                pending.append(collector.submit(self._collect, self._dispatch(resized, sizes), sizes))
                while len(pending) > 2:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
            if failure is not None:
                raise failure

    def with_prototypes(self, prototypes: Any, negatives: Any = None) -> "Predictor":
        """A predictor of other prototypes `[K, C]` and negatives `[K, N, C]` that shares this one's models and compiled
        programs (same sizes: nothing is compiled). Raises `InputError` for those of another encoder."""
        other = copy.copy(self)
        other._classes = self._place(prototypes, negatives, self._classes[0].shape[1:])
        return other

    def _place(self, prototypes: Any, negatives: Any, size: Sequence[int]) -> tuple[Array, Array | None]:
        return jax.device_put(_as_classes(prototypes, negatives, size), self._shared)

    def _dispatch(self, images: list[np.ndarray], sizes: list[tuple[int, int]]) -> tuple[Merged, Array]:
        missing = self.batch_size - len(images)
        batch = np.stack(images + [images[-1]] * missing)
        shape = np.array(sizes + [(1, 1)] * missing, np.int32)
        with jax.default_matmul_precision(self._precision):
            return self._program(self._state, self._classes, *jax.device_put((batch, shape), self._sharded))

    def _collect(self, outputs: tuple[Merged, Array], sizes: list[tuple[int, int]]) -> list[HostDetections]:
        merged, logits = outputs
        # In order of the batch; each shard's masks are drawn where its logits are.
        shards = sorted(logits.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        merged = jax.tree.map(np.asarray, merged)
        found = []
        for index, (height, width) in enumerate(sizes):
            shard, row = divmod(index, self.batch_size // len(shards))
            count = int(np.sum(merged.valid[index]))
            found.append(
                HostDetections(
                    height,
                    width,
                    merged.boxes[index, :count].astype(np.float32),
                    merged.scores[index, :count],
                    merged.labels[index, :count],
                    self._masks(shards[shard].data, row, count, height, width),
                )
            )
        return found

    def _masks(self, logits: Array, image: int, count: int, height: int, width: int) -> list[Rle]:
        side = max(height, width, self._canvas)
        canvas = next((c for c in CANVAS_SIDES if c >= side), None)
        if canvas is None:
            raise InputError(f"image of {width} x {height} pixels: sides above {CANVAS_SIDES[-1]} are not supported")
        total = logits.shape[1]
        rows = max(1, min(total, _CANVAS_PIXELS // canvas**2))
        size = np.array([height, width], np.int32)
        rles: list[Rle] = []
        for start in range(0, count, rows):
            first = min(start, total - rows)
            end = min(start + rows, count)
            drawn = _draw_rows(logits, image, first, end - first, size, canvas=canvas, rows=rows, packed=self._packed)
            part = np.asarray(drawn)[start - first : end - first, :height]
            if self._packed:
                part = np.unpackbits(part, axis=-1)
            rles.extend(encode_masks(part[:, :, :width].view(np.bool_)))
        return rles


def _check_image(image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise InputError(f"expected an image as a numpy array uint8 [H, W, 3], found {found}")
    if not min(image.shape):
        raise InputError("expected an image with pixels, found an empty one")
    return image
