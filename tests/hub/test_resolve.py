"""From names and checkpoints of every form to converted files: the same bits from everywhere, fetched once."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from hub_server import Fault
from weight_checkpoints import DINOV2_GIVEN, TINY_DINOV2, save, state_dict

import weight_port
from ntt_jax.cli import main
from ntt_jax.compiled.devices import published_numbers
from ntt_jax.errors import InputError
from ntt_jax.hub import cache, fetch, names, resolve
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, load_memory, require_encoder, save_memory
from ntt_jax.runs.models import read_encoder
from ntt_jax.segmenter import Segmenter
from weight_port.identity import fingerprint

DINOV2, SAM2 = "facebook/dinov2-small", "facebook/sam2.1-hiera-tiny"


def test_every_source_gives_the_same_bits(hub, checkpoints, tmp_path):
    port = tmp_path / "converted.safetensors"
    weight_port.convert(checkpoints / "dinov2.safetensors", port, given=DINOV2_GIVEN)
    expected = weight_port.export_state_dict(load_dinov2(port))
    hub.repositories["me/mine"] = hub.repositories[DINOV2]
    folder = checkpoints / "dinov2"
    torch = tmp_path / "net.pth"
    weight_port.export(port, torch)
    torch.with_suffix(".json").write_text(json.dumps({"model": "dinov2", **DINOV2_GIVEN}))
    commit = hub.commit("me/mine")
    for given in ("dinov2_vits14", "dinov2_small", DINOV2, "me/mine", f"me/mine@{commit}", port, folder, torch):
        found = weight_port.export_state_dict(load_dinov2(given))
        assert list(found) == list(expected), given
        for name, value in expected.items():
            assert found[name].tobytes() == value.tobytes(), (given, name)
    sam2 = [load_sam2(name) for name in ("sam2.1_hiera_tiny", SAM2, checkpoints / "sam2")]
    sam2.append(load_sam2(resolve("sam2.1_hiera_tiny", source="meta", again=True)))
    for other in sam2[1:]:
        jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(m) for m in (sam2[0], other)))
    from_meta = load_dinov2(resolve("dinov2_vits14", source="meta", again=True))
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(m) for m in (from_meta, load_dinov2(port))))


def test_one_model_from_two_sources_is_one_encoder(hub, checkpoints, tmp_path):
    converted, other = tmp_path / "converted.safetensors", tmp_path / "other.safetensors"
    weight_port.convert(checkpoints / "dinov2.safetensors", converted, given=DINOV2_GIVEN)
    save(tmp_path / "other_source.safetensors", {n: v * np.float32(0.5) for n, v in state_dict(TINY_DINOV2).items()})
    weight_port.convert(tmp_path / "other_source.safetensors", other, given=DINOV2_GIVEN)
    meta, hugging_face, another = (read_encoder(path) for path in (converted, resolve(DINOV2), other))
    assert meta.source_sha256 != hugging_face.source_sha256 and meta.weights() == hugging_face.weights()
    assert meta.weights() == fingerprint(load_dinov2(converted)) != another.weights()

    def made(**provenance):
        with published_numbers():
            memory = memory_from_instance_means([[np.ones(meta.config.embed_dim, np.float32)]], ["a"])
        save_memory(tmp_path / "memory.safetensors", MemoryBank(memory, ("a",), (1,), meta.config, provenance))
        return load_memory(tmp_path / "memory.safetensors")

    ours = made(encoder_sha256=meta.source_sha256, encoder_weights=meta.weights())
    require_encoder(ours, *meta)
    require_encoder(ours, *hugging_face)
    require_encoder(made(encoder_weights=meta.weights()), *hugging_face)  # as `Segmenter.save` makes it
    for bank in (ours, made(encoder_weights=meta.weights())):
        with pytest.raises(InputError, match="made with other weights of"):
            require_encoder(bank, *another)
    older = made(encoder_sha256=meta.source_sha256)
    require_encoder(older, *meta)
    with pytest.raises(InputError, match="another checkpoint"):
        require_encoder(older, *hugging_face)
    require_encoder(made(encoder_weights={"types": ["bfloat16", "float32"], "sha256": "?"}), *hugging_face)


def test_a_name_asks_the_network_once(hub):
    first = resolve("sam2.1_hiera_tiny", "sam2")
    asked = len(hub.requests)
    assert asked and resolve("sam2.1_hiera_tiny") == resolve(SAM2) == first and len(hub.requests) == asked
    assert cache.origin("sam2.1_hiera_tiny")["commit"] == hub.commit(SAM2)
    hub.repositories[SAM2]["README.md"] = b"another commit"
    assert resolve("sam2.1_hiera_tiny", again=True) == first and len(hub.requests) > asked
    assert cache.origin("sam2.1_hiera_tiny")["commit"] == hub.commit(SAM2)
    hub.servers[0].shutdown()
    assert load_sam2("sam2.1_hiera_tiny").config.image_size == 256


def test_the_packaged_models_need_no_network(hub):
    assert load_dinov2("dinov2_ntt_small").config.name == "dinov2_ntt_small" and not hub.requests
    with pytest.raises(InputError, match="dinov2_ntt_small: is a DINOv2 model, expected SAM 2"):
        load_sam2("dinov2_ntt_small")


def test_segmenter_from_pretrained(hub):
    segmenter = Segmenter.from_pretrained("sam2.1_hiera_tiny", "dinov2_vits14", max_detections=7)
    assert segmenter.config.max_detections == 7 and "no classes yet" in repr(segmenter)


def test_local_checkpoints_are_hashed_once_and_again_when_they_change(hub, tmp_path, monkeypatch):
    source = tmp_path / "mine"
    source.mkdir()
    save(source / "model.safetensors", state_dict(TINY_DINOV2))
    (source / "config.json").write_text(json.dumps({"model_type": "dinov2", "num_attention_heads": 2}))
    first = resolve(source)
    monkeypatch.setattr("weight_port.source.sha256", lambda path: pytest.fail("hashed again"))
    assert resolve(str(source)) == first
    monkeypatch.undo()
    monkeypatch.setenv("NTT_JAX_CACHE", str(tmp_path / "cache"))
    (source / "config.json").write_text(json.dumps({"model_type": "dinov2", "num_attention_heads": 4}))
    second = resolve(source)
    assert second != first and load_dinov2(second).config.num_heads == 4 and load_dinov2(first).config.num_heads == 2


def test_shards_come_with_their_index(hub, checkpoints, tmp_path):
    tensors = state_dict(TINY_DINOV2)
    half = len(tensors) // 2
    parts = {"a.safetensors": dict(list(tensors.items())[:half]), "b.safetensors": dict(list(tensors.items())[half:])}
    files = {name: save(tmp_path / name, part).read_bytes() for name, part in parts.items()}
    index = {"weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["config.json"] = (checkpoints / "dinov2" / "config.json").read_bytes()
    hub.repositories["me/shards"] = files
    found = weight_port.export_state_dict(load_dinov2("me/shards"))
    assert all(found[name].tobytes() == value.tobytes() for name, value in tensors.items())
    del hub.repositories["me/shards"]["b.safetensors"]
    with pytest.raises(InputError, match=r"names 'b\.safetensors', which is not there"):
        resolve("me/shards", again=True)


def test_one_of_several_models_is_chosen_once(hub, checkpoints, tmp_path, capsys):
    first, second = state_dict(TINY_DINOV2), {n: v * np.float32(0.5) for n, v in state_dict(TINY_DINOV2).items()}
    path = tmp_path / "net.safetensors"
    save(path, {**{f"first.{n}": v for n, v in first.items()}, **{f"second.{n}": v for n, v in second.items()}})
    path.with_suffix(".json").write_text(json.dumps({"model": "dinov2", **DINOV2_GIVEN}))
    config = (checkpoints / "dinov2" / "config.json").read_bytes()
    hub.repositories["me/both"] = {"model.safetensors": path.read_bytes(), "config.json": config}
    for given in (path, "me/both"):
        with pytest.raises(InputError, match=r"--prefix.*`ntt-jax weights get` takes them, once for this file"):
            load_dinov2(given)
    with pytest.raises(InputError, match="dinov2_vits14: holds one model"):
        resolve("dinov2_vits14", prefix="second.")
    assert main(["weights", "get", str(path), "--prefix", "second."]) == 0 and capsys.readouterr().out
    for model in (load_dinov2(path), load_dinov2("me/both", prefix="second."), load_dinov2("me/both")):
        found = weight_port.export_state_dict(model)
        assert all(found[name].tobytes() == value.tobytes() for name, value in second.items())
    found = weight_port.export_state_dict(load_dinov2(path, prefix="first."))
    assert all(found[name].tobytes() == value.tobytes() for name, value in first.items())
    with pytest.raises(InputError, match="there is nothing to choose"):
        resolve(resolve(path), key="a")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("sam2_hiera_larg", "no model of this name; did you mean sam2_hiera_large or"),
        ("dinov2-vitl14-reg", "is a DINOv2 model, expected SAM 2"),
        ("somewhere/net.pt", "somewhere/net.pt: there is no such file or folder$"),
        ("zzz", "`ntt-jax weights list` shows all"),
        ("", "expected a model's name"),
        ("a\nb", "expected a model's name"),
        ("me/none", "there is no such model, or it is private"),
        ("facebook/sam2-hiera-huge", "no such model.*did you mean sam2_hiera_"),
        ("facebook/sam2.1-hiera-tiny@v9", "there is no such revision"),
        ("me/empty", "no .safetensors, .pt, .pth or .bin file"),
        ("me/two", r"has several checkpoints \(a.pt, b.pt\)"),
        ("me/closed", "gated: accept its terms"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(hub, given, words):
    hub.repositories |= {"me/empty": {"README.md": b"x"}, "me/two": {"a.pt": b"1", "b.pt": b"2"}}
    hub.repositories["me/closed"] = hub.repositories[SAM2]
    hub.gated.add("me/closed")
    with pytest.raises(InputError, match=words) as found:
        resolve(given, "sam2")
    assert "\n" not in str(found.value) and not cache.names()


def test_spellings():
    assert names.find("SAM2-Hiera-B+") is names.find("facebook/sam2-hiera-base-plus")
    assert names.find("dinov2_vitl14_reg4_pretrain").name == "dinov2_vitl14_reg4"
    assert len({name for model in names.PUBLISHED.values() for name in (model.repository, *model.aliases)}) == 16 + sum(
        len(model.aliases) for model in names.PUBLISHED.values()
    )
    from weight_port.official import OFFICIAL_SHA256

    known = {m.sha256: name for name, m in names.PUBLISHED.items() if m.sha256}
    assert known == OFFICIAL_SHA256


def test_a_token_opens_what_is_gated_and_does_not_leave_the_hub(hub, monkeypatch):
    hub.repositories["me/closed"] = hub.repositories[DINOV2]
    hub.gated.add("me/closed")
    monkeypatch.setenv("HF_TOKEN", "good")
    load_dinov2("me/closed")
    sent = {path.split("/")[1]: headers.get("authorization") for _, path, headers in hub.requests}
    assert sent["me"] == "Bearer good" and sent["cdn"] is None


def test_offline_with_and_without_the_caches(hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            InputError, match=r"HF_HUB_OFFLINE is set.*curl -L -O https://dl.fba.*hf download facebook/"
        ):
            resolve("dinov2_vits14")
    assert not hub.requests
    first = resolve("dinov2_vits14")
    shutil.rmtree(cache.folder())  # the Hub's own cache is enough, staged by whatever program
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("dinov2_vits14") == first
    shutil.rmtree(tmp_path / "hf")  # and so is ours
    assert resolve("dinov2_vits14") == first and load_dinov2("dinov2_vits14")


def test_without_a_network_the_message_says_how_to_bring_the_file(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("NTT_JAX_META_URL", "http://127.0.0.1:9")
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(fetch, "WAIT", 1.0)
    monkeypatch.setattr(fetch, "RETRIES", 5)
    with pytest.raises(
        InputError, match=r"no connection.*no connection.*`curl -L -O .*/sam2.1_hiera_tiny.pt` or `hf download"
    ):
        resolve("sam2.1_hiera_tiny")
    assert sum(slept) <= 1  # and it says so at once


def test_meta_is_the_second_source(hub):
    hub.faults[f"/api/models/{SAM2}"] = [Fault(status=500)] * 9
    path = resolve("sam2.1_hiera_tiny")
    assert cache.origin("sam2.1_hiera_tiny")["origin"].startswith(hub.meta_url)
    assert load_sam2(path).config.image_size == 256
    assert not list((cache.folder() / "downloads").glob("*.pt"))  # converted, so not kept


@pytest.fixture
def nobody():
    """Not root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_cache_serves(hub, tmp_path, request):
    path = resolve("dinov2_vits14")
    folders = [one for one in (tmp_path / "cache").rglob("*") if one.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    request.getfixturevalue("nobody")
    try:
        assert resolve("dinov2_vits14") == path
        with pytest.raises(InputError, match=r"the cache of weights cannot be written.*set NTT_JAX_CACHE"):
            resolve("sam2.1_hiera_tiny")
        assert not [one for one in hub.paths() if SAM2 in one]
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for folder in folders:
            folder.chmod(0o755)


def test_a_damaged_or_foreign_record_is_made_again(hub):
    path = resolve("dinov2_vits14")
    record = path.with_suffix(".json")
    spoiled = {"version": 1, "sha256": "a" * 64, "source_sha256": "a" * 64}
    for text in ("{", *(json.dumps({**spoiled, "size": size}) for size in (float("inf"), float("nan"), [], "x"))):
        record.write_text(text)
        assert not [found for found in cache.entries() if found.path == path]
        assert resolve("dinov2_vits14") == path and json.loads(record.read_text())["size"] == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])  # cut short: not used
    assert resolve("dinov2_vits14") == path and load_dinov2(path)
