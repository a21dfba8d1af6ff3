"""One image at a time, its points divided among devices: how the cores of a CPU are used best.

XLA divides every operation among all cores. The decoder's operations are so small that what the cores then hand to
each other takes longer than what they compute; a core that decodes points of its own keeps them in its second-level
cache. To JAX such a core is a device (`jax_num_cpu_devices`). The encoders, whose products are large, stay one program
for all cores:

    encode   images -> features and patches             first device, every core
    propose  features, points -> candidates             points divided over the devices
    finish   candidates of one image -> detections      first device (with boxes and finer masks, if asked for)

The devices hold a copy of the mask decoder (16 MB), and not of the encoders. The same functions in another order:
detections are those of `pipeline.detect_images`, but for rounding.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from ntt_jax.compiled.parallel import AXIS, device_mesh, over_mesh, pad_rows
from ntt_jax.config import COMPILER_OPTIONS, DetectConfig, Sam2Config
from ntt_jax.detection.merge import Merged
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.platform import ONE_CORE_GRID
from ntt_jax.models.sam2.point_grid.decode_grid import grid_points
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2
from ntt_jax.pipeline import (
    Proposals,
    all_points,
    encode_images,
    finish_image,
    only_there,
    propose_masks,
)

Decoder = tuple[Any, Any]  # prompt encoder and mask decoder


@functools.partial(jax.jit, static_argnames="definitions", compiler_options=COMPILER_OPTIONS)
def _encode(state: Any, images: Array, *, definitions: Any) -> tuple[tuple[ImageFeatures, Array], ...]:
    """Images `[B, S, S, 3]` uint8 -> features and patches of each."""
    sam2, dinov2 = nnx.merge(definitions, state)
    features, patches = encode_images(sam2, dinov2, images)
    return tuple((features[i], patches[i]) for i in range(len(images)))


@functools.partial(
    jax.jit, static_argnames=("sam2_config", "grid", "config", "mesh"), compiler_options=COMPILER_OPTIONS
)
def _propose(
    decoder: Decoder,
    features: ImageFeatures,
    points: Array,
    *,
    sam2_config: Sam2Config,
    grid: tuple[int, int],
    config: DetectConfig,
    mesh: Mesh,
) -> Proposals:
    """`propose_masks` of one image, every device for its share of the points."""
    sizes = ONE_CORE_GRID._asdict() if mesh.devices.flat[0].platform == "cpu" else {}

    def shard(shared: tuple[Decoder, ImageFeatures], points: Array) -> Proposals:
        decoder, features = shared
        return propose_masks(PromptDecoder(sam2_config, *decoder), features, grid, config, points, **sizes)

    return over_mesh(shard, mesh)((decoder, features), points)


@functools.partial(jax.jit, static_argnames=("total", "config", "image_size"))
def _all_points(
    grid: Array, patches: Array, prototypes: Array, *, total: int, config: DetectConfig, image_size: int
) -> tuple[Array, Array]:
    """`all_points` filled up to `total` of them, and which of the first are there."""
    points, there = all_points(grid, patches, prototypes, config, image_size)
    return jax.numpy.pad(points, ((0, total - len(points)), (0, 0)), mode="edge"), there


@functools.partial(jax.jit, static_argnames=("count", "config", "sam2_config"), compiler_options=COMPILER_OPTIONS)
def _finish(
    classes: tuple[Array, Array | None],
    patches: Array,
    shards: Sequence[Proposals],
    size: Array,
    there: Array | None,
    prompting: tuple[tuple[Any, Any, Any], ImageFeatures, Array | None] | None,
    *,
    count: int,
    config: DetectConfig,
    sam2_config: Sam2Config,
) -> tuple[Merged, Array]:
    """`finish_image` of the first `count` points, which the devices share -> as `detect_images` of one image.

    there: which points are meant, all if None. prompting: what boxes and finer masks need, if they are asked for.
    """
    prototypes, negatives = classes
    proposals = _join(shards, count)
    proposals = proposals if there is None else only_there(proposals, there)
    nothing: Any = ((None, None, None), None, None)
    decoder, features, boxes = prompting or nothing
    sam2 = PromptDecoder(sam2_config, *decoder)
    return finish_image(sam2, features, patches, proposals, prototypes, size[0], size[1], config, negatives, boxes)


def _join(shards: Sequence[Proposals], count: int) -> Proposals:
    """What the devices proposed, for the first `count` points: what fills up the last device's share is behind them."""
    return jax.tree.map(lambda *x: jax.numpy.concatenate(x)[:count], *shards)


