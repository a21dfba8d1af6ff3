"""How the tensors of a checkpoint lead to the parameters of our modules, and back.

Attribute names mirror Meta's, so a parameter's path is its torch name but for the last part and for the layout:

| ours                                   | torch                                      |
|----------------------------------------|--------------------------------------------|
| `Linear.kernel` `[in, out]`            | `weight` `[out, in]`                       |
| `Conv.kernel` `[h, w, in, out]`        | `weight` `[out, in, h, w]`                 |
| `ConvTranspose2x2.kernel` `[h, w, in, out]` | `weight` `[in, out, h, w]`            |
| `LayerNorm.scale`, `Embed.embedding`   | `weight`                                   |
| position tables of Hiera `[1, h, w, C]` | the same name, `[1, C, h, w]`             |
| everything else                        | the same name and layout                   |

The table is derived by walking the module, so a parameter without a tensor or a tensor without a parameter cannot be
overlooked. What only the video part of SAM 2 uses has no module here; `video_tensors` lists it. `OPTIONAL` parameters
are 0 where a checkpoint has none.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntt_jax.config import SAM2_CONFIGS, ModelConfig, Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.files import reason
from ntt_jax.models.encoder import encoder_class
from ntt_jax.models.layers import ConvTranspose2x2, ShapesOnly
from ntt_jax.models.sam2.sam2_base import Sam2
from weight_port.tensor import Tensor

_RENAMED = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_LINEAR, _CONV, _TRANSPOSED_CONV, _TABLE = (1, 0), (2, 3, 1, 0), (2, 3, 0, 1), (0, 2, 3, 1)


MASK_TOKENS = frozenset({"mask_token", "embeddings.mask_token"})
"""Of DINOv2 and DINOv3; only training reads it."""
OPTIONAL = frozenset({"no_mem_embed", *MASK_TOKENS})
"""Parameters, by our name and the checkpoint's, that a checkpoint may lack; they are 0 then.

`no_mem_embed`: of SAM 2, where only its image path was saved.
"""


Array = TypeVar("Array", np.ndarray, Tensor)


class Rule(NamedTuple):
    """One parameter. `to_ours` is the axis permutation torch -> ours (None: same layout)."""

    name: str  # ours, as in the converted file
    torch_name: str
    path: tuple[Any, ...]  # in the module's state
    shape: tuple[int, ...]
    dtype: np.dtype
    to_ours: tuple[int, ...] | None

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.shape if self.to_ours is None else tuple(self.shape[i] for i in np.argsort(self.to_ours))

    def from_torch(self, array: Array) -> Array:
        """A view in our layout."""
        return array if self.to_ours is None else array.transpose(self.to_ours)

    def into_torch(self, array: Array) -> Array:
        """A view in torch's layout."""
        return array if self.to_ours is None else array.transpose([int(i) for i in np.argsort(self.to_ours)])


class Skeleton(NamedTuple):
    """A module without values: its graph, and the rule of each of its parameters by our name."""

    graph: Any
    state: Any
    rules: dict[str, Rule]


def skeleton(config: ModelConfig, dtype: str = "float32") -> Skeleton:
    """Shapes and rules of the module that `config` describes; nothing is allocated.

    Raises:
        InputError: `config` describes no model that can be built.
    """
    return _skeleton(config, dtype)


@functools.lru_cache(maxsize=32)
def _skeleton(config: ModelConfig, dtype: str) -> Skeleton:
    model: Any = Sam2 if isinstance(config, Sam2Config) else encoder_class(config)
    try:
        module = nnx.eval_shape(lambda: model(config, dtype=jnp.dtype(dtype), rngs=ShapesOnly()))
    except InputError as e:
        raise InputError(str(e)) from None  # without the notes that JAX adds to whatever passes its tracing
    except Exception as e:  # a configuration may come from a stranger's file; what its sizes break cannot be foreseen
        raise InputError(f"configuration {config.name!r:.80}: no model can be built from it: {reason(e)}") from None
    graph, state = nnx.split(module)
    rules = _walk(module, state)
    return Skeleton(graph, state, {rule.name: rule for rule in rules})


def _walk(module: nnx.Module, state: Any) -> list[Rule]:
    transposed = {path for path, part in nnx.iter_modules(module) if isinstance(part, ConvTranspose2x2)}
    rules = []
    for path, leaf in nnx.to_flat_state(state):
        value = leaf.get_value()
        *owner, last = (str(part) for part in path)
        rank, to_ours = len(value.shape), None
        if last == "kernel":
            conv = _TRANSPOSED_CONV if path[:-1] in transposed else _CONV
            to_ours = {2: _LINEAR, 4: conv}[rank]
        elif last.startswith("pos_embed") and rank == 4:
            to_ours = _TABLE
        torch_name = ".".join([*owner, _RENAMED.get(last, last)])
        rules.append(
            Rule(".".join([*owner, last]), torch_name, path, tuple(value.shape), np.dtype(value.dtype), to_ours)
        )
    return rules


