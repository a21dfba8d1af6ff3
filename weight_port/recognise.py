"""Which model and size a set of tensors is, read from names and shapes (Meta's).

What a tensor shows is read from it and may not be contradicted. What none shows (heads, windows, global blocks) comes
from the published variant of the same shapes, or has to be given.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ntt_jax.config import (
    DINOV2_CONFIGS,
    DINOV3_CONFIGS,
    SAM2_CONFIGS,
    DinoV2Config,
    DinoV3Config,
    HieraConfig,
    ModelConfig,
    Sam2Config,
    from_dict,
)
from ntt_jax.config import kind_of as kind_of_config
from ntt_jax.errors import InputError
from weight_port.rules import has_21_part, is_video

Shapes = Mapping[str, tuple[int, ...]]
PUBLISHED: dict[str, ModelConfig] = {**DINOV2_CONFIGS, **DINOV3_CONFIGS, **SAM2_CONFIGS}

# What no tensor shows and what differs between the published sizes: must be given for any other size.
_HIDDEN_ENCODER = ("num_heads",)
_PUBLISHED_HEADS = {
    kind: {c.embed_dim: c.num_heads for c in configs.values()}
    for kind, configs in (("dinov2", DINOV2_CONFIGS), ("dinov3", DINOV3_CONFIGS))
}
_HIDDEN_HIERA = ("num_heads", "window_spec", "global_att_blocks")


def kind_of(names: Iterable[str]) -> str | None:
    """ "sam2", "dinov2", "dinov3" or None, from the names of tensors (Meta's; of DINOv3, Hugging Face's)."""
    names = list(names)
    if any(name.startswith(("image_encoder.trunk.", "image_encoder.neck.", "sam_mask_decoder.")) for name in names):
        return "sam2"
    if any(re.match(r"blocks\.\d+\.(attn|mlp|norm1|ls1)\.", name) for name in names):
        return "dinov2"
    if any(re.match(r"layer\.\d+\.(attention|mlp|norm1|layer_scale1)\.", name) for name in names):
        return "dinov3"
    return None


def read_config(
    shapes: Shapes,
    where: str,
    *,
    model: str | None = None,
    given: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> tuple[ModelConfig, list[str]]:
    """Configuration of the model that has these tensors, and remarks for the user.

    Args:
        shapes: of all tensors, by Meta's names.
        where: for messages: the file.
        model: a published name that the tensors must fit; overrides recognition.
        given: fields as in `ntt_jax.config.to_dict`, all or some, for what the tensors do not show.
        hints: the same from a file beside the tensors; counts where nothing is given.

    Raises:
        InputError: neither model, contradictions, or fields that nothing shows (named in the message).
    """
    kind = kind_of(shapes)
    if kind is None:
        raise InputError(
            f"{where}: neither SAM 2 nor DINOv2 nor DINOv3: no tensor of any among {len(shapes)}; the first is "
            f"{next(iter(shapes), None)!r:.80}"
        )
    shown = _SHOWN[kind](shapes, where)
    if model is not None:
        return _named(model, kind, shown, given, where), []
    if given is not None:
        return _given(kind, shown, given, where), []
    if hints and hints["model"] != kind:
        raise InputError(f"{where}: the tensors are those of a {kind} model, config.json describes a {hints['model']}")
    known = _merge(hints, shown)
    matches = [c for c in PUBLISHED.values() if kind_of_config(c) == kind and not _differences(known, c)]
    if kind != "sam2" and matches:
        return matches[0], []
    if hints and not _missing(kind, hints):
        return _given(kind, shown, hints, where), []
    if kind != "sam2" and (heads := _PUBLISHED_HEADS[kind].get(shown["embed_dim"])):
        remark = f"num_heads {heads} is that of the published models of width {shown['embed_dim']}; --config overrides"
        return _given(kind, shown, {"num_heads": heads}, where), [remark]
    if kind == "sam2" and matches:
        return _sam2_version(shapes, matches)
    hidden = ", ".join(_HIDDEN_ENCODER if kind != "sam2" else [f"hiera.{name}" for name in _HIDDEN_HIERA])
    raise InputError(
        f"{where}: {kind} of no published size ({_summary(shown)}), and the tensors do not show {hidden}: "
        f"give these with --config FILE.json"
    )


def _sam2_version(shapes: Shapes, matches: list[Any]) -> tuple[Sam2Config, list[str]]:
    """2.0 and 2.1 have the same image path; the video part tells them apart."""
    plain, newer = matches
    if not any(map(is_video, shapes)):
        return plain, [
            f"no video part in this file, so 2.0 and 2.1 look the same (their image path is the same): taken as "
            f"{plain.name}; --model {newer.name} names it the other way"
        ]
    return (newer if has_21_part(shapes) else plain), []


def _named(model: str, kind: str, shown: dict[str, Any], given: Any, where: str) -> ModelConfig:
    config = PUBLISHED.get(model)
    if config is None:
        raise InputError(f"--model {model}: no such model; choose one of {', '.join(PUBLISHED)}")
    if given is not None:
        raise InputError("--model and --config: give one of them")
    if kind_of_config(config) != kind:
        raise InputError(f"{where}: --model {model}, but the tensors are those of a {kind} model")
    if different := _differences(shown, config):
        raise InputError(f"{where}: not {model}: {different[0]}")
    return config


def _given(kind: str, shown: dict[str, Any], given: Mapping[str, Any], where: str) -> ModelConfig:
    """The published constants, then what the tensors show, then what is given: which must not contradict them."""
    if given.get("model", kind) != kind:
        raise InputError(f"{where}: the tensors are those of a {kind} model, --config describes {given['model']!r:.40}")
    fields = {"model": kind, "name": f"{kind}_custom", **_defaults(kind, shown), **shown, **given}
    if kind == "sam2":
        hiera = given.get("hiera", {})
        if not isinstance(hiera, Mapping):
            raise InputError(f"configuration.hiera: expected a JSON object, found {type(hiera).__name__}")
        fields["hiera"] = {**shown["hiera"], **hiera}
    if missing := _missing(kind, given):
        raise InputError(f"{where}: --config lacks {', '.join(missing)}, which the tensors do not show")
    config = from_dict(fields)
    check_name(config, where)
    if different := _differences(shown, config):
        raise InputError(f"{where}: does not fit --config: {different[0]}")
    return config


def _missing(kind: str, given: Mapping[str, Any]) -> list[str]:
    """What neither tensors nor `given` say."""
    if kind != "sam2":
        return [name for name in _HIDDEN_ENCODER if name not in given]
    return [f"hiera.{name}" for name in _HIDDEN_HIERA if name not in given.get("hiera", {})]


def _merge(hints: Mapping[str, Any] | None, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What is known altogether: tensors first; JSON lists become tuples to compare with a configuration."""
    out = dict(shown)
    for name, value in (hints or {}).items():
        if isinstance(value, Mapping):
            out[name] = _merge(value, shown.get(name, {}))
        elif name == "window_spec" or (name not in shown and name != "model"):
            out[name] = tuple(value) if isinstance(value, list) else value
    return out


