"""Convert, export, inspect and load: strict both ways, bit for bit, one tensor in memory at a time.

Names and shapes are checked first, from the headers alone; numbers when they are read, which happens once.
"""

import dataclasses
import functools
import json
import os
import pathlib
import weakref
from collections.abc import Mapping
from importlib import metadata as package_metadata
from typing import Any

import ml_dtypes
import numpy as np

from ntt_jax.config import EncoderConfig, ModelConfig, Sam2Config, from_dict, to_dict
from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, show_path
from weight_port import rules
from weight_port.files import InputFile
from weight_port.recognise import check_name, check_shown, read_config
from weight_port.source import Source, open_source
from weight_port.store import FORMAT, Item, read_safetensors, write_safetensors
from weight_port.strangers import describe_stranger
from weight_port.tensor import Tensor, tensor_of
from weight_port.torch_file import looks_like_torch, torch_to_numpy
from weight_port.torch_write import write_torch

FORMAT_VERSION = "1"
CARRIED = "carried."
"""Prefix, in a converted file, of tensors that no module here uses; what follows is Meta's name, and Meta's layout."""

MAX_TENSOR_BYTES = 2**29
"""The largest tensor of any published model takes a tenth of it."""
WEIGHT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of one model. `tensors` in our names and layouts, `carried` in Meta's.

    Names, shapes and types are checked. Numbers are checked when a tensor is read: `InputError` if they are not finite.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    carried: dict[str, Tensor]
    order: tuple[str, ...]  # of the source, in names of the converted file
    metadata: dict[str, str]
    remarks: list[str]

    @property
    def complete(self) -> bool:
        """Whether an export is everything that Meta's class expects."""
        return isinstance(self.config, EncoderConfig) or bool(self.carried)


def check_tensors(
    tensors: Mapping[str, np.ndarray | Tensor],
    where: str,
    *,
    model: str | None = None,
    given: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
    config: ModelConfig | None = None,
) -> Weights:
    """Recognise tensors with Meta's names and check every one of them.

    Args:
        tensors: by Meta's names, Meta's layout.
        where: for messages: the file.
        model, given, hints: as for `recognise.read_config`.
        config: the configuration, if it is known; then nothing is recognised.

    Raises:
        InputError: not one of the two models, a missing, extra or mis-shaped tensor, or a type that is not float32,
            float16 or bfloat16.
    """
    shapes = {name: array.shape for name, array in tensors.items()}
    remarks: list[str] = []
    if config is None:
        config, remarks = read_config(shapes, where, model=model, given=given, hints=hints)
    else:
        check_shown(config, shapes, where)
    by_torch_name = {rule.torch_name: rule for rule in rules.skeleton(config).rules.values()}
    expected = {name: rule.torch_shape for name, rule in by_torch_name.items()}
    video = rules.video_tensors(shapes, config) if isinstance(config, Sam2Config) else {}
    expected = _without_optional(expected, shapes, complete=bool(video)) | video
    rules.check_names(shapes, expected, where, config.name)
    checked = {name: _checked(name, tensor_of(array), where) for name, array in tensors.items()}
    ours = {rule.name: rule.from_torch(checked[name]) for name, rule in by_torch_name.items() if name in checked}
    carried = {name: array for name, array in checked.items() if name not in by_torch_name}
    order = tuple(by_torch_name[n].name if n in by_torch_name else CARRIED + n for n in tensors)
    if isinstance(config, Sam2Config) and not carried:
        remarks = [*remarks, "no video part: an export of it loads into Meta's classes with strict=False only"]
    if isinstance(config, EncoderConfig) and not any(name in shapes for name in rules.MASK_TOKENS):
        remarks = [*remarks, "no mask_token, which only training reads: an export of it has none either"]
    return Weights(config, ours, carried, order, {}, remarks)


