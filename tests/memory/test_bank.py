import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax.config import DINOV2_CONFIGS
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, load_memory, require_encoder, save_memory

ENCODER = dataclasses.replace(DINOV2_CONFIGS["dinov2_vits14"], embed_dim=6)


def bank():
    rng = np.random.default_rng(0)
    means = [[rng.standard_normal(6).astype(np.float32) for _ in range(n)] for n in (2, 1)]
    provenance = {"encoder_sha256": "ab" * 32, "references": {"cat": [[1, 2], [3, 4]], "vögel": [[5, 6]]}, "tool": "0"}
    return MemoryBank(
        memory_from_instance_means(means, ["cat", "vögel"]), ("cat", "vögel"), (17, 16), ENCODER, provenance
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "m.safetensors"
    save_memory(path, bank())
    return path.read_bytes()


def test_round_trip(tmp_path):
    path = tmp_path / "m.safetensors"
    save_memory(path, bank())
    loaded, made = load_memory(path), bank()
    for field in ("prototypes", "instance_means", "valid"):
        np.testing.assert_array_equal(getattr(loaded.memory, field), getattr(made.memory, field))
    assert (loaded.class_names, loaded.category_ids, loaded.encoder) == (made.class_names, made.category_ids, ENCODER)
    assert loaded.provenance == made.provenance and loaded.shots == (2, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_inconsistent_banks_are_not_written(tmp_path):
    path = tmp_path / "m.safetensors"
    good = bank()
    for change in (
        {"class_names": ("cat",)},
        {"category_ids": (17, 17)},
        {"encoder": DINOV2_CONFIGS["dinov2_vits14"]},
        {"memory": dataclasses.replace(good.memory, prototypes=good.memory.prototypes * 2)},
        {"memory": dataclasses.replace(good.memory, instance_means=good.memory.instance_means * np.nan)},
        {"provenance": {"x": float("nan")}},
        {"provenance": {"x": object()}},
    ):
        with pytest.raises(InputError, match=r"m\.safetensors"):
            save_memory(path, dataclasses.replace(good, **change))
    assert not list(tmp_path.iterdir())


def with_negatives(*counts):
    rng = np.random.default_rng(1)
    means = [[rng.standard_normal(6).astype(np.float32) for _ in range(n)] for n in (2, 1)]
    negatives = [[rng.standard_normal(6).astype(np.float32) for _ in range(n)] for n in counts]
    memory = memory_from_instance_means(means, ["cat", "vögel"], negatives)
    return dataclasses.replace(bank(), memory=memory), negatives


def test_negatives_round_trip_and_files_without_are_as_they_were(tmp_path, saved):
    path = tmp_path / "m.safetensors"
    made, negatives = with_negatives(0, 3)
    save_memory(path, made)
    loaded = load_memory(path)
    assert loaded.negative_shots == (0, 3) and loaded.memory.negatives.shape == (2, 3, 6)
    np.testing.assert_array_equal(loaded.memory.negatives[1], negatives[1])
    assert not np.any(loaded.memory.negatives[0])
    np.testing.assert_array_equal(loaded.memory.prototypes, made.memory.prototypes)
    without, _ = with_negatives(0, 0)
    assert without.memory.negatives is None and without.negative_shots == (0, 0)
    header = json.loads(saved[8 : 8 + struct.unpack("<Q", saved[:8])[0]])
    assert set(header) == {"__metadata__", "prototypes", "instance_means", "valid"}
    with pytest.raises(InputError, match="negative reference are all zero"):
        memory_from_instance_means([[negatives[1][0]]], ["cat"], [[np.zeros(6, np.float32)]])
    with pytest.raises(InputError, match="class cat, negative reference 1: expected"):
        memory_from_instance_means([[negatives[1][0]]], ["cat"], [[negatives[1][0], negatives[1][0][:2]]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: n * np.nan, "not finite"),
        (lambda n: n[:1], "expected negatives"),
        (lambda n: n[:, :, :4], "expected negatives"),
        (lambda n: n[:, :0], "expected negatives|none 0"),
        (lambda n: n * 0, "must come first"),
        (lambda n: n[:, ::-1], "must come first"),
    ],
)
def test_ragged_and_hostile_negatives(tmp_path, monkeypatch, change, said):
    good, _ = with_negatives(1, 2)
    bad = dataclasses.replace(good.memory, negatives=change(np.asarray(good.memory.negatives)))
    bad = dataclasses.replace(good, memory=bad)
    with pytest.raises(InputError, match=said):
        save_memory(tmp_path / "m.safetensors", bad)
    with monkeypatch.context() as careless:
        careless.setattr("ntt_jax.memory.bank._check_bank", lambda *_: None)
        save_memory(tmp_path / "m.safetensors", bad)
    with pytest.raises(InputError, match=said) as error:
        load_memory(tmp_path / "m.safetensors")
    assert "m.safetensors" in str(error.value) and "\n" not in str(error.value)


def edited(data, change):
    """The file with its header changed by a function of (header, bank description)."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    info = json.loads(header["__metadata__"]["bank"])
    change(header, info)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["bank"] = json.dumps(info)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


CHANGES = [
    lambda header, info: header.pop("valid"),
    lambda header, info: header.pop("__metadata__"),
    lambda header, info: header.update(other=header["valid"]),
    lambda header, info: header["prototypes"].update(shape=[2**39, 2**39]),
    lambda header, info: header["prototypes"].update(shape=[2, -6]),
    lambda header, info: header["prototypes"].update(shape=[12]),
    lambda header, info: header["prototypes"].update(dtype="I32"),
    lambda header, info: header["prototypes"].update(data_offsets=[0, 10**9]),
    lambda header, info: header["prototypes"].update(data_offsets=header["instance_means"]["data_offsets"]),
    lambda header, info: header["valid"]["data_offsets"].__setitem__(slice(None), [0, 3]),  # overlapping bytes
    lambda header, info: header["valid"].update(shape=[0, 2**47, 2**47], data_offsets=[0, 0]),
    lambda header, info: header.update(prototypes=7),
    lambda header, info: info.update(version=2),
    lambda header, info: info.update(class_names=["cat", 3]),
    lambda header, info: info.update(class_names=["cat", "cat"]),
    lambda header, info: info.update(category_ids=[1, 2.5]),
    lambda header, info: info.update(category_ids=[1, True]),
    lambda header, info: info.update(provenance=None),
    lambda header, info: info["provenance"].update(note=float("inf")),
    lambda header, info: info["provenance"].update(note=float("nan")),
    lambda header, info: info.pop("encoder"),
    lambda header, info: info["encoder"].update(embed_dim=384),
    lambda header, info: info["encoder"].update(model="sam2"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_lying_files(tmp_path, saved, change):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(edited(saved, change))
    with pytest.raises(InputError, match=r"bad\.safetensors") as error:
        load_memory(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "[[1e999]]"])
def test_a_number_that_is_none_in_the_provenance(tmp_path, saved, value):
    data = edited(saved, lambda header, info: info["provenance"].update(x="HERE"))
    length = struct.unpack("<Q", data[:8])[0]
    text = data[8 : 8 + length].replace(rb"\"HERE\"", value.encode())
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(InputError, match=r"bad\.safetensors.*(no number|not finite)"):
        load_memory(path)


def test_not_finite_and_cut_short(tmp_path, saved):
    path = tmp_path / "bad.safetensors"
    for data in (
        saved[:-1],
        saved + b"0",
        saved[:40],
        saved[:3],
        b"",
        b"\xff" * 64,
        np.float32(np.nan).tobytes().join([saved[:-4], b""]),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            load_memory(path)
    with pytest.raises(InputError, match="missing"):
        load_memory(tmp_path / "missing.safetensors")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_never_do_anything_else(tmp_path_factory, saved, data):
    damaged = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(saved) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(saved)))] if data.draw(st.booleans()) else damaged))
    try:
        loaded = load_memory(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.all(np.isfinite(loaded.memory.prototypes)) and len(loaded.class_names) == 2


def test_require_encoder():
    require_encoder(bank(), ENCODER, "ab" * 32)
    require_encoder(bank(), dataclasses.replace(ENCODER, name="renamed"))
    with pytest.raises(InputError, match=r"embed_dim 6.*embed_dim 384"):
        require_encoder(bank(), DINOV2_CONFIGS["dinov2_vits14"])
    with pytest.raises(InputError, match="another checkpoint"):
        require_encoder(bank(), ENCODER, "cd" * 32)
