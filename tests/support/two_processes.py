"""One of several processes that share their devices by `jax.distributed`.

    python two_processes.py ADDRESS COUNT INDEX

Prints, as one line of JSON, how far what it computes with all devices of all processes is from one device's.
"""

import functools
import json
import sys
from typing import Any

import jax
import numpy as np


def rows() -> tuple[Any, Any, Any]:
    """Features and masks of five classes, prototypes, and weights and features of three images."""
    rng = np.random.default_rng(0)
    features, masks = rng.standard_normal((5, 3, 25, 24)), rng.random((5, 3, 25))
    images = rng.random((3, 6, 5, 5)), rng.standard_normal((3, 5, 5, 24))
    prototypes = rng.standard_normal((4, 24))
    to32 = functools.partial(jax.tree.map, lambda array: array.astype(np.float32))
    return to32((features, masks)), to32(prototypes), to32(images)


def difference(found: Any, expected: Any) -> float:
    """The largest difference of any number. `found` may lie on the devices of several processes."""
    from jax.experimental.multihost_utils import process_allgather

    gathered = process_allgather(found, tiled=True)
    pairs = zip(jax.tree.leaves(gathered), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()) for a, b in pairs)


def main(address: str, count: int, index: int) -> None:
    """Compare both wrappers over all devices with one device."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.distributed.initialize(address, count, index)
    from ntt_jax.compiled.parallel import aggregate_classes, match_images, pmapped, sharded

    references, prototypes, images = rows()
    one = jax.local_devices()[:1]
    memory = jax.device_get(sharded(aggregate_classes, one)((), references))
    matched = jax.device_get(sharded(match_images, one)(prototypes, images))
    shuffled = [jax.devices()[position] for position in (0, 2, 1, 3)]  # devices of the processes in turn
    found = {"devices": len(jax.devices()), "local": len(jax.local_devices())}
    for name, devices in (("in order", jax.devices()), ("in turn", shuffled)):
        for wrap in (sharded, pmapped):
            made = wrap(aggregate_classes, devices)((), references), wrap(match_images, devices)(prototypes, images)
            if wrap is pmapped:  # numpy arrays of all rows, in every process
                made = jax.tree.map(lambda array: array[None], made)
                expected = jax.tree.map(lambda array: np.stack([array] * count), (memory, matched))
            else:
                expected = memory, matched
            found[f"{wrap.__name__} {name}"] = difference(made, expected)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