def _without_optional(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], *, complete: bool
) -> dict[str, tuple[int, ...]]:
    """What must be there: a checkpoint without a video part (`complete` False) may lack `rules.OPTIONAL`."""
    return {name: shape for name, shape in expected.items() if complete or name in found or name not in rules.OPTIONAL}


def _checked(name: str, tensor: Tensor, where: str) -> Tensor:
    """The tensor, its numbers checked whenever it is read. Raises `InputError` if it cannot be a weight."""
    if tensor.dtype not in WEIGHT_DTYPES:
        raise InputError(
            f"{where}: tensor {name} is {tensor.dtype}, expected float32, float16 or bfloat16; cast it and save again"
        )
    if tensor.nbytes > MAX_TENSOR_BYTES:
        raise InputError(f"{where}: tensor {name} takes {tensor.nbytes:,} bytes, more than {MAX_TENSOR_BYTES:,}")
    return tensor.checked(functools.partial(_check_numbers, name, where))


def _check_numbers(name: str, where: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise InputError(f"{where}: tensor {name} has {bad} of {array.size} numbers that are NaN or infinite")


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    model: str | None = None,
    given: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> tuple[Source, Weights]:
    """Convert a checkpoint of Meta's or Hugging Face's to one safetensors file with our names and layouts.

    The file keeps the types of the source, carries SAM 2's video-only tensors unchanged and holds the configuration,
    so that `ntt_jax.load_sam2` and `load_dinov2` need its path only.

    Args:
        source: .pt, .pth, .ckpt or .bin file, safetensors file, or Hugging Face folder. PyTorch is not needed.
        destination: file to write; an existing one is replaced when the new one is complete.
        model: published name that overrides recognition.
        given: fields of the configuration that the tensors do not show.
        key, prefix: which dictionary of the checkpoint ("model", "state/teacher"), and what all names of the model
            start with in it ("module."). Found where they are None; a choice between several models is asked for.

    Raises:
        InputError: anything wrong with either; nothing is written then.
    """
    opened, target = open_source(source, key=key, prefix=prefix), pathlib.Path(destination)
    _refuse_overwriting(opened, target)
    if opened.metadata.get("format") == FORMAT:
        raise InputError(f"{show_path(opened.path)}: is a converted file already; load it as it is, or `export` it")
    weights = check_tensors(opened.tensors, show_path(opened.path), model=model, given=given, hints=opened.hints)
    arrays = weights.tensors | {CARRIED + name: array for name, array in weights.carried.items()}
    meta = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(to_dict(weights.config)),
        "source_sha256": opened.sha256,
        "source_format": opened.form,
        "source_name": opened.path.name,
        "tool_version": f"ntt-jax {package_metadata.version('ntt-jax')}",
    }
    if opened.notes:
        meta["source_reading"] = "; ".join(opened.notes)[:1000]
    write_safetensors(target, [_item(name, arrays[name]) for name in weights.order], meta)
    return opened, weights


def _item(name: str, tensor: Tensor) -> Item:
    return Item(name, tensor.dtype, tensor.shape, tensor.read)


def _refuse_overwriting(opened: Source, target: pathlib.Path) -> None:
    for path in opened.files:
        if target.exists() and path.samefile(target):
            raise InputError(f"{show_path(target)}: source and destination are the same file; choose another name")


