"""Hugging Face's parameter names, turned into Meta's.

`Dinov2Model` and `Dinov2WithRegistersModel` split the fused query-key-value matrix in three; `Sam2Model` and
`Sam2VideoModel` join the four point embeddings in one table and keep the position encoding's matrix once or twice.
Everything else is a change of name. DINOv3 keeps the names of `DINOv3ViTModel`, which this project mirrors. Only the
names are facts of `transformers`; the values stay bit for bit.
"""

import re
from collections.abc import Mapping
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from weight_port.tensor import Tensor, concatenated

# Ordered, applied one after the other to every name.
_DINOV2 = [
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.attention\.attention\.(query|key|value)\.", r"\1.attn.qkv.\2."),
    (r"^(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+\.mlp)\.weights_in\.", r"\1.w12."),
    (r"^(blocks\.\d+\.mlp)\.weights_out\.", r"\1.w3."),
    (r"^layernorm\.", "norm."),
]

_DINOV3 = [(r"^model\.layer\.", "layer.")]  # as transformers 5 holds them; checkpoints have them without "model."

_THREE_LAYERS = (
    r"(mask_decoder\.(?:iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)|obj_ptr_proj)"
)
_SAM2 = [
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (_THREE_LAYERS + r"\.layers\.(\d+)\.", lambda m: f"{m[1]}.layers.{int(m[2]) + 1}." if len(m[2]) < 6 else m[0]),
    (_THREE_LAYERS + r"\.proj_in\.", r"\1.layers.0."),
    (_THREE_LAYERS + r"\.proj_out\.", r"\1.layers.last."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.(layers\.\d+)\.", r"memory_encoder.fuser.\1."),
    (r"^(memory_encoder\.fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv([12])\.", r".pwconv\1."),
    (r"\.mask_downsampler\.final_conv\.", ".mask_downsampler.encoder.12."),
    (r"\.mask_downsampler\.layers\.([0-3])\.conv\.", lambda m: f".mask_downsampler.encoder.{3 * int(m[1])}."),
    (r"\.mask_downsampler\.layers\.([0-3])\.layer_norm\.", lambda m: f".mask_downsampler.encoder.{3 * int(m[1]) + 1}."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d?)\.", r".norm\1."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
]
_GAUSSIAN = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def read_hints(config: Any, where: str) -> dict[str, Any] | None:
    """Fields of our configuration that Hugging Face's `config.json` states and no tensor shows.

    Args:
        config: the parsed file.
        where: for messages: its name.

    Returns:
        Fields as in `ntt_jax.config.to_dict`, unchecked, or None if it is the configuration of another model.

    Raises:
        InputError: it states an activation or epsilon that the model does not have.
    """
    trunk = _nested(config, "vision_config", "backbone_config")
    model = _nested(config).get("model_type")
    for part in (config, trunk):
        for name, expected in (("hidden_act", "gelu"), ("layer_norm_eps", 1e-5 if model == "dinov3_vit" else 1e-6)):
            if (found := _nested(part).get(name, expected)) != expected:
                raise InputError(f"{where}: {name} is {describe(found)}; the architecture has {expected}")
    if model == "dinov3_vit":
        given = _present(num_heads=config.get("num_attention_heads"), rope_theta=config.get("rope_theta"))
        return {"model": "dinov3", **given}
    if model in ("dinov2", "dinov2_with_registers"):
        return {"model": "dinov2", **_present(num_heads=config.get("num_attention_heads"))}
    if model not in ("sam2", "sam2_video"):
        return None
    heads, prompt = trunk.get("num_attention_heads_per_stage"), _nested(config, "prompt_encoder_config")
    return {
        "model": "sam2",
        "hiera": _present(
            num_heads=heads[0] if isinstance(heads, list) and heads else None,
            window_spec=trunk.get("window_size_per_stage"),
            global_att_blocks=trunk.get("global_attention_blocks"),
            q_pool=trunk.get("num_query_pool_stages"),
        ),
        **_present(
            image_size=prompt.get("image_size"),
            backbone_stride=prompt.get("patch_size"),
            fpn_top_down_levels=_nested(config, "vision_config").get("fpn_top_down_levels"),
            decoder_num_heads=_nested(config, "mask_decoder_config").get("num_attention_heads"),
        ),
    }


def _nested(value: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def is_huggingface(names: Any) -> bool:
    """Whether tensor names are Hugging Face's of either model."""
    starts = ("embeddings.", "encoder.layer.", "vision_encoder.", "prompt_encoder.shared_embedding")
    return any(name.startswith(starts) for name in names)


def to_meta(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors under Meta's names (DINOv3's under those of its checkpoints, which are Hugging Face's).

    What no rule knows keeps its name and is found extra later.

    Raises:
        InputError: tensors that must be joined are missing, of different shape or type, or contradict each other.
    """
    sam2 = any(name.startswith(("vision_encoder.", "prompt_encoder.")) for name in tensors)
    dinov3 = any(re.match(r"(?:model\.)?layer\.\d+\.", name) for name in tensors)
    rules = _SAM2 if sam2 else _DINOV3 if dinov3 else _DINOV2
    out: dict[str, Tensor] = {}
    for name, array in tensors.items():
        renamed = name
        for pattern, replacement in rules:
            renamed = re.sub(pattern, replacement, renamed)
        if renamed in out:
            raise InputError(f"{where}: two tensors would both become {renamed}")
        out[renamed] = array
    out = _number_last_layers(out, where)
    return _join_points(_join_gaussian(out, where), where) if sam2 else _join_qkv(out, where)


def _number_last_layers(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """`X.layers.last` is the layer after the highest numbered one."""
    highest: dict[str, int] = {}
    for name in tensors:
        if m := re.match(r"(.*\.layers)\.(\d{1,5})\.", name):
            highest[m[1]] = max(highest.get(m[1], 0), int(m[2]))
    out = {}
    for name, array in tensors.items():
        stem, last, leaf = name.partition(".layers.last.")
        name = f"{stem}.layers.{highest.get(f'{stem}.layers', -1) + 1}.{leaf}" if last else name
        if name in out:
            raise InputError(f"{where}: two tensors would both become {name}")
        out[name] = array
    return out


def _join_qkv(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Query, key and value, stacked along the outputs in this order."""
    out: dict[str, Tensor] = {}
    for name, array in tensors.items():
        m = re.match(r"(blocks\.\d+\.attn\.qkv)\.(query|key|value)\.(weight|bias)$", name)
        if m is None:
            out[name] = array
        elif f"{m[1]}.{m[3]}" not in out:
            parts = [tensors.get(f"{m[1]}.{part}.{m[3]}") for part in ("query", "key", "value")]
            out[f"{m[1]}.{m[3]}"] = _concatenate(parts, f"{where}: query, key and value {m[3]} of {m[1]}")
    return out


def _join_points(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """`point_embed` `[4, C]` is four embeddings `[1, C]` in Meta's code."""
    out = {}
    for name, array in tensors.items():
        if name != "sam_prompt_encoder.point_embed.weight":
            out[name] = array
            continue
        if array.ndim != 2 or array.shape[0] != 4:
            raise InputError(f"{where}: prompt_encoder.point_embed.weight: expected [4, C], found {list(array.shape)}")
        out |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": array.rows(i, i + 1) for i in range(4)}
    return out


def _join_gaussian(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The matrix of the position encoding stands under two names, of which a file may leave out one."""
    image = tensors.pop("shared_image_embedding.positional_embedding", None)
    prompt = tensors.pop("sam_prompt_encoder.shared_embedding.positional_embedding", None)
    if image is not None and prompt is not None and not _same_bits(image, prompt):
        raise InputError(
            f"{where}: shared_image_embedding and prompt_encoder.shared_embedding differ; SAM 2 has one matrix for both"
        )
    matrix = prompt if prompt is not None else image
    return tensors if matrix is None else {**tensors, _GAUSSIAN: matrix}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.read().tobytes() == b.read().tobytes()


def _concatenate(parts: list[Tensor | None], what: str) -> Tensor:
    arrays = [part for part in parts if part is not None]
    if len(arrays) != len(parts):
        raise InputError(f"{what}: {len(parts) - len(arrays)} of {len(parts)} missing")
    if len({(a.shape, a.dtype) for a in arrays}) != 1 or arrays[0].ndim == 0:
        raise InputError(f"{what}: shapes {[list(a.shape) for a in arrays]} and types must be equal")
    return concatenated(arrays)
