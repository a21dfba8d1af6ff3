"""Checkpoints as trainers save them: wrapped, prefixed, in chunks, with other things beside. No torch needed."""

import re

import numpy as np
import pytest
from weight_checkpoints import DINOV2_GIVEN, SAM2_GIVEN, TINY_DINOV2, TINY_SAM2, assert_same_bits, save, state_dict

from ntt_jax.errors import InputError
from weight_port import port
from weight_port.__main__ import main
from weight_port.choose import choose
from weight_port.source import open_source
from weight_port.store import read_safetensors

DINO = state_dict(TINY_DINOV2)
SAM = state_dict(TINY_SAM2, "2.1")
HEAD = {"weight": np.zeros((4, 4), np.float32)}


def put(prefix, tensors):
    return {prefix + name: array for name, array in tensors.items()}


def copied(tensors):
    return {name: array.copy() for name, array in tensors.items()}


def chunks(tensors, size=1):
    pattern = re.compile(r"^blocks\.(\d+)\.")
    return {pattern.sub(lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", name): a for name, a in tensors.items()}


def inner(tensors, part):
    """Wrapped modules inside the model: `image_encoder.module.trunk`."""
    return {name.replace("image_encoder.", f"image_encoder.{part}."): a for name, a in tensors.items()}


@pytest.mark.parametrize(
    ("root", "expected", "beside", "note"),
    [
        (SAM, SAM, [], None),
        ({"model": SAM}, SAM, [], None),
        ({"state_dict": SAM, "epoch": 3}, SAM, ["epoch"], "read under the key state_dict"),
        ({"model_state_dict": SAM, "optimizer_state_dict": {}}, SAM, ["optimizer_state_dict"], "model_state_dict"),
        ({"ema": SAM}, SAM, [], "ema"),
        ({"state": {"model": SAM, "step": 2}, "args": None}, SAM, ["step", "args"], "state/model"),
        (put("module.", SAM), SAM, [], r"module\. taken off the names of \d+ tensors"),
        ({"model": put("module.", SAM)}, SAM, [], "module"),
        ({"state_dict": put("model.", SAM), "hyper_parameters": {"lr": 1}}, SAM, ["hyper_parameters"], r"model\."),
        (put("_orig_mod.module.", SAM), SAM, [], "_orig_mod.module."),
        (inner(SAM, "_orig_mod"), SAM, [], "what wraps modules"),
        (put("model.", inner(SAM, "module")), SAM, [], "what wraps modules"),
        ({**put("sam.", SAM), **put("loss.", HEAD)}, SAM, ["loss"], "sam"),
        ({"teacher": {**put("backbone.", DINO), **put("dino_head.", HEAD)}}, DINO, ["dino_head"], "teacher"),
        ({**put("backbone.", DINO), **put("linear_head.", HEAD)}, DINO, ["linear_head"], "backbone"),
        ({**DINO, **put("head.", HEAD), "epoch": 1}, DINO, ["epoch", "head"], None),
        ({"teacher": DINO, "student": copied(DINO)}, DINO, ["student"], "teacher"),
        (
            {"model": {**put("teacher.backbone.", DINO), **put("student.backbone.", copied(DINO))}},
            DINO,
            [f"student.* ({len(DINO)} tensors)"],
            "teacher.backbone.",
        ),
        ({"model": DINO, "state_dict": DINO}, DINO, ["state_dict"], None),  # one model under two keys
        (chunks(DINO), DINO, [], "blocks in chunks"),
        ({"teacher": put("module.backbone.", chunks(DINO, 2))}, DINO, [], "blocks in chunks"),
    ],
)
def test_one_reading_fits(root, expected, beside, note):
    chosen = choose(root, "x.pt")
    assert list(chosen.tensors) == list(expected)
    assert all(chosen.tensors[name] is array for name, array in expected.items())
    assert chosen.beside == beside
    assert any(re.search(note, line) for line in chosen.notes) if note else not chosen.notes


@pytest.mark.parametrize(
    ("root", "options", "picked"),
    [
        ({"model": SAM, "model_ema": copied(SAM)}, "--key model, or --key model_ema", {"key": "model_ema"}),
        ({**put("a.", DINO), **put("b.", copied(DINO))}, r"--prefix a\., or --prefix b\.", {"prefix": "b"}),
        ({**put("sam.", SAM), **put("dino.", DINO)}, r"--prefix sam\., or --prefix dino\.", {"prefix": "dino."}),
        ({**DINO, "model": copied(DINO)}, "--key '', or --key model", {"key": "model"}),
        (
            {"x": {**put("a.", DINO), **put("b.", copied(DINO))}, "y": put("a.", copied(DINO))},
            r"--key x --prefix a\., or --key x --prefix b\., or --key y",
            {"key": "x", "prefix": "b."},
        ),
    ],
)
def test_several_readings_are_asked_for(root, options, picked):
    with pytest.raises(InputError, match=f"models are in this checkpoint; choose one .*{options}"):
        choose(root, "x.pt")
    chosen = choose(root, "x.pt", **picked)
    place = root[picked["key"]] if "key" in picked else root
    start = f"{picked.get('prefix', '').strip('.')}.".removeprefix(".")
    assert all(array is place[start + name] for name, array in chosen.tensors.items())
    assert len(chosen.tensors) in (len(SAM), len(DINO))


def test_what_was_asked_for_and_is_not_there():
    with pytest.raises(InputError, match="--key ema: no dictionary of tensors there; there are model"):
        choose({"model": SAM, "ema": 3}, "x.pt", key="ema")
    with pytest.raises(InputError, match=r"--prefix net\.: no tensor's name starts with it"):
        choose({"model": SAM}, "x.pt", prefix="net.")


def test_names_that_would_meet_are_refused():
    with pytest.raises(InputError, match="two tensors would both be called"):
        choose({**SAM, "image_encoder.module.trunk.pos_embed": np.zeros(1)}, "x.pt")


def test_a_self_containing_dictionary_ends():
    root = {"epoch": 3}
    root["model"] = root
    assert list(choose(root, "x.pt").tensors) == ["epoch", "model"]


def test_command_line_and_round_trip(tmp_path, capsys):
    """safetensors too; the export is the plain file, bit for bit."""
    saved = {**put("module.backbone.", DINO), **put("module.head.", HEAD)}
    source = save(tmp_path / "tuned.safetensors", saved)
    (tmp_path / "c.json").write_text('{"num_heads": 2}')
    command = ["convert", str(source), str(tmp_path / "ours"), "--config", str(tmp_path / "c.json")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"note     module.backbone. taken off the names of {len(DINO)} tensors" in out
    assert "left out module.head: beside the model in this checkpoint" in out
    port.export(tmp_path / "ours", tmp_path / "back.safetensors")
    assert_same_bits(read_safetensors(tmp_path / "back.safetensors")[0], DINO)
    assert "module.backbone." in port.read_converted(tmp_path / "ours").metadata["source_reading"]
    save(source, {**put("a.", SAM), **put("b.", copied(SAM))})
    assert main(["inspect", str(source)]) == 2
    assert "--prefix a., or --prefix b." in capsys.readouterr().err
    _, weights = port.convert(source, tmp_path / "ours", given=SAM2_GIVEN, prefix="b.")
    assert weights.config == TINY_SAM2


def test_dinov2_without_mask_token(tmp_path):
    tensors = {name: array for name, array in DINO.items() if name != "mask_token"}
    _, weights = port.convert(save(tmp_path / "s", tensors), tmp_path / "ours", given=DINOV2_GIVEN)
    assert any("no mask_token" in remark for remark in weights.remarks)
    port.export(tmp_path / "ours", tmp_path / "back.safetensors")
    assert_same_bits(read_safetensors(tmp_path / "back.safetensors")[0], tensors)
    model = port.build(port.read_converted(tmp_path / "ours"), "float32")
    assert not np.any(np.asarray(model.mask_token[...]))


def test_hugging_face_fine_tunes(tmp_path):
    """`dinov2.*` and a classifier, as `Dinov2ForImageClassification` saves them."""
    renamed = {}
    for name, array in DINO.items():
        name = re.sub(r"^(cls_token|mask_token)$", r"embeddings.\1", name)
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        name = re.sub(r"^blocks\.(\d+)\.", r"encoder.layer.\1.", name).replace("attn.proj.", "attention.output.dense.")
        name = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", name)
        name = re.sub(r"^norm\.", "layernorm.", name)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = rows
        else:
            renamed[name] = array
    source = save(tmp_path / "model.safetensors", {**put("dinov2.", renamed), **put("classifier.", HEAD)})
    opened = open_source(source)
    assert opened.beside == ["classifier"] and "Hugging Face" in opened.form
    assert_same_bits(dict(sorted(opened.tensors.items())), dict(sorted(DINO.items())))
    port.convert(source, tmp_path / "ours", given=DINOV2_GIVEN)
