"""Checkpoints as trainers save them, written by torch: the model in them is found, the rest named, nothing built."""

import argparse
import re

import numpy as np
import pytest
from weight_checkpoints import DINOV2_GIVEN, SAM2_GIVEN, TINY_DINOV2, TINY_SAM2, assert_same_bits, state_dict

from ntt_jax.errors import InputError
from weight_port import port
from weight_port.store import read_safetensors

torch = pytest.importorskip("torch")


def tensors(config):
    return {name: torch.from_numpy(array) for name, array in state_dict(config).items()}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def chunked(state):
    """As DINOv2 is trained: blocks in chunks, each with its number among all."""
    return {re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", n): v for n, v in state.items()}


SAM2, DINOV2 = tensors(TINY_SAM2), tensors(TINY_DINOV2)
HEAD = {"dino_head.mlp.0.weight": torch.zeros(4, 4)}
COPY = {name: value.clone() for name, value in DINOV2.items()}
FORMS = {
    "plain": (SAM2, [], []),
    "module. flat": (prefixed("module.", SAM2), [], ["module."]),
    "model: module.": ({"model": prefixed("module.", SAM2)}, [], ["module."]),
    "state_dict": ({"state_dict": SAM2, "epoch": 1}, ["epoch"], ["state_dict"]),
    "lightning": (
        {"epoch": 3, "state_dict": prefixed("model.", SAM2), "optimizer_states": [], "hyper_parameters": {"lr": 1e-4}},
        ["epoch", "optimizer_states", "hyper_parameters"],
        ["state_dict", "model."],
    ),
    "model_state_dict": ({"model_state_dict": SAM2, "optimizer_state_dict": {}}, ["optimizer_state_dict"], []),
    "torch.compile": (prefixed("_orig_mod.", SAM2), [], ["_orig_mod."]),
    "two wrappers": (prefixed("module._orig_mod.", SAM2), [], ["module._orig_mod."]),
    "model_ema": ({"model_ema": SAM2}, [], ["model_ema"]),
    "teacher with head": (
        {"teacher": {**prefixed("backbone.", DINOV2), **HEAD}},
        ["dino_head"],
        ["teacher", "backbone."],
    ),
    "backbone.": (prefixed("backbone.", DINOV2), [], ["backbone."]),
    "teacher and student": (
        {"model": {**prefixed("teacher.backbone.", DINOV2), **prefixed("student.backbone.", COPY)}},
        ["student (35)"],
        ["teacher.backbone."],
    ),
    "teacher and student that share storages": (
        {"model": {**prefixed("teacher.", DINOV2), **prefixed("student.", DINOV2)}},
        ["student (35)"],
        ["teacher."],
    ),
    "block chunks": (chunked(DINOV2), [], ["block chunks were undone"]),
    "classifier beside": ({**DINOV2, "head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3)}, ["head (2)"], []),
    "objects beside": (
        {"model": SAM2, "args": argparse.Namespace(lr=1e-4), "best": np.float64(0.3), "seen": {1, 2}},
        ["args: argparse.Namespace", "best: numpy", "seen: "],
        [],
    ),
    "the same twice": ({"model": SAM2, "state_dict": SAM2}, ["state_dict"], []),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_found_and_the_rest_is_named(tmp_path, form, protocol):
    value, left_out, remarks = FORMS[form]
    torch.save(value, tmp_path / "c.pt", pickle_protocol=protocol)
    dinov2 = any(word in form for word in ("teacher", "backbone", "chunks", "classifier"))
    given, plain = (DINOV2_GIVEN, TINY_DINOV2) if dinov2 else (SAM2_GIVEN, TINY_SAM2)
    source, _ = port.convert(tmp_path / "c.pt", tmp_path / "ours", given=given)
    port.export(tmp_path / "ours", tmp_path / "back.safetensors")
    found, _ = read_safetensors(tmp_path / "back.safetensors")
    assert_same_bits(dict(sorted(found.items())), dict(sorted(state_dict(plain).items())))
    assert len(source.beside) == len(left_out)
    for name, expected in zip(source.beside, left_out, strict=True):
        assert name.startswith(expected)
    assert all(remark in "; ".join(source.remarks) for remark in remarks)


def test_two_models_are_asked_about(tmp_path):
    torch.save({"model": SAM2, "model_ema": {n: v + 1 for n, v in SAM2.items()}}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"2 models lie in this checkpoint; say which: --key model .*--key model_ema"):
        port.convert(tmp_path / "c.pt", tmp_path / "ours", given=SAM2_GIVEN)
    port.convert(tmp_path / "c.pt", tmp_path / "ours", given=SAM2_GIVEN, key="model_ema")
    port.export(tmp_path / "ours", tmp_path / "back.safetensors")
    found, _ = read_safetensors(tmp_path / "back.safetensors")
    name = "sam_mask_decoder.iou_token.weight"
    np.testing.assert_array_equal(found[name], SAM2[name].numpy() + 1)
    with pytest.raises(InputError, match=r"--key 'nothing': no dictionary of tensors there; those that are: model"):
        port.convert(tmp_path / "c.pt", tmp_path / "ours", given=SAM2_GIVEN, key="nothing")
    with pytest.raises(InputError, match=r"no tensor's name begins with 'x\.'"):
        port.convert(tmp_path / "c.pt", tmp_path / "ours", given=SAM2_GIVEN, key="model", prefix="x.")


def test_a_student_is_taken_when_asked_for(tmp_path):
    student = {name: value + 1 for name, value in DINOV2.items()}
    torch.save({"teacher": prefixed("backbone.", DINOV2), "student": prefixed("backbone.", student)}, tmp_path / "c.pt")
    port.convert(tmp_path / "c.pt", tmp_path / "ours", given=DINOV2_GIVEN, key="student")
    port.export(tmp_path / "ours", tmp_path / "back.safetensors")
    np.testing.assert_array_equal(
        read_safetensors(tmp_path / "back.safetensors")[0]["norm.bias"], student["norm.bias"].numpy()
    )


def test_dinov2_without_mask_token(tmp_path):
    state = {name: value for name, value in DINOV2.items() if name != "mask_token"}
    torch.save(state, tmp_path / "c.pt")
    _, weights = port.convert(tmp_path / "c.pt", tmp_path / "ours", given=DINOV2_GIVEN)
    assert "no mask_token" in weights.remarks[0]
    port.export(tmp_path / "ours", tmp_path / "back.pt")
    assert set(torch.load(tmp_path / "back.pt", weights_only=True)) == set(state)


@pytest.mark.parametrize("wrap", [TINY_SAM2, TINY_DINOV2])
def test_what_is_written_without_torch_is_read_by_torch(tmp_path, wrap):
    from weight_port.torch_file import write_torch

    arrays = state_dict(wrap) | {"scalar": np.float32(3).reshape(()), "empty": np.zeros((0, 3), np.float16)}
    write_torch(tmp_path / "w.pt", arrays, wrap=wrap is TINY_SAM2)
    for options in ({}, {"mmap": True}):
        found = torch.load(tmp_path / "w.pt", weights_only=True, **options)
        found = found["model"] if wrap is TINY_SAM2 else found
        assert_same_bits({name: value.numpy() for name, value in found.items()}, arrays)