def read_converted(path: str | os.PathLike[str]) -> Weights:
    """Open a converted file and check its metadata, its configuration and every name and shape. Its header is read, no
    tensor.

    Raises:
        InputError: not a converted file (for an unconverted checkpoint: with the command that converts it), damaged,
            or tensors that do not fit the configuration in it.
    """
    path = pathlib.Path(path)
    where = show_path(path)
    if path.is_dir():
        raise _unconverted(path, "a folder")
    file = InputFile(path, what="weight file")
    if looks_like_torch(file):
        raise _unconverted(path, "a PyTorch checkpoint")
    if (words := describe_stranger(file)) is not None:
        raise InputError(f"{where}: {words}")
    tensors, meta = read_safetensors(file)
    if meta.get("format") != FORMAT:
        raise _unconverted(path, "a safetensors file of another program")
    if meta.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{where}: weight file of version {meta.get('format_version')!r:.40}, this program reads {FORMAT_VERSION}; "
            "convert the original again"
        )
    text = meta.get("config", "").encode("utf-8", "surrogatepass")
    config = from_dict(parse_json(text, path, what="configuration", strict=True), f"{where}: configuration")
    check_name(config, where)
    # Files made before `no_mem_embed` was a parameter carry it.
    older = {CARRIED + name: name for name in rules.OPTIONAL}
    tensors = {older.get(name, name): array for name, array in tensors.items()}
    carried = {n.removeprefix(CARRIED): a for n, a in tensors.items() if n.startswith(CARRIED)}
    ours = {n: a for n, a in tensors.items() if not n.startswith(CARRIED)}
    check_shown(config, _guess_torch_shapes(ours), where)
    try:
        table = rules.skeleton(config).rules
    except InputError as error:  # the model's own word on its configuration
        raise InputError(f"{where}: {error}") from None
    expected = {name: rule.shape for name, rule in table.items()}
    expected = _without_optional(expected, ours, complete=bool(carried))
    rules.check_names({n: a.shape for n, a in ours.items()}, expected, where, config.name)
    shapes = {n: a.shape for n, a in carried.items()}
    video = rules.video_tensors(shapes, config) if isinstance(config, Sam2Config) else {}
    rules.check_names(shapes, video, where, config.name)
    ours, carried = ({n: _checked(n, t, where) for n, t in group.items()} for group in (ours, carried))
    return Weights(config, ours, carried, tuple(tensors), meta, [])


