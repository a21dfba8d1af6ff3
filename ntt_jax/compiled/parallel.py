"""Work spread over devices: per-shard functions, written once, and their two wrappers, `sharded` and `pmapped`.

A per-shard function is `function(shared, rows, valid)`. `shared` (a model, prototypes) is the same on every device;
`rows` is a pytree of arrays whose first axis (references, classes, images) is divided among the devices; `valid` says
which of them are real and not padding. What it returns is either rows again, or, `reduced` over `AXIS`, the same whole
result on every device. Both wrappers take any number of rows on any number of devices.

    fill_memory        references -> memory of all classes, reduced
    aggregate_classes  classes with all their references -> memory
    match_images       candidates of images -> labels and scores
    detect_shard       whole images -> detections (in `pipeline`, whose `Predictor` takes streams of images)

The devices may be those of several processes (`jax.distributed`): every process makes the same call with all rows.

Each row is computed by itself, so neither the number of devices nor the other rows change its result but by rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ntt_jax.config import DetectConfig
from ntt_jax.detection.match import assign_labels, object_features, similarities
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import Memory, aggregate_memory, encode_references, prototypes_from_instance_means

AXIS = "batch"
"""Name of the mesh axis over which rows are divided."""

PerShard = Callable[[Any, Any, Array], Any]


def fill_memory(shared: Any, rows: tuple[Array, Array, Array], valid: Array, *, classes: int, shots: int) -> Memory:
    """Per shard, reduced: encode references and collect the memory of all classes (METHOD stages 1 and 2).

    Args:
      shared: the encoder.
      rows: crops `[n, E, E, 3]` float32 normalised; masks `[n, g, g]` float32 in [0, 1] on the patch grid; places
        `[n, 2]` int32, class index in 0..classes-1 and reference index in 0..shots-1, each place once.
      valid: `[n]` bool. classes, shots: K and S of the memory.

    Returns:
      `Memory` with prototypes `[K, C]`: that of `aggregate_memory`. References with an all-zero mask are not valid.
    """
    crops, masks, places = rows
    means = encode_references(shared, crops, masks)
    valid = valid & (jnp.sum(masks, axis=(1, 2)) > 0)
    row = jnp.where(valid, places[:, 0], classes)  # beyond the last class: dropped
    filled = jnp.zeros((classes, shots, means.shape[-1])).at[row, places[:, 1]].set(means, mode="drop")
    count = jnp.zeros((classes, shots), jnp.int32).at[row, places[:, 1]].set(1, mode="drop")
    # Every place is filled by one device and zero on the others: the sum is exact.
    filled, count = lax.psum((filled, count), AXIS)
    return Memory(prototypes_from_instance_means(filled, count > 0), filled, count > 0)


def aggregate_classes(shared: Any, rows: tuple[Array, Array], valid: Array) -> Memory:
    """Per shard: `aggregate_memory` of classes, rows features `[k, S, hw, C]` and masks `[k, S, hw]`; shared: ()."""
    del shared, valid
    return aggregate_memory(*rows)


def match_images(
    shared: Array | tuple[Array, Array],
    rows: tuple[Array, Array],
    valid: Array,
    *,
    classes_per_mask: int = 1,
    negative_sigma: float = DetectConfig.negative_sigma,
) -> tuple[Array, Array]:
    """Per shard: name the candidates of images (METHOD stage 3, step 6).

    Args:
      shared: prototypes `[K, C]`, or these and negatives `[K, N, C]`. rows: weights `[n, P, h, w]` float32 of
        `match.mask_weights`, features `[n, h, w, C]` float. classes_per_mask: as for `match.assign_labels`.
        negative_sigma: as for `match.similarities`.

    Returns:
      labels `[n, P, r]` int32 and scores `[n, P, r]` float32; -1 and 0 for candidates without a feature.
    """
    del valid
    prototypes, negatives = shared if isinstance(shared, tuple) else (shared, None)

    def one(image: tuple[Array, Array]) -> tuple[Array, Array]:
        objects, valid = object_features(*image)
        similarity = similarities(objects, prototypes, negatives, negative_sigma)
        labels, scores = assign_labels(similarity, classes_per_mask)
        return jnp.where(valid[:, None], labels, -1), jnp.where(valid[:, None], scores, 0.0)

    return lax.map(one, rows)


def over_mesh(function: Callable[..., Any], mesh: Mesh, *, reduced: bool = False) -> Callable[..., Any]:
    """`function(shared, *rows)` as one over all devices of a mesh, for use under `jit`; rows must divide evenly."""
    if mesh.size == 1 and not reduced:
        return function

    def run(shared: Any, *rows: Any) -> Any:
        specs = (P(), *[P(AXIS)] * len(rows))
        out = P() if reduced else P(AXIS)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(shared, *rows)

    return run


def device_mesh(devices: Sequence[Any] | None) -> Mesh:
    """A mesh of these devices, this process's default one if None. Raises `InputError` for none or one given twice."""
    devices = [jax.local_devices()[0]] if devices is None else list(devices)
    if not devices or len(set(devices)) != len(devices):
        raise InputError(f"devices: expected at least one, each once, found {[str(device) for device in devices]}")
    return Mesh(np.array(devices), (AXIS,))


