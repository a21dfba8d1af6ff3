"""Fixtures: the tiny models in every form, and the server that has them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from weight_checkpoints import DINOV2_GIVEN, SAM2_GIVEN, TINY_DINOV2, TINY_SAM2, save, state_dict

from ntt_jax.hub import cache, fetch, names


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM 2 and DINOv2 in Meta's form (safetensors and .pt) and as Hugging Face folders."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder / "sam2.safetensors", state_dict(TINY_SAM2, "2.1"))
    save(folder / "dinov2.safetensors", state_dict(TINY_DINOV2))
    trunk = {"num_attention_heads_per_stage": [1], "window_size_per_stage": [8, 4, 14, 7]}
    configs = {
        "dinov2": {"model_type": "dinov2", "num_attention_heads": 2},
        "sam2": {
            "model_type": "sam2_video",
            "vision_config": {"backbone_config": trunk | {"global_attention_blocks": [4, 6]}},
            "prompt_encoder_config": {"image_size": 256},
        },
    }
    tensors = {"dinov2": huggingface_names(state_dict(TINY_DINOV2)), "sam2": state_dict(TINY_SAM2, "2.1")}
    for kind, config in configs.items():
        (folder / kind).mkdir()
        save(folder / kind / "model.safetensors", tensors[kind])
        (folder / kind / "config.json").write_text(json.dumps(config))
    return folder


def huggingface_names(tensors: dict) -> dict:
    """Meta's DINOv2 under the names of transformers' `Dinov2Model`, queries, keys and values apart."""
    out = {}
    for name, value in tensors.items():
        if name in ("cls_token", "mask_token"):
            out[f"embeddings.{name}"] = value
        elif name == "pos_embed":
            out["embeddings.position_embeddings"] = value
        elif name.startswith("patch_embed.proj."):
            out[name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = value
        elif name.startswith("norm."):
            out[f"layer{name}"] = value
        elif ".attn.qkv." in name:
            stem, last = name.replace("blocks", "encoder.layer").split(".attn.qkv.")
            for part, rows in zip(("query", "key", "value"), value.reshape(3, -1, *value.shape[1:]), strict=True):
                out[f"{stem}.attention.attention.{part}.{last}"] = rows.copy()
        else:
            name = name.replace("blocks", "encoder.layer").replace(".attn.proj.", ".attention.output.dense.")
            out[name.replace(".ls1.gamma", ".layer_scale1.lambda1").replace(".ls2.gamma", ".layer_scale2.lambda1")] = (
                value
            )
    return out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> Iterator[HubServer]:
    """The server, with fresh caches, the tiny models in the place of two published ones, and no patience."""
    from huggingface_hub import constants

    monkeypatch.setenv("NTT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 5)
    monkeypatch.setattr(fetch, "WAIT", 0.001)
    monkeypatch.setattr(fetch, "RETRIES", 2)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for kind, given in (("sam2.1_hiera_tiny", SAM2_GIVEN), ("dinov2_vits14", DINOV2_GIVEN)):
        data = (checkpoints / f"{kind.partition('_')[0].partition('.')[0]}.safetensors").read_bytes()
        known = names.PUBLISHED[kind]

        tiny = dataclasses.replace(known, given=given, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        monkeypatch.setitem(names.PUBLISHED, kind, tiny)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NTT_JAX_META_URL", server.meta_url)
        for kind, name in (("sam2", "sam2.1_hiera_tiny"), ("dinov2", "dinov2_vits14")):
            model = names.PUBLISHED[name]
            server.repositories[model.repository] = files_of(checkpoints / kind)
            server.meta[model.meta_path] = (checkpoints / f"{kind}.safetensors").read_bytes()
        yield server
    assert cache.folder() == tmp_path / "cache" / "weights"


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents by name, as the server takes them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
