"""One image at a time, its points divided among devices: how the cores of a CPU are used best.

XLA divides every operation among all cores. The decoder's operations are so small that what the cores then hand to
each other takes longer than what they compute; a core that decodes points of its own keeps them in its second-level
cache. To JAX such a core is a device (`jax_num_cpu_devices`). The encoders, whose products are large, stay one program
for all cores:

    encode   images -> features and patches             first device, every core
    propose  features, points -> candidates             points divided over the devices
    finish   candidates of one image -> detections      first device

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
from ntt_jax.detection.merge import Candidates, Merged
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.point_grid.decode_grid import ONE_CORE, grid_points
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2
from ntt_jax.pipeline import encode_images, merge_proposals, note_compilation, propose_masks

Decoder = tuple[Any, Any]  # prompt encoder and mask decoder
Proposals = tuple[Candidates, Array, Array]


@functools.partial(jax.jit, static_argnames="definitions", compiler_options=COMPILER_OPTIONS)
def _encode(state: Any, images: Array, *, definitions: Any) -> tuple[tuple[ImageFeatures, Array], ...]:
    """Images `[B, S, S, 3]` uint8 -> features and patches of each."""
    note_compilation("encode")
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
    note_compilation("propose")
    sizes = ONE_CORE if mesh.devices.flat[0].platform == "cpu" else {}

    def shard(shared: tuple[Decoder, ImageFeatures], points: Array) -> Proposals:
        decoder, features = shared
        return propose_masks(PromptDecoder(sam2_config, *decoder), features, grid, config, points, **sizes)

    return over_mesh(shard, mesh)((decoder, features), points)


@functools.partial(jax.jit, static_argnames=("count", "config"), compiler_options=COMPILER_OPTIONS)
def _finish(
    classes: tuple[Array, Array | None],
    patches: Array,
    shards: Sequence[Proposals],
    size: Array,
    *,
    count: int,
    config: DetectConfig,
) -> tuple[Merged, Array]:
    """`merge_proposals` of the first `count` points, which the devices share -> as `detect_images` of one image."""
    note_compilation("finish")
    prototypes, negatives = classes
    proposals = _join(shards, count)
    merged = merge_proposals(patches, proposals, prototypes, size[0], size[1], config, negatives)
    return merged, proposals[1][merged.source]


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
        dinov2: DinoVisionTransformer,
        config: DetectConfig,
        definitions: Any,
        devices: Sequence[Any],
    ):
        mesh = device_mesh(devices)
        self._everywhere, self._first = NamedSharding(mesh, P()), SingleDeviceSharding(mesh.devices.flat[0])
        self._decoder = jax.device_put((sam2.sam_prompt_encoder, sam2.sam_mask_decoder), self._everywhere)
        points, _, self._count = pad_rows(grid_points(sam2.config.image_size, config.points_per_side), mesh.size)
        self._points = jax.device_put(points, NamedSharding(mesh, P(AXIS)))
        self._encode = functools.partial(_encode, definitions=definitions)
        grid = (dinov2.config.grid, dinov2.config.grid)
        self._propose = functools.partial(_propose, sam2_config=sam2.config, grid=grid, config=config, mesh=mesh)
        self._finish = functools.partial(_finish, count=self._count, config=config)

    def __call__(
        self, state: Any, classes: tuple[Array, Array | None], images: Array, sizes: Array
    ) -> tuple[Merged, Array]:
        """The models' state, prototypes and negatives, `[B, S, S, 3]`, `[B, 2]` -> as `detect_images`."""
        found = []
        for index, (features, patches) in enumerate(self._encode(state, images)):
            found.append(self._finish(classes, patches, self._shards(features), sizes[index]))
        return _stack(found)

    def propose(self, features: ImageFeatures) -> Proposals:
        """As `propose_masks` of one image."""
        return _joined(self._shards(features), count=self._count)

    def _shards(self, features: ImageFeatures) -> list[Proposals]:
        """What every device proposes, brought to the first.

        One by one: JAX would wait for all of them before it brought a divided array together, and `_finish` be traced
        or its program loaded only then.
        """
        found = self._propose(self._decoder, jax.device_put(features, self._everywhere), self._points)
        leaves, structure = jax.tree.flatten(found)
        by_device = zip(*([shard.data for shard in x.addressable_shards] for x in leaves), strict=True)
        return [jax.tree.unflatten(structure, jax.device_put(shards, self._first)) for shards in by_device]
