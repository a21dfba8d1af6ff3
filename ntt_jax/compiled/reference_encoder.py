"""References to their mean features, batch by batch, on one or many devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.compiled.parallel import AXIS, device_mesh, over_mesh
from ntt_jax.config import COMPILER_OPTIONS
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import encode_references
from ntt_jax.models.encoder import Encoder


class ReferenceEncoder:
    """`encode_references` compiled for batches of one size on any number of devices.

    Args:
      dinov2: the encoder. batch_size: references per device and step. devices: the default one if None.
      matmul_precision: as for `Predictor`.
    """

    def __init__(
        self,
        dinov2: Encoder,
        *,
        batch_size: int = 1,
        devices: Sequence[Any] | None = None,
        matmul_precision: str = "highest",
    ):
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        mesh = device_mesh(devices)
        self.config = dinov2.config
        self.batch_size = batch_size * mesh.size
        self._precision = matmul_precision
        definition, state = nnx.split(dinov2)
        self._sharded = NamedSharding(mesh, P(AXIS))
        self._state = jax.device_put(state, NamedSharding(mesh, P()))

        def run(state: Any, crops: Array, masks: Array) -> Array:
            return encode_references(nnx.merge(definition, state), crops, masks)

        self._run = jax.jit(over_mesh(run, mesh), compiler_options=COMPILER_OPTIONS)

    def __call__(self, crops: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """Mean features `[n, C]` float32 of n <= batch_size crops and grid masks."""
        missing = self.batch_size - len(crops)
        padded = (np.stack([*array, *[np.zeros_like(array[0])] * missing]) for array in (crops, masks))
        with published_numbers(self._precision):
            return np.asarray(self._run(self._state, *jax.device_put(tuple(padded), self._sharded)))[: len(crops)]