def fill(config: ModelConfig, arrays: Mapping[str, Tensor], dtype: str) -> Any:
    """A module whose parameters are `arrays` (by our names, our layout), cast to what the module declares.

    Those of `OPTIONAL` may be missing: they are 0 then.

    One parameter at a time is copied to the device: the peak is one model. Shapes and names must have been checked.
    """
    graph, state, rules = skeleton(config, dtype)
    leaves = {}
    for path, leaf in nnx.to_flat_state(state):
        rule = rules[".".join(str(part) for part in path)]
        if rule.name in OPTIONAL and rule.name not in arrays:
            value = np.zeros(rule.shape, rule.dtype)
        else:  # a copy, cast on the host: nothing to compile
            value = np.array(arrays[rule.name].read(), dtype=rule.dtype, order="C")
        leaves[path] = leaf.replace(jax.device_put(value))
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def values(module: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters of a module by our names, on the host."""
    return {
        ".".join(str(part) for part in path): np.asarray(leaf.get_value())
        for path, leaf in nnx.to_flat_state(nnx.state(module))
    }


def check_names(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str, model: str
) -> None:
    """Strict both ways: raise `InputError` naming the first missing, extra or mis-shaped tensor, and how many more."""
    problems = [f"tensor {name} is missing" for name in expected if name not in found]
    problems += [
        f"tensor {name} has shape {list(found[name])}, expected {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    problems += [f"unexpected tensor {name!r:.120}" for name in found if name not in expected]
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise InputError(f"{where}: does not fit {model}: {problems[0]}{more}")


def video_tensors(found: Mapping[str, tuple[int, ...]], config: Sam2Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the video-only tensors of SAM 2 that belong beside those in `found` (Meta's names).

    The image path uses none of them: memory attention and encoder, object pointers, and the embeddings that stand for
    absent memories or objects. 2.1 has two more modules than 2.0. Sizes that Meta's code takes from its configuration
    (memory channels, number of memories and layers) are read from the tensors found. Empty if `found` has no video
    part.
    """
    video = {name for name in found if is_video(name)}
    if not video:
        return {}

    def size(name: str, axis: int, default: int) -> int:
        shape = found.get(name, ())
        return shape[axis] if len(shape) > axis else default

    d, hidden = config.d_model, size("memory_attention.layers.0.linear1.weight", 0, 2048)
    memory = size("memory_encoder.out_proj.weight", 0, 64)
    fuser = size("memory_encoder.fuser.layers.0.pwconv1.weight", 0, 1024)
    kernel = size("memory_encoder.fuser.layers.0.dwconv.weight", 2, 7)
    out: dict[str, tuple[int, ...]] = {
        "maskmem_tpos_enc": (size("maskmem_tpos_enc", 0, 7), 1, 1, memory),
        "no_mem_pos_enc": (1, 1, d),
        "no_obj_ptr": (1, d),
    }

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = shape
        if bias:
            out[f"{name}.bias"] = shape[:1]

    layer("mask_downsample", 1, 1, 4, 4)
    for i in range(_count(video, "memory_attention.layers.")):
        block = f"memory_attention.layers.{i}"
        for attention, source in (("self_attn", d), ("cross_attn_image", memory)):
            layer(f"{block}.{attention}.q_proj", d, d)
            layer(f"{block}.{attention}.k_proj", d, source)
            layer(f"{block}.{attention}.v_proj", d, source)
            layer(f"{block}.{attention}.out_proj", d, d)
        layer(f"{block}.linear1", hidden, d)
        layer(f"{block}.linear2", d, hidden)
        for norm in ("norm1", "norm2", "norm3"):
            layer(f"{block}.{norm}", d)
    layer("memory_attention.norm", d)
    channels = (1, 4, 16, 64, 256)  # the mask is reduced 16 times in four steps, whatever d_model is
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        layer(f"memory_encoder.mask_downsampler.encoder.{3 * i}", after, before, 3, 3)
        layer(f"memory_encoder.mask_downsampler.encoder.{3 * i + 1}", after)
    layer("memory_encoder.mask_downsampler.encoder.12", d, channels[-1], 1, 1)
    layer("memory_encoder.pix_feat_proj", d, d, 1, 1)
    for i in range(_count(video, "memory_encoder.fuser.layers.")):
        block = f"memory_encoder.fuser.layers.{i}"
        out[f"{block}.gamma"] = (d,)
        layer(f"{block}.dwconv", d, 1, kernel, kernel)
        layer(f"{block}.norm", d)
        layer(f"{block}.pwconv1", fuser, d)
        layer(f"{block}.pwconv2", d, fuser)
    layer("memory_encoder.out_proj", memory, d, 1, 1)
    for i in range(3):
        layer(f"obj_ptr_proj.layers.{i}", d, d)
    newer = config.name.startswith("sam2.1_") if config.name in SAM2_CONFIGS else has_21_part(video)
    if newer:
        out["no_obj_embed_spatial"] = (1, memory)
        layer("obj_ptr_tpos_proj", memory, d)
    return out


def has_21_part(names: Any) -> bool:
    """Whether the video part is that of SAM 2.1."""
    return any(name == "no_obj_embed_spatial" or name.startswith("obj_ptr_tpos_proj.") for name in names)


def is_video(name: str) -> bool:
    """Whether a tensor (Meta's name) belongs to the part of SAM 2 that only videos need."""
    return name.split(".", 1)[0] in _VIDEO_PARTS


_VIDEO_PARTS = {
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "mask_downsample",
    "memory_attention",
    "memory_encoder",
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
}


def _count(names: set[str], prefix: str) -> int:
    """How many different layers `prefix0`, `prefix1`, ... there are; gaps show up as missing tensors."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})
