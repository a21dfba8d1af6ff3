"""Which weights a model has, from whatever file they came: a digest of its tensors under our names, in our layouts.

Meta's file, Hugging Face's and a converted one of the same weights differ in every byte; this does not.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from weight_port import rules
from weight_port.port import Weights


def fingerprint(model: nnx.Module) -> dict[str, Any]:
    """The types of a model's tensors ("types") and a sha256 over all of them ("sha256")."""
    values = rules.values(model)
    return _digest({name: lambda value=value: value for name, value in values.items()})


def fingerprint_of_file(weights: Weights) -> dict[str, Any]:
    """`fingerprint` of the float32 model that would be built of checked weights. Every tensor is read, one at a time.

    Files of float16 or bfloat16 weights are widened as `load_dinov2` does it. Raises `InputError` for numbers that are
    not finite.
    """

    def reader(rule: rules.Rule) -> Callable[[], np.ndarray]:
        found = weights.tensors.get(rule.name)  # those that may be missing are 0, as in the model
        return lambda: np.zeros(rule.shape, rule.dtype) if found is None else np.asarray(found.read(), rule.dtype)

    return _digest({name: reader(rule) for name, rule in rules.skeleton(weights.config).rules.items()})


def _digest(tensors: Mapping[str, Callable[[], np.ndarray]]) -> dict[str, Any]:
    digest, types = hashlib.sha256(), set()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name]())
        types.add(str(value.dtype))
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.data if value.dtype == np.float32 else value.tobytes())
    return {"types": sorted(types), "sha256": digest.hexdigest()}