def _guess_torch_shapes(ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes by the endings of our names alone, to read sizes before a module is laid out."""
    out = {}
    for name, array in ours.items():
        stem, _, last = name.rpartition(".")
        shape = array.shape
        if last in ("kernel", "scale", "embedding"):
            name = f"{stem}.weight"
        if last == "kernel" and len(shape) in (2, 4):
            shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])
        elif last.startswith("pos_embed") and len(shape) == 4:
            shape = (shape[0], shape[3], shape[1], shape[2])
        out[name] = shape
    return out


def _unconverted(path: pathlib.Path, what: str) -> InputError:
    target = f"{path.stem if path.suffix else path.name}.safetensors"
    if target == path.name:
        target = f"converted_{target}"
    return InputError(
        f"{show_path(path)}: {what}, not a converted weight file; convert it first: "
        f"python -m weight_port convert {path} {path.parent / target}"
    )


def inspect(
    path: str | os.PathLike[str], *, key: str | None = None, prefix: str | None = None
) -> tuple[Source, Weights]:
    """Open and check all of any checkpoint that `convert` reads or file that it wrote. key, prefix: as for `convert`.

    Raises `InputError` as `convert` does.
    """
    source = open_source(path, key=key, prefix=prefix)
    if source.metadata.get("format") == FORMAT:
        weights = read_converted(path)
    else:
        weights = check_tensors(source.tensors, show_path(source.path), hints=source.hints)
    for tensor in (*weights.tensors.values(), *weights.carried.values()):
        tensor.read()
    return source, weights


def export(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> Weights:
    """Write a converted file back with the original PyTorch names and layouts, bit-identical to what was converted.

    Args:
        source: a converted file.
        destination: .pt or .pth (as Meta's: SAM 2 under `"model"`, DINOv2 flat) or .safetensors.

    Raises:
        InputError: anything wrong with either; nothing is written then.
    """
    target = pathlib.Path(destination)
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        raise InputError(f"{show_path(target)}: expected a name ending in .pt, .pth or .safetensors")
    weights = read_converted(source)
    if target.exists() and target.samefile(source):
        raise InputError(f"{show_path(target)}: source and destination are the same file; choose another name")
    tensors = _torch_tensors(weights.config, weights.tensors, weights.carried, weights.order)
    if target.suffix == ".safetensors":
        write_safetensors(target, [_item(name, array) for name, array in tensors.items()], {"format": "pt"})
    else:
        write_torch(target, tensors, wrap=isinstance(weights.config, Sam2Config))
    return weights


def _torch_tensors(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    carried: Mapping[str, Tensor],
    order: tuple[str, ...],
) -> dict[str, Tensor]:
    """Views in torch's names and layouts, in the order of the source."""
    table = rules.skeleton(config).rules
    out = {}
    for name in order:
        if name.startswith(CARRIED):
            out[name.removeprefix(CARRIED)] = carried[name.removeprefix(CARRIED)]
        else:
            out[table[name].torch_name] = table[name].into_torch(tensors[name])
    return out


# Tensors that a module was loaded with and does not use, for `export_state_dict`. Beside the modules, not in them:
# there they would travel through every jit.
_carried: weakref.WeakKeyDictionary[Any, dict[str, Tensor]] = weakref.WeakKeyDictionary()


def build(weights: Weights, dtype: str) -> Any:
    """The Flax module of checked weights, `Sam2` or an encoder.

    Args:
        weights: checked.
        dtype: "float32" or "bfloat16", for kernels and products; norms, LayerScale and position tables stay float32.

    Raises:
        InputError: another dtype, or numbers that are not finite.
    """
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f'dtype: expected "float32" or "bfloat16", found {dtype!r:.40}')
    module = rules.fill(weights.config, weights.tensors, dtype)
    _carried[module] = weights.carried
    return module


def convert_state_dict(state_dict: Mapping[str, Any], config: ModelConfig, *, dtype: str = "float32") -> Any:
    """Build our module from a PyTorch state dict with Meta's names (`SAM2Base` or `DinoVisionTransformer`).

    Args:
        state_dict: torch tensors or numpy arrays of float32, float16 or bfloat16, in torch's layouts. Video-only
            tensors of SAM 2 may be there or not.
        config: what the state dict is of.
        dtype: "float32" or "bfloat16", as for `ntt_jax.load_sam2`.

    Returns:
        `ntt_jax.models.sam2.sam2_base.Sam2`, or an encoder of `ntt_jax.models.encoder`.

    Raises:
        InputError: a missing, extra or mis-shaped tensor, a wrong type or a number that is not finite.
    """
    if not isinstance(config, ModelConfig):
        raise InputError(f"config: expected a DinoV2Config, DinoV3Config or Sam2Config, found {type(config).__name__}")
    arrays = {str(name): _as_numpy(name, value) for name, value in state_dict.items()}
    return build(check_tensors(arrays, "state dict", config=config), dtype)


def _as_numpy(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        return torch_to_numpy(value)
    try:
        return np.asarray(value)
    except Exception:  # whatever an object's __array__ raises
        raise InputError(f"state dict: {name!r:.120} is {type(value).__name__}, expected a tensor or array") from None


def export_state_dict(module: Any) -> dict[str, np.ndarray]:
    """Parameters of our module as numpy arrays with Meta's names and layouts.

    Args:
        module: `Sam2` or an encoder with values.

    Returns:
        One array per tensor, in the module's types. For SAM 2 the image path, and also the video-only tensors if
        exactly this object came from `convert_state_dict` or a loader (copies made by `nnx.merge` have none).

    Raises:
        InputError: another kind of object.
    """
    config = getattr(module, "config", None)
    if not isinstance(config, ModelConfig):
        raise InputError(f"expected a Sam2, DinoVisionTransformer or DINOv3ViTModel, found {type(module).__name__}")
    ours = rules.values(module)
    out = {rule.torch_name: rule.into_torch(ours[name]) for name, rule in rules.skeleton(config).rules.items()}
    carried = {name: tensor.read() for name, tensor in _carried.get(module, {}).items()}
    return {name: np.array(array, order="C") for name, array in {**out, **carried}.items()}