def pad_rows(rows: Any, multiple: int) -> tuple[Any, np.ndarray, int]:
    """Repeat the last row until the number of rows divides by `multiple`.

    Args:
      rows: a pytree of arrays `[n, ...]`, n the same for all and at least 1.

    Returns:
      the rows `[m, ...]`; valid `[m]` bool, False for those added; n.

    Raises:
      InputError: no rows, or arrays with different numbers of them.
    """
    shapes = [list(np.shape(array)) for array in jax.tree.leaves(rows)]
    count = min((shape[0] if shape else 0 for shape in shapes), default=0)
    if count < 1 or any(shape[0] != count for shape in shapes):
        found = ", ".join(map(str, shapes)) or "none"
        raise InputError(f"rows: expected arrays with the same number of rows, at least 1, found shapes {found}")
    position = np.arange(-(-count // multiple) * multiple)
    index = np.minimum(position, count - 1)
    return (jax.tree.map(lambda array: array[index], rows) if len(index) > count else rows), position < count, count


def sharded(
    function: PerShard, devices: Sequence[Any] | None = None, *, reduced: bool = False
) -> Callable[[Any, Any], Any]:
    """`call(shared, rows)` over devices by `jax.jit` and `jax.shard_map`.

    Args:
      function: per shard, see above. devices: to use, the default one if None. reduced: whether it returns the same
        whole result on every device, and not rows.

    Returns:
      A function that raises `InputError` for rows that `pad_rows` refuses. It compiles once per shape of its arguments.
      It may stand inside another `jax.jit`, which on GPUs should have `compiler_options=config.COMPILER_OPTIONS`.
      What is shared is copied to the devices at every call unless it lies there (`jax.device_put` to `device_mesh`).
    """
    mesh = device_mesh(devices)
    program = jax.jit(over_mesh(function, mesh, reduced=reduced))

    def call(shared: Any, rows: Any) -> Any:
        rows, valid, count = pad_rows(rows, mesh.size)
        found = program(shared, rows, valid)
        return found if reduced else jax.tree.map(lambda array: array[:count], found)

    return call


def pmapped(
    function: PerShard, devices: Sequence[Any] | None = None, *, reduced: bool = False
) -> Callable[[Any, Any], Any]:
    """As `sharded`, by `jax.pmap`.

    `jax.pmap` takes and gives the rows of this process's devices. With devices of several processes each is given its
    part of the rows, and all get the result as numpy arrays of all rows.
    """
    # Those of a process together, as `jax.pmap` wants them; a sole process keeps its order.
    mesh = device_mesh(sorted(device_mesh(devices).devices.flat, key=lambda device: device.process_index))
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    several = len(own) < mesh.size

    def run(shared: Any, rows: Any, valid: Array) -> Any:
        return function(shared[0], rows, valid)

    out = None if reduced else 0
    program = jax.pmap(run, AXIS, in_axes=(None, 0, 0), out_axes=out, devices=list(mesh.devices.flat))

    def call(shared: Any, rows: Any) -> Any:
        rows, valid, count = pad_rows(rows, mesh.size)
        divided = jax.tree.map(lambda array: array.reshape(mesh.size, -1, *array.shape[1:]), (rows, valid))
        if several:
            divided = jax.tree.map(lambda array: array[np.array(own)], divided)
        # Beside a number: pmap takes the wrong axes for the rows where an argument with axis None holds no array.
        found = program((shared, np.int32(0)), *divided)
        if several and not reduced:
            found = process_allgather(found, tiled=True)
        return found if reduced else jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], found)

    return call
