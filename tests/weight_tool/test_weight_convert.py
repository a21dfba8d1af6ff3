"""Converting, exporting, recognising and loading, without torch."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from weight_checkpoints import (
    DINOV2_GIVEN,
    SAM2_GIVEN,
    TINY_DINOV2,
    TINY_SAM2,
    assert_same_bits,
    save,
    shapes,
    state_dict,
)

import weight_port
from ntt_jax.config import DINOV2_CONFIGS, SAM2_CONFIGS, DinoV2Config
from ntt_jax.errors import InputError
from ntt_jax.loading import load_dinov2, load_sam2
from weight_port import port, rules
from weight_port.__main__ import main
from weight_port.official import OFFICIAL_SHA256, describe_sha256
from weight_port.recognise import read_config
from weight_port.store import read_safetensors

TINY_REGISTERS = dataclasses.replace(
    TINY_DINOV2, num_register_tokens=4, interpolate_offset=0.0, interpolate_antialias=True
)
TINY_SWIGLU = dataclasses.replace(TINY_DINOV2, ffn_layer="swiglu")


@pytest.mark.parametrize("config", [*DINOV2_CONFIGS.values(), *SAM2_CONFIGS.values()], ids=lambda c: c.name)
def test_every_published_model_is_recognised_from_its_shapes(config):
    found, remarks = read_config(shapes(config, config.name.partition("_")[0][3:] if "sam" in config.name else ""), "x")
    assert found == config and not remarks


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("config", "given", "video"),
    [
        (TINY_DINOV2, DINOV2_GIVEN, ""),
        (TINY_REGISTERS, DINOV2_GIVEN, ""),
        (TINY_SWIGLU, DINOV2_GIVEN, ""),
        (TINY_SAM2, SAM2_GIVEN, "2.0"),
        (TINY_SAM2, SAM2_GIVEN, "2.1"),
    ],
)
def test_convert_then_export_restores_every_bit(tmp_path, config, given, video, dtype):
    original = state_dict(config, video, dtype)
    source = save(tmp_path / "source.safetensors", original)
    _, weights = port.convert(source, tmp_path / "ours.safetensors", given=given)
    assert weights.config == config
    port.export(tmp_path / "ours.safetensors", tmp_path / "back.safetensors")
    assert_same_bits(read_safetensors(tmp_path / "back.safetensors")[0], original)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.safetensors", "ours.safetensors", "source.safetensors"]


def test_the_converted_file_describes_itself(tmp_path):
    source = save(tmp_path / "source.safetensors", state_dict(TINY_SAM2, "2.1"))
    opened, _ = port.convert(source, tmp_path / "ours.safetensors", given=SAM2_GIVEN)
    tensors, metadata = read_safetensors(tmp_path / "ours.safetensors")
    assert json.loads(metadata["config"])["hiera"]["window_spec"] == [8, 4, 14, 7]
    assert metadata["source_sha256"] == opened.sha256 and len(opened.sha256) == 64
    assert metadata["source_format"] == "safetensors, Meta's names"
    carried = {n for n in tensors if n.startswith("carried.")}
    assert "carried.no_obj_embed_spatial" in carried and "carried.memory_attention.layers.1.linear1.weight" in carried
    assert tensors["image_encoder.trunk.blocks.0.attn.qkv.kernel"].shape == (24, 72)  # [in, out]
    assert tensors["sam_mask_decoder.output_upscaling.0.kernel"].shape == (2, 2, 96, 24)
    assert tensors["image_encoder.trunk.pos_embed"].shape == (1, 4, 4, 24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_fills_the_module_with_the_types_it_declares(tmp_path, dtype):
    original = state_dict(TINY_SAM2, "2.0")
    port.convert(save(tmp_path / "s", original), tmp_path / "ours", given=SAM2_GIVEN)
    model = load_sam2(tmp_path / "ours", dtype)
    found = rules.values(model)
    for name, rule in rules.skeleton(TINY_SAM2, dtype).rules.items():
        np.testing.assert_array_equal(found[name], rule.from_torch(original[rule.torch_name]).astype(rule.dtype))
    assert model.image_encoder.trunk.blocks[0].attn.qkv.kernel[...].dtype == dtype
    assert model.image_encoder.trunk.blocks[0].norm1.scale[...].dtype == np.float32


def test_a_loaded_module_outlives_its_file_and_exports_with_its_carried_tensors(tmp_path):
    original = state_dict(TINY_SAM2, "2.1")
    port.convert(save(tmp_path / "s", original), tmp_path / "ours", given=SAM2_GIVEN)
    found = weight_port.export_state_dict(load_sam2(tmp_path / "ours"))
    assert_same_bits(dict(sorted(found.items())), dict(sorted(original.items())))


def test_files_that_carry_no_mem_embed(tmp_path):
    """As they were made before it was a parameter: the same model, and the same bits on the way back."""
    original = state_dict(TINY_SAM2, "2.1")
    port.convert(save(tmp_path / "s", original), tmp_path / "ours", given=SAM2_GIVEN)
    tensors, metadata = read_safetensors(tmp_path / "ours")
    assert "no_mem_embed" in tensors
    older = {"carried.no_mem_embed" if name == "no_mem_embed" else name: array for name, array in tensors.items()}
    save(tmp_path / "older", older, dict(metadata))
    np.testing.assert_array_equal(load_sam2(tmp_path / "older").no_mem_embed[...], original["no_mem_embed"])
    port.export(tmp_path / "older", tmp_path / "back.safetensors")
    assert_same_bits(read_safetensors(tmp_path / "back.safetensors")[0], original)


def test_a_checkpoint_of_the_image_path_may_lack_no_mem_embed(tmp_path):
    original = {name: array for name, array in state_dict(TINY_SAM2).items() if name != "no_mem_embed"}
    port.convert(save(tmp_path / "s", original), tmp_path / "ours", given=SAM2_GIVEN)
    assert not np.any(np.asarray(load_sam2(tmp_path / "ours").no_mem_embed[...]))
    port.export(tmp_path / "ours", tmp_path / "back.safetensors")
    assert_same_bits(read_safetensors(tmp_path / "back.safetensors")[0], original)


def test_state_dicts_in_memory():
    original = state_dict(TINY_DINOV2)
    model = weight_port.convert_state_dict(original, TINY_DINOV2)
    features = jax.jit(lambda m, x: m(x))(model, np.zeros((1, 56, 56, 3), np.float32))
    assert features.shape == (1, 4, 4, 16)
    found = weight_port.export_state_dict(model)
    assert_same_bits(dict(sorted(found.items())), dict(sorted(original.items())))
    with pytest.raises(InputError, match=r"state dict: tensor norm\.bias has 1 of 16 numbers that are NaN"):
        weight_port.convert_state_dict(original | {"norm.bias": np.array([np.nan] + 15 * [0], np.float32)}, TINY_DINOV2)
    with pytest.raises(InputError, match="expected a DinoV2Config, DinoV3Config or Sam2Config, found dict"):
        weight_port.convert_state_dict(original, {})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="found Param"):
        weight_port.export_state_dict(model.cls_token)


def edited(name: str, value: np.ndarray | None = None, config=TINY_DINOV2, video=""):
    tensors = state_dict(config, video)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


zeros = np.zeros
STRICT = [
    (edited("norm.bias"), r"tensor norm\.bias is missing"),
    (edited("blocks.1.attn.qkv.weight"), r"tensor blocks\.1\.attn\.qkv\.weight is missing"),
    (edited("cls_token"), "tensor cls_token is missing"),
    (edited("adapter.weight", zeros((3, 16), np.float32)), r"unexpected tensor 'adapter\.weight'"),
    (edited("blocks.1.norm1.bias", zeros(15, np.float32)), r"blocks\.1\.norm1\.bias has shape \[15\], expected \[16\]"),
    (edited("blocks.7.norm1.bias", zeros(16, np.float32)), r"tensors blocks\.2\.\* are missing"),
    (edited("pos_embed", zeros((1, 18, 16), np.float32)), "18 positions, expected 1 \\+ a square"),
    (edited("cls_token", zeros((16,), np.float32)), r"cls_token has shape \[16\], expected 3 axes"),
    (edited("norm.bias", zeros(16, np.float64)), "norm.bias is float64, expected float32, float16 or bfloat16"),
    (edited("norm.bias", zeros(16, np.int32)), "norm.bias is int32"),
    (edited("norm.bias", np.full(16, np.inf, np.float16)), "16 of 16 numbers that are NaN or infinite"),
]
STRICT_SAM2 = [
    (edited("no_mem_embed", None, TINY_SAM2, "2.0"), "tensor no_mem_embed is missing"),
    (edited("obj_ptr_tpos_proj.bias", None, TINY_SAM2, "2.1"), r"tensor obj_ptr_tpos_proj\.bias is missing"),
    (edited("no_obj_embed_spatial", None, TINY_SAM2, "2.1"), "tensor no_obj_embed_spatial is missing"),
    (edited("memory_encoder.x", zeros(3, np.float32), TINY_SAM2, "2.0"), r"unexpected tensor 'memory_encoder\.x'"),
    (edited("no_obj_ptr", zeros((1, 5), np.float32), TINY_SAM2, "2.0"), r"no_obj_ptr has shape \[1, 5\]"),
    (edited("sam_mask_decoder.conv_s0.bias", None, TINY_SAM2, "2.0"), r"sam_mask_decoder\.conv_s0\.bias is missing"),
    (edited("sam_mask_decoder.extra", zeros(1, np.float32), TINY_SAM2), "unexpected tensor 'sam_mask_decoder.extra'"),
]


@pytest.mark.parametrize(
    ("tensors", "given", "message"),
    [(t, DINOV2_GIVEN, m) for t, m in STRICT] + [(t, SAM2_GIVEN, m) for t, m in STRICT_SAM2],
)
def test_strict_both_ways(tmp_path, tensors, given, message):
    source = save(tmp_path / "source.safetensors", tensors)
    with pytest.raises(InputError, match=message) as caught:
        port.convert(source, tmp_path / "ours.safetensors", given=given)
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source.safetensors"]


def test_what_tensors_do_not_show_is_asked_for(tmp_path):
    source = save(tmp_path / "s", state_dict(TINY_SAM2, "2.0"))
    with pytest.raises(InputError, match=r"do not show hiera\.num_heads, hiera\.window_spec, hiera\.global_att_blocks"):
        port.convert(source, tmp_path / "ours")
    with pytest.raises(InputError, match=r"--config lacks hiera\.global_att_blocks"):
        port.convert(source, tmp_path / "ours", given={"hiera": {"num_heads": 1, "window_spec": [8, 4, 14, 7]}})
    source = save(tmp_path / "s", state_dict(TINY_DINOV2))
    with pytest.raises(InputError, match="do not show num_heads: give these with --config"):
        port.convert(source, tmp_path / "ours")
    with pytest.raises(InputError, match="the tensors show depth 2, expected 3"):
        port.convert(source, tmp_path / "ours", given={"num_heads": 2, "depth": 3})
    with pytest.raises(InputError, match="embed_dim 16 does not divide by num_heads 3"):
        port.convert(source, tmp_path / "ours", given={"num_heads": 3})
    with pytest.raises(InputError, match="unknown key 'heads'"):
        port.convert(source, tmp_path / "ours", given={"num_heads": 2, "heads": 3})


def test_model_names():
    small = shapes(DINOV2_CONFIGS["dinov2_vits14"])
    assert read_config(small, "x", model="dinov2_vits14")[0] == DINOV2_CONFIGS["dinov2_vits14"]
    with pytest.raises(InputError, match="not dinov2_vitb14: the tensors show embed_dim 384, expected 768"):
        read_config(small, "x", model="dinov2_vitb14")
    with pytest.raises(InputError, match="the tensors are those of a dinov2 model"):
        read_config(small, "x", model="sam2_hiera_tiny")
    with pytest.raises(InputError, match=r"--model nonsense: no such model; choose one of dinov2_vits14"):
        read_config(small, "x", model="nonsense")
    config, (remark,) = read_config(small | {"blocks.12.norm1.weight": (384,)}, "x")  # 13 blocks: a custom depth
    assert isinstance(config, DinoV2Config)
    assert (config.depth, config.num_heads) == (13, 6) and "num_heads 6" in remark


def test_sam2_versions_differ_in_their_video_part_only():
    tiny, newer = SAM2_CONFIGS["sam2_hiera_tiny"], SAM2_CONFIGS["sam2.1_hiera_tiny"]
    config, (remark,) = read_config(shapes(tiny), "x")
    assert config == tiny and "--model sam2.1_hiera_tiny" in remark
    assert read_config(shapes(tiny), "x", model="sam2.1_hiera_tiny")[0] == newer
    missing = set(rules.video_tensors(shapes(tiny, "2.0"), newer)) - set(shapes(tiny, "2.0"))
    assert missing == {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
    assert "no_obj_embed_spatial" not in rules.video_tensors(shapes(tiny, "2.1"), tiny)


def test_loading_says_what_to_do_with_the_wrong_file(tmp_path):
    meta = save(tmp_path / "dino.safetensors", state_dict(TINY_DINOV2))
    command = "python -m weight_port convert .*dino.safetensors .*converted_dino.safetensors"
    with pytest.raises(InputError, match=f"not a converted weight file; convert it first: {command}"):
        port.read_converted(meta)
    with pytest.raises(
        InputError, match=r"do not show num_heads.*--config FILE.json to `python -m weight_port convert`"
    ):
        load_dinov2(meta)
    port.convert(meta, tmp_path / "ours", given=DINOV2_GIVEN)
    with pytest.raises(InputError, match=r"holds dinov2_custom; load it with ntt_jax\.load_dinov2"):
        load_sam2(tmp_path / "ours")
    with pytest.raises(InputError, match='dtype: expected "float32" or "bfloat16"'):
        load_dinov2(tmp_path / "ours", dtype="float16")
    (tmp_path / "net.pt").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError, match=r"a PyTorch checkpoint, not .*weight_port convert .*net.pt .*net.safetensors"):
        port.read_converted(tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt"):
        load_sam2(tmp_path / "net.pt")
    with pytest.raises(InputError, match="there is no such file or folder"):
        load_sam2(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a converted file already"):
        port.convert(tmp_path / "ours", tmp_path / "again")
    with pytest.raises(InputError, match="source and destination are the same file"):
        port.convert(meta, meta, given=DINOV2_GIVEN)
    (tmp_path / "ours").rename(tmp_path / "ours.safetensors")
    with pytest.raises(InputError, match="source and destination are the same file"):
        port.export(tmp_path / "ours.safetensors", tmp_path / "ours.safetensors")


def test_a_converted_file_is_checked_when_loaded(tmp_path):
    port.convert(save(tmp_path / "s", state_dict(TINY_DINOV2)), tmp_path / "ours", given=DINOV2_GIVEN)
    tensors, metadata = read_safetensors(tmp_path / "ours")

    def refuses(message, changed=None, **meta):
        save(tmp_path / "bad", tensors if changed is None else changed, metadata | meta)
        with pytest.raises(InputError, match=message) as caught:
            load_dinov2(tmp_path / "bad")
        assert str(caught.value).startswith(str(tmp_path / "bad"))  # of several files, which

    config = json.loads(metadata["config"])
    refuses("version '2', this program reads 1", format_version="2")
    refuses("the configuration is not valid JSON", config="{")
    refuses("the configuration is not valid JSON", config="\ud800")
    refuses("NaN is no number", config=json.dumps(config | {"mlp_ratio": float("nan")}))
    refuses('"model" must be', config="{}")
    refuses("the tensors show depth 2, expected 1048576", config=json.dumps(config | {"depth": 2**20}))
    refuses("name must be", config=json.dumps(config | {"name": "a\nb"}))
    refuses("num_heads", config=json.dumps(config | {"num_heads": 0}))
    refuses(r"unexpected tensor 'carried\.|unexpected tensor 'x'", tensors | {"carried.x": np.zeros(1, np.float32)})
    refuses("unexpected tensor 'y'", tensors | {"y": np.zeros(1, np.float32)})
    refuses("norm.bias has 1 of 16", tensors | {"norm.bias": np.array([np.nan] + 15 * [0], np.float32)})
    refuses("tensor norm.bias is missing", {n: a for n, a in tensors.items() if n != "norm.bias"})


def test_command_line(tmp_path, capsys):
    source = save(tmp_path / "sam2_hiera_tiny.safetensors", state_dict(TINY_SAM2, "2.1"))
    (tmp_path / "config.json").write_text(json.dumps(SAM2_GIVEN))
    ours = str(tmp_path / "ours.safetensors")
    assert main(["convert", str(source), ours, "--config", str(tmp_path / "config.json")]) == 0
    out = capsys.readouterr().out
    assert "unknown (no published checksum on record" in out and "small: " in out and "video-only" in out
    assert "memory_attention (5" in out and "no_obj_embed_spatial" in out
    assert main(["inspect", ours]) == 0
    out = capsys.readouterr().out
    assert "carried.no_obj_ptr  [1, 96] float32" in out and "made of  sam2_hiera_tiny.safetensors" in out
    assert main(["export", ours, str(tmp_path / "back.safetensors")]) == 0
    assert main(["export", ours, str(tmp_path / "back.bin")]) == 2
    assert main(["convert", str(tmp_path / "nothing.pt"), ours]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 2 and "expected a name ending in .pt" in captured.err
    with pytest.raises(SystemExit) as status:
        main(["convert", "one"])
    assert status.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as status:
        main(["convert", "--help"])
    assert status.value.code == 0


def test_official_checksums():
    digest = next(iter(OFFICIAL_SHA256))
    assert len(OFFICIAL_SHA256) == 9 and all(len(d) == 64 for d in OFFICIAL_SHA256)
    assert describe_sha256(digest, "sam2_hiera_tiny") == "official sam2_hiera_tiny"
    assert describe_sha256("0" * 64, "sam2_hiera_tiny") == "unknown (not Meta's published file of sam2_hiera_tiny)"
