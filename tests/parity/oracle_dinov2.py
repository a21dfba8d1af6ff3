"""The PyTorch DINOv2 models, filled with the recipe's weights, and all their intermediates.

Meta's package for the plain models; its release on PyPI has no registers, so Hugging Face's class for those.
"""

import numpy as np
import torch
from dinov2.models.vision_transformer import vit_base, vit_giant2, vit_large, vit_small
from recipe import recipe

from ntt_jax.config import DinoV2Config

_META = {384: vit_small, 768: vit_base, 1024: vit_large, 1536: vit_giant2}


def build_meta(config: DinoV2Config) -> torch.nn.Module:
    """Meta's module as its hub builds it for a plain published checkpoint, with the weights of its constructor."""
    return _META[config.embed_dim](
        patch_size=config.patch_size,
        img_size=config.image_size,
        init_values=1.0,
        ffn_layer="swiglufused" if config.ffn_layer == "swiglu" else "mlp",
        block_chunks=0,
    ).eval()


def build_with_registers(config: DinoV2Config) -> torch.nn.Module:
    """Hugging Face's module for a published checkpoint with registers, with the weights of its constructor."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            use_swiglu_ffn=config.ffn_layer == "swiglu",
            num_register_tokens=config.num_register_tokens,
            attn_implementation="eager",
        )
    ).eval()


# What Meta keeps in one tensor and Hugging Face (transformers 5.23) in several: Meta's name, place, of how many.
_PARTS = {
    "attention.q_proj": ("attn.qkv", 0, 3),
    "attention.k_proj": ("attn.qkv", 1, 3),
    "attention.v_proj": ("attn.qkv", 2, 3),
    "mlp.gate_proj": ("mlp.w12", 0, 2),
    "mlp.up_proj": ("mlp.w12", 1, 2),
}
_NAMES = {
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.": "",
    "encoder.layer.": "blocks.",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.down_proj": "mlp.w3",
    "layernorm.": "norm.",
}


def meta_key(key: str) -> tuple[str, int, int]:
    """Meta's key for one of either module, and which of how many equal parts (along axis 0) of its tensor it is."""
    place, count = 0, 1
    for theirs, (metas, part, parts) in _PARTS.items():
        if theirs in key:
            key, place, count = key.replace(theirs, metas), part, parts
    for theirs, metas in _NAMES.items():
        key = key.replace(theirs, metas)
    return key, place, count


def checkpoint_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint that fills this module, in Meta's names."""
    shapes = {}
    for key, value in model.state_dict().items():
        name, _, count = meta_key(key)
        shapes[name] = (count * value.shape[0], *value.shape[1:])
    return shapes


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Overwrite every parameter by the recipe's tensor of its (Meta's) checkpoint key, one at a time."""
    shapes = checkpoint_shapes(model)
    for key, param in model.state_dict().items():
        name, place, count = meta_key(key)
        param.copy_(torch.from_numpy(np.split(recipe(name, shapes[name], seed), count)[place]))
    return model


@torch.no_grad()
def outputs(model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """ "tokens0", "block0", ..., "norm", all tokens, for channels-last images `[B, H, W, 3]`."""
    found: dict[str, np.ndarray] = {}

    def keep(name):
        def hook(module, args, output):
            found[name] = (output[0] if isinstance(output, tuple) else output).numpy().copy()

        return hook

    def keep_input(module, args):
        found["tokens0"] = args[0].numpy().copy()

    meta = hasattr(model, "blocks")
    blocks = model.blocks if meta else model.encoder.layer
    handles = [blocks[0].register_forward_pre_hook(keep_input)]
    handles += [block.register_forward_hook(keep(f"block{i}")) for i, block in enumerate(blocks)]
    handles += [(model.norm if meta else model.layernorm).register_forward_hook(keep("norm"))]
    model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    for handle in handles:
        handle.remove()
    return found