_joined = functools.partial(jax.jit, static_argnames="count")(_join)


@jax.jit
def _stack(found: list[tuple[Merged, Array]]) -> tuple[Merged, Array]:
    return jax.tree.map(lambda *x: jax.numpy.stack(x), *found)


class PointParallel:
    """Called as the compiled `detect_images`, with everything on the first of `devices`.

    Args:
      sam2, dinov2: the models. config: constants of the method. definitions: of `nnx.split((sam2, dinov2))`.
      devices: at least one, each once; the first also encodes and finishes.

    Raises:
      InputError: no devices, or one twice.
    """

    def __init__(
        self,
        sam2: Sam2,
        dinov2: Encoder,
        config: DetectConfig,
        definitions: Any,
        devices: Sequence[Any],
    ):
        mesh = device_mesh(devices)
        self._everywhere, self._first = NamedSharding(mesh, P()), SingleDeviceSharding(mesh.devices.flat[0])
        self._decoder = jax.device_put((sam2.sam_prompt_encoder, sam2.sam_mask_decoder), self._everywhere)
        grid_of_points = grid_points(sam2.config.image_size, config.points_per_side)
        points, _, self._grid_count = pad_rows(grid_of_points, mesh.size)
        self._count = self._grid_count + config.extra_points
        self._divided = NamedSharding(mesh, P(AXIS))
        self._points = jax.device_put(points, self._divided)
        self._prompting = None
        if config.refine != "none" or config.proposals != "none":
            decoder = sam2.sam_prompt_encoder, sam2.sam_mask_decoder, sam2.no_mem_embed
            self._prompting = jax.device_put(decoder, self._first)
        self._more = None
        if config.extra_points:
            total = -(-self._count // mesh.size) * mesh.size
            more = functools.partial(_all_points, total=total, config=config, image_size=sam2.config.image_size)
            self._more = functools.partial(more, jax.device_put(grid_of_points, self._first))
        self._encode = functools.partial(_encode, definitions=definitions)
        grid = (dinov2.config.grid, dinov2.config.grid)
        self._propose = functools.partial(_propose, sam2_config=sam2.config, grid=grid, config=config, mesh=mesh)
        self._finish = functools.partial(_finish, count=self._count, config=config, sam2_config=sam2.config)

    def __call__(
        self, state: Any, classes: tuple[Array, Array | None], images: Array, sizes: Array, *boxes: Array
    ) -> tuple[Merged, Array]:
        """The models' state, prototypes and negatives, `[B, S, S, 3]`, `[B, 2]` -> as `detect_images`."""
        found = []
        for index, (features, patches) in enumerate(self._encode(state, images)):
            points, there, prompting = self._points, None, None
            if self._more is not None:
                points, there = self._more(patches, classes[0])
                points = jax.device_put(points, self._divided)
            if self._prompting is not None:
                prompting = self._prompting, features, boxes[0][index] if boxes else None
            shards = self._shards(features, points)
            found.append(self._finish(classes, patches, shards, sizes[index], there, prompting))
        return _stack(found)

    def propose(self, features: ImageFeatures) -> Proposals:
        """As `propose_masks` of one image, for the grid of points."""
        return _joined(self._shards(features, self._points), count=self._grid_count)

    def _shards(self, features: ImageFeatures, points: Array) -> list[Proposals]:
        """What every device proposes, brought to the first.

        One by one: JAX would wait for all of them before it brought a divided array together, and `_finish` be traced
        or its program loaded only then.
        """
        found = self._propose(self._decoder, jax.device_put(features, self._everywhere), points)
        leaves, structure = jax.tree.flatten(found)
        by_device = zip(*([shard.data for shard in x.addressable_shards] for x in leaves), strict=True)
        return [jax.tree.unflatten(structure, jax.device_put(shards, self._first)) for shards in by_device]
