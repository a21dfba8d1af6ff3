"""The compiled target pass: `Predictor` runs METHOD stage 3 over any number of images of any sizes.

    host    PIL resize to the model's side                                threads, ahead of the device
    device  `detect_images`: both encoders, decoder, matching, merging    one program, whatever the images' sizes
    device  `draw_masks`: the returned masks at full size                 one program per canvas (640, powers of two)
    host    COCO run lengths                                              a thread, behind the device

Where devices divide the points of each image, the second line is three programs (`point_parallel`).
"""

import copy
import functools
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ntt_jax.compiled.devices import choose_devices, published_numbers
from ntt_jax.compiled.parallel import AXIS, device_mesh, over_mesh
from ntt_jax.compiled.point_parallel import PointParallel
from ntt_jax.config import COMPILER_OPTIONS, DetectConfig
from ntt_jax.detection.boxes import BoxedImage, choose_boxes
from ntt_jax.detection.merge import Merged
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import check_image, resize_for_sam
from ntt_jax.images.rle import Rle, encode_masks
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.pipeline import as_classes, check_models, detect_images, draw_masks

CANVAS_SIDES = (256, 640, 1024, 2048, 4096, 8192, 16384, 32768)
_CANVAS_PIXELS = 2**28  # masks drawn together hold at most this many pixels: 256 MiB
_SQUARE = 4096  # larger canvases are no square: a mask of 32768 x 24 pixels would take a GiB
_LARGE_PIXELS = 2**26  # on those, beside an image that takes half a GiB itself


_dispatching = threading.Lock()


@functools.cache
def _resizers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, "resize")


@functools.cache
def _collectors() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "collect")


# The compiled entry points. They belong to no object, so that predictors of equal shapes share them.


@functools.partial(
    jax.jit, static_argnames=("detect", "definitions", "config", "mesh"), compiler_options=COMPILER_OPTIONS
)
def _detect_batch(
    state: Any,
    classes: tuple[Array, Array | None],
    images: Array,
    sizes: Array,
    *boxes: Array,
    detect: Callable[..., Any],
    definitions: Any,
    config: DetectConfig,
    mesh: Mesh,
) -> Any:
    """`detect` (`detect_images` or its like) over the images of a mesh. boxes: of the images, if it takes them."""

    def shard(shared: Any, images: Array, sizes: Array, *boxes: Array) -> Any:
        state, (prototypes, negatives) = shared
        return detect(*nnx.merge(definitions, state), prototypes, images, sizes, config, negatives, *boxes)

    return over_mesh(shard, mesh)((state, classes), images, sizes, *boxes)


def _canvas(height: int, width: int, least: int) -> tuple[int, int]:
    """Height and width of what an image's masks are drawn on; the same for most photos, so that it is compiled once."""
    sides = [next((c for c in CANVAS_SIDES if c >= side), CANVAS_SIDES[-1]) for side in (height, width, least)]
    square = max(sides)
    return (square, square) if square <= _SQUARE else (sides[0], sides[1])


@functools.partial(jax.jit, static_argnames=("canvas", "rows", "packed"))
def _draw_rows(
    logits: Array,
    image: Array,
    start: Array,
    count: Array,
    size: Array,
    *,
    canvas: tuple[int, int],
    rows: int,
    packed: bool,
) -> Array:
    """`draw_masks` for rows [start, start + rows) of one image of `[B, D, m, m]`."""
    part = jax.lax.dynamic_slice(logits, (image, start, 0, 0), (1, rows, *logits.shape[2:]))[0]
    return draw_masks(part, count, size, canvas, packed=packed)