def _defaults(kind: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What no tensor shows but all published models of the kind share (the rest of it is in the dataclasses)."""
    if kind == "sam2":
        return {}
    if kind == "dinov3":
        return {"input_size": shown["patch_size"] * DinoV3Config().grid}
    patch, registers = shown["patch_size"], shown["num_register_tokens"]
    default = DinoV2Config()
    return {
        "input_size": patch * default.grid,
        "interpolate_offset": 0.0 if registers else default.interpolate_offset,
        "interpolate_antialias": bool(registers),
    }


def check_name(config: ModelConfig, where: str) -> None:
    """A name ends up in messages and file names: refuse control characters and novels."""
    if not re.fullmatch(r"[\w.+-]{1,100}", config.name):
        raise InputError(
            f"{where}: configuration.name must be 1 to 100 letters, digits or _.+-, found {config.name!a:.80}"
        )


def check_shown(config: ModelConfig, shapes: Shapes, where: str) -> None:
    """Raise `InputError` if the tensors show other sizes than `config`, before anything is built from it."""
    shown = _SHOWN[kind_of_config(config)](shapes, where)
    if different := _differences(shown, config):
        raise InputError(f"{where}: does not fit its configuration {config.name!r:.80}: {different[0]}")


def _differences(shown: Mapping[str, Any], config: Any, prefix: str = "") -> list[str]:
    out = []
    for name, value in shown.items():
        expected = getattr(config, name)
        if isinstance(expected, HieraConfig):
            out += _differences(value, expected, "hiera.")
        elif value != (expected[: len(value)] if name == "window_spec" else expected):
            out.append(f"the tensors show {prefix}{name} {value}, expected {expected}")
    return out


def _summary(shown: Mapping[str, Any]) -> str:
    inner = shown.get("hiera", shown)
    return ", ".join(f"{name} {inner[name]}" for name in ("embed_dim", "depth", "stages") if name in inner)


class _Reader:
    """Sizes of named tensors, with an error that names the tensor when it is not there or of another rank."""

    def __init__(self, shapes: Shapes, where: str):
        self.shapes, self.where = shapes, where

    def size(self, name: str, rank: int, axis: int) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            raise InputError(f"{self.where}: tensor {name} is missing")
        if len(shape) != rank or 0 in shape:
            raise InputError(f"{self.where}: tensor {name} has shape {list(shape)}, expected {rank} axes, none empty")
        return shape[axis]

    def count(self, prefix: str) -> int:
        """Number of members `prefix0`, `prefix1`, ... without gaps."""
        members = {m[1] for name in self.shapes if (m := re.match(re.escape(prefix) + r"(\d+)\.", name))}
        for i in range(len(members)):
            if str(i) not in members:
                raise InputError(f"{self.where}: tensors {prefix}{i}.* are missing ({len(members)} others are there)")
        if not members:
            raise InputError(f"{self.where}: tensors {prefix}0.* are missing")
        return len(members)


def _shown_by_dinov2(shapes: Shapes, where: str) -> dict[str, Any]:
    read = _Reader(shapes, where)
    dim = read.size("cls_token", 3, 2)
    patch = read.size("patch_embed.proj.weight", 4, 3)
    positions = read.size("pos_embed", 3, 1) - 1
    side = math.isqrt(max(positions, 0))
    if side * side != positions or side == 0:
        raise InputError(f"{where}: pos_embed has {positions + 1} positions, expected 1 + a square number")
    swiglu = "blocks.0.mlp.w3.weight" in shapes
    hidden = read.size("blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight", 2, 1)
    registers = read.size("register_tokens", 3, 1) if "register_tokens" in shapes else 0
    shown = {
        "embed_dim": dim,
        "depth": read.count("blocks."),
        "mlp_ratio": _mlp_ratio(dim, hidden, swiglu),
        "ffn_layer": "swiglu" if swiglu else "mlp",
        "num_register_tokens": registers,
        "patch_size": patch,
        "image_size": side * patch,
    }
    return shown


def _shown_by_dinov3(shapes: Shapes, where: str) -> dict[str, Any]:
    read = _Reader(shapes, where)
    if "layer.0.mlp.gate_proj.weight" in shapes:
        raise InputError(f"{where}: a DINOv3 with gated feed-forward layers (S+, H+, 7B); S, B and L are supported")
    return {
        "embed_dim": read.size("embeddings.cls_token", 3, 2),
        "depth": read.count("layer."),
        "ffn_hidden_dim": read.size("layer.0.mlp.up_proj.weight", 2, 0),
        "num_register_tokens": read.size("embeddings.register_tokens", 3, 1),
        "patch_size": read.size("embeddings.patch_embeddings.weight", 4, 3),
    }


def _mlp_ratio(dim: int, hidden: int, swiglu: bool) -> float:
    """The ratio that gives this hidden width; the published 4 where it does (roundings make others possible)."""
    for ratio in (4.0, hidden * (1.5 if swiglu else 1.0) / dim, (hidden + 0.5) / dim):
        probe = DinoV2Config(embed_dim=dim, mlp_ratio=ratio, ffn_layer="swiglu" if swiglu else "mlp")
        if probe.ffn_hidden_dim == hidden:
            return ratio
    return 4.0  # no ratio gives it: the comparison of shapes says so


def _shown_by_sam2(shapes: Shapes, where: str) -> dict[str, Any]:
    read = _Reader(shapes, where)
    trunk, decoder = "image_encoder.trunk", "sam_mask_decoder"
    blocks = read.count(f"{trunk}.blocks.")
    starts = [0, *(i for i in range(1, blocks) if f"{trunk}.blocks.{i}.proj.weight" in shapes), blocks]
    d_model = read.size("image_encoder.neck.convs.0.conv.weight", 4, 0)
    first = f"{decoder}.transformer.layers.0"
    hiera = {
        "embed_dim": read.size(f"{trunk}.patch_embed.proj.weight", 4, 0),
        "stages": tuple(b - a for a, b in itertools.pairwise(starts)),
        "window_pos_embed_bkg_spatial_size": (
            read.size(f"{trunk}.pos_embed", 4, 2),
            read.size(f"{trunk}.pos_embed", 4, 3),
        ),
        "window_spec": (read.size(f"{trunk}.pos_embed_window", 4, 2),),  # the first stage's; the others leave no trace
        "mlp_ratio": read.size(f"{trunk}.blocks.0.mlp.layers.0.weight", 2, 0)
        / read.size(f"{trunk}.blocks.0.mlp.layers.0.weight", 2, 1),
    }
    return {
        "hiera": hiera,
        "d_model": d_model,
        "decoder_depth": read.count(f"{decoder}.transformer.layers."),
        "decoder_mlp_dim": read.size(f"{first}.mlp.layers.0.weight", 2, 0),
        "attention_downsample_rate": d_model // read.size(f"{first}.cross_attn_token_to_image.q_proj.weight", 2, 0),
        "num_multimask_outputs": read.count(f"{decoder}.output_hypernetworks_mlps.") - 1,
        "iou_head_depth": read.count(f"{decoder}.iou_prediction_head.layers."),
        "iou_head_hidden_dim": read.size(f"{decoder}.iou_prediction_head.layers.0.weight", 2, 0),
        "mask_in_chans": read.size("sam_prompt_encoder.mask_downscaling.3.weight", 4, 0),
    }


_SHOWN = {"sam2": _shown_by_sam2, "dinov2": _shown_by_dinov2, "dinov3": _shown_by_dinov3}