class Predictor:
    """The compiled target pass: an iterable of images in, their detections out, in order.

    Args:
      sam2, dinov2: the models. prototypes: `[K, C]`. config: constants of the method.
      negatives: `[K, N, C]`, what looks like a class and is none (`match.similarities`).
      batch_size: images per device and step.
      devices: those to use; None is the default one, or the cores of the CPU after `ntt_jax.use_all_cores()`.
      divide: what they divide: "points" of every image (`point_parallel`), the default for CPUs, or "images" of every
        batch, the default for accelerators.
      matmul_precision: "highest" for float32 products; "tensorfloat32" trades exactness for speed on GPUs that have it.
      canvas: longest image side to expect; masks are drawn on a canvas of at least this side. Without it, the first
        larger image compiles the drawing program anew (never the main one).

    Raises:
      InputError: models in the wrong order, prototypes or negatives of another encoder, a batch size below 1, or no
        devices.
    """

    def __init__(
        self,
        sam2: Sam2,
        dinov2: Encoder,
        prototypes: Any,
        config: DetectConfig | None = None,
        *,
        negatives: Any = None,
        batch_size: int = 1,
        devices: Sequence[Any] | None = None,
        divide: str | None = None,
        matmul_precision: str = "highest",
        canvas: int = 0,
    ):
        check_models(sam2, dinov2)
        self.config = DetectConfig() if config is None else config
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        devices, divide = choose_devices(devices, divide)
        mesh = device_mesh(devices[:1] if divide == "points" else devices)
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
        self._program: Callable[..., Any] = functools.partial(
            _detect_batch, detect=detect_images, definitions=definitions, config=self.config, mesh=mesh
        )
        if divide == "points" and len(devices) > 1 and self.config.proposals != "replace":
            self._program = PointParallel(sam2, dinov2, self.config, definitions, devices)

    def __call__(self, images: Iterable[np.ndarray | BoxedImage]) -> Iterator[HostDetections]:
        """Detections of each image `[H, W, 3]` uint8 RGB, lazily and in order.

        Where the configuration takes `proposals`, every image is a `BoxedImage`.

        At most three batches are in memory. An exception from `images` is raised after the detections of the images
        before it have been given out. Raises `InputError` for an image of another shape or type.
        """
        images = iter(images)
        pending: deque[Future[list[HostDetections]]] = deque()
        with ThreadPoolExecutor(4) as workers, ThreadPoolExecutor(1) as collector:
            failure: BaseException | None = None
            while failure is None:
                batch: list[np.ndarray] = []
                boxes: list[np.ndarray] = []
                try:
                    for given in islice(images, self.batch_size):
                        image, own = self._with_boxes(given)
                        batch.append(image)
                        boxes += own
                except Exception as error:
                    failure = error
                if not batch:
                    break
                pending.append(self._start(batch, boxes, workers, collector))
                while len(pending) > 2:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
            if failure is not None:
                raise failure

    def group(self, images: Sequence[np.ndarray | BoxedImage]) -> list[HostDetections]:
        """Detections of at most `batch_size` images, as `__call__`, when they are there.

        Threads may call it at the same time: what one has found is drawn while the devices work for another.
        """
        given = [self._with_boxes(image) for image in images]
        batch, boxes = [image for image, _ in given], [rows for _, own in given for rows in own]
        return self._start(batch, boxes, _resizers(), _collectors()).result() if batch else []

    def _start(
        self,
        batch: list[np.ndarray],
        boxes: list[np.ndarray],
        workers: ThreadPoolExecutor,
        collector: ThreadPoolExecutor,
    ) -> Future[list[HostDetections]]:
        sizes = [(image.shape[0], image.shape[1]) for image in batch]
        resized = list(workers.map(functools.partial(resize_for_sam, size=self.image_size), batch))
        with _dispatching:  # every device gets the work of all threads in one order
            outputs = self._dispatch(resized, sizes, boxes)
        return collector.submit(self._collect, outputs, sizes)

    def with_prototypes(self, prototypes: Any, negatives: Any = None) -> "Predictor":
        """A predictor of other prototypes `[K, C]` and negatives `[K, N, C]` that shares this one's models and compiled
        programs (same sizes: nothing is compiled). Raises `InputError` for those of another encoder."""
        other = copy.copy(self)
        other._classes = self._place(prototypes, negatives, self._classes[0].shape[1:])
        return other

    def _place(self, prototypes: Any, negatives: Any, size: Sequence[int]) -> tuple[Array, Array | None]:
        with published_numbers(self._precision):
            return jax.device_put(as_classes(prototypes, negatives, size), self._shared)

    def _with_boxes(self, given: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        """The image, and, where the configuration takes them, the one array of its boxes."""
        if self.config.proposals == "none":
            if isinstance(given, BoxedImage):
                raise InputError('an image with boxes: the configuration takes none; set proposals="replace" or "join"')
            return check_image(given), []
        if not isinstance(given, BoxedImage):
            raise InputError(
                f'the configuration takes boxes as prompts (proposals="{self.config.proposals}"), but images came'
                " without them"
            )
        return check_image(given.image), [choose_boxes(given.boxes, self.config)]

    def _dispatch(
        self, images: list[np.ndarray], sizes: list[tuple[int, int]], boxes: list[np.ndarray]
    ) -> tuple[Merged, Array]:
        missing = self.batch_size - len(images)
        batch = np.stack(images + [images[-1]] * missing)
        shape = np.array(sizes + [(1, 1)] * missing, np.int32)
        rows = [np.stack(boxes + [np.zeros_like(boxes[-1])] * missing)] if boxes else []
        with published_numbers(self._precision):
            return self._program(self._state, self._classes, *jax.device_put((batch, shape, *rows), self._sharded))

    def _collect(self, outputs: tuple[Any, Array], sizes: list[tuple[int, int]]) -> list[Any]:
        values, logits = outputs
        # In order of the batch; each shard's masks are drawn where its logits are.
        shards = sorted(logits.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        values = jax.tree.map(np.asarray, values)
        found = []
        for index, (height, width) in enumerate(sizes):
            shard, row = divmod(index, self.batch_size // len(shards))
            draw = functools.partial(self._masks, shards[shard].data, row, height=height, width=width)
            found.append(self._describe(jax.tree.map(operator.itemgetter(index), values), height, width, draw))
        return found

    def _describe(self, found: Any, height: int, width: int, draw: Callable[..., list[Rle]]) -> Any:
        """What is returned of one image. found: its part of the program's first output; draw: the first N masks."""
        count = int(np.sum(found.valid))
        some = (found.boxes[:count], found.scores[:count], found.labels[:count])
        return HostDetections(height, width, *some, tuple(draw(count=count)))

    def _masks(self, logits: Array, image: int, count: int, height: int, width: int) -> list[Rle]:
        if max(height, width) > CANVAS_SIDES[-1]:
            raise InputError(f"image of {width} x {height} pixels: sides above {CANVAS_SIDES[-1]} are not supported")
        canvas = _canvas(height, width, self._canvas)
        total = logits.shape[1]
        together = _CANVAS_PIXELS if max(canvas) <= _SQUARE else _LARGE_PIXELS
        rows = max(1, min(total, together // (canvas[0] * canvas[1])))
        size = np.array([height, width], np.int32)
        rles: list[Rle] = []
        for start in range(0, count, rows):
            first = min(start, total - rows)
            end = min(start + rows, count)
            with published_numbers(self._precision):
                drawn = _draw_rows(
                    logits, image, first, end - first, size, canvas=canvas, rows=rows, packed=self._packed
                )
            part = np.asarray(drawn)[start - first : end - first, :height]
            if self._packed:
                part = np.unpackbits(part, axis=-1)
            rles.extend(encode_masks(part[:, :, :width].view(np.bool_)))
        return rles
