"""Files from strangers: every one ends in one clear line, executes nothing and leaves nothing behind. No torch needed.

The fuzz tests change thousands of valid files in all the ways that damage or malice would.
"""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_checkpoints import (
    DINOV2_GIVEN,
    TINY_DINOV2,
    archive,
    checkpoint,
    save,
    save_raw,
    state_dict,
    tensor_pickle,
)

from ntt_jax.errors import InputError
from ntt_jax.loading import load_dinov2
from weight_port import port
from weight_port.__main__ import main
from weight_port.files import InputFile
from weight_port.pickle_scan import scan
from weight_port.source import open_source
from weight_port.store import read_safetensors
from weight_port.torch_file import looks_like_torch

FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FUZZ = settings(max_examples=700, deadline=None, database=None)


def refused(path, message, capsys, tmp_path):
    """`convert` and `inspect` end in status 2 and one line that matches; the folder is as before."""
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for command in (["convert", str(path), str(tmp_path / "out.safetensors")], ["inspect", str(path)]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
        assert re.search(message, captured.err), captured.err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": FLOATS}, b"1234", "describes 8 bytes of data, the file has 4"),
        ({"a": FLOATS}, b"123456789", "describes 8 bytes of data, the file has 9"),
        ({"a": FLOATS | {"data_offsets": [4, 12]}}, b"0" * 12, "starts at byte 4, expected 0"),
        ({"a": FLOATS, "b": FLOATS}, b"0" * 8, "starts at byte 0, expected 8"),  # one storage, many tensors
        ({"a": FLOATS | {"shape": [3]}}, b"0" * 8, "needs 12 bytes, the header gives it 8"),
        ({"a": FLOATS | {"shape": [2**40, 2**40]}}, b"0" * 8, "the header gives it 8"),
        ({"a": FLOATS | {"shape": [-2]}}, b"0" * 8, "shape must be a list of at most 8 sizes"),
        ({"a": FLOATS | {"shape": [True, 2]}}, b"0" * 8, "shape must be"),
        ({"a": FLOATS | {"shape": [1] * 50}}, b"0" * 8, "shape must be"),
        ({"a": FLOATS | {"shape": "2"}}, b"0" * 8, "shape must be"),
        ({"a": FLOATS | {"dtype": "F31"}}, b"0" * 8, "unknown dtype"),
        ({"a": FLOATS | {"dtype": ["F32"]}}, b"0" * 8, "unknown dtype"),
        ({"a": FLOATS | {"data_offsets": [8, 0]}}, b"0" * 8, "the header gives it -8"),
        ({"a": FLOATS | {"data_offsets": [0, 8, 9]}}, b"0" * 8, "data_offsets must be two positions"),
        ({"a": [1]}, b"", "header entry must have"),
        ({"a": FLOATS, "__metadata__": {"x": 1}}, b"0" * 8, "metadata must map strings to strings"),
        ({}, b"", "expected 1 to 20000 tensors, found 0"),
        ({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20001)}, b"", "found 20001"),
        ([1, 2], b"", "expected a JSON object, found list"),
        (b'{"a": 1, "a": 2}', b"", "not valid JSON: the same key twice"),
        (b'{"a": ' * 50, b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON|nested too deeply|lists and objects"),
        (b"\xff\xfe" * 10, b"", "not valid JSON"),
        (b"9" * 5000, b"", "not valid JSON"),
        ({"evil\n\x1b[2J": FLOATS}, b"0" * 8, "neither SAM 2 nor DINOv2"),
        ({"weights": FLOATS}, b"0" * 8, "neither SAM 2 nor DINOv2"),
    ],
)
def test_lying_safetensors_headers(tmp_path, capsys, header, data, message):
    refused(save_raw(tmp_path / "bad.safetensors", header, data), message, capsys, tmp_path)


def test_a_safetensors_header_whose_length_begins_like_a_pickle(tmp_path):
    for version in (2, 3, 4, 5):
        header = json.dumps({"a": FLOATS}).encode().ljust(0x80 + 256 * version)
        tensors, _ = read_safetensors(save_raw(tmp_path / "x", header, b"0" * 8))
        assert list(tensors) == ["a"] and not looks_like_torch(InputFile(tmp_path / "x"))


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    for name, content, message in [
        ("empty.pt", b"", "the file is empty"),
        ("empty.safetensors", b"", "the file is empty"),
        ("page.safetensors", b"<!DOCTYPE html><html>not found</html>", "an HTML page, not a checkpoint"),
        ("page.pt", b"\xef\xbb\xbf\n <html><body>403</body></html>", "an HTML page, not a checkpoint"),
        ("denied.pt", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML page, not a checkpoint"),
        ("error.pt", b'{"error": "Repository not found"}', "JSON text, not a checkpoint"),
        ("error.pth", b"Entry not found", "a text file, not a checkpoint"),
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "run `git lfs pull`"),
        ("photo.pt", b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\1" * 50, "a JPEG image, not a checkpoint"),
        ("photo.safetensors", b"\x89PNG\r\n\x1a\n" + b"\1" * 50, "a PNG image, not a checkpoint"),
        ("packed.pt", gzip.compress(b"weights" * 9), "gzip; unpack it first"),
        ("packed.tar", b"a.pt".ljust(257, b"\0") + b"ustar\0" + b"\0" * 300, "a tar archive; unpack it first"),
        ("keras.pt", b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "an HDF5 file"),
        ("zeros.pt", b"\0" * 5000, "a download that did not finish"),
        (
            "legacy.pt",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M",
            "written by torch before 1.6, .*torch.save",
        ),
        ("short.safetensors", b"1\x01345", "not a safetensors file"),
        ("huge.safetensors", struct.pack("<Q", 2**63) + b"{}" * 20, "not a safetensors file"),
        ("cut.pt", b"PK\x03\x04 cut off", "damaged or truncated archive"),
        ("old.pt", pickle.dumps({"a": 1}, 2), "written by torch before 1.6"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, message, capsys, tmp_path)
    refused(tmp_path / "absent.pt", "No such file", capsys, tmp_path)
    refused(tmp_path, "no model.safetensors or model.safetensors.index.json", capsys, tmp_path)
    refused("a\0b", "cannot read the checkpoint", capsys, tmp_path)
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    refused(tmp_path / "loop.pt", "cannot read the checkpoint", capsys, tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(tmp_path / "pipe.safetensors", "not a regular file", capsys, tmp_path)


class Payload:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    "payload",
    [
        Payload(os.system, "touch executed"),
        Payload(eval, "open('executed', 'w')"),
        {"model": {"norm.bias": Payload(exec, "open('executed', 'w')")}},
        {"a": Payload(getattr, "x", "upper")},
        {"a": np.zeros(3)},
        {"a": print},
    ],
)
def test_pickles_are_never_executed(tmp_path, capsys, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    for protocol in range(5):
        checkpoint(tmp_path / "evil.pt", pickle.dumps(payload, protocol))
        refused(tmp_path / "evil.pt", "pickle", capsys, tmp_path)
    checkpoint(tmp_path / "evil.pt", pickle.dumps(payload, 2))
    refused(tmp_path / "evil.pt", "asks for", capsys, tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor_pickle(numel=2**40), "claims a storage of 4398046511104 bytes, the archive has 64"),
        (tensor_pickle(numel=2**20_000), "damaged pickle"),  # of more digits than Python prints
        (tensor_pickle(numel=-1), "damaged pickle"),
        (pickle.dumps({2**20_000: 3}, 2), "an integer of 20001 bits: a dictionary key is int"),
        (tensor_pickle(numel=15), "claims a storage of 60 bytes"),
        (tensor_pickle(key="1"), "the archive has None"),
        (tensor_pickle(key="../../etc/passwd"), "the archive has None"),
        (tensor_pickle(shape=(17,)), "reaches beyond its storage"),
        (tensor_pickle(offset=1), "reaches beyond its storage"),
        (tensor_pickle(stride=(2,)), "reaches beyond its storage"),
        (tensor_pickle(shape=(2**20, 2**20), stride=(0, 0)), "tensors would take 4398046511104 bytes"),
        (tensor_pickle(shape=(2**30, 2**30, 2**30), stride=(0, 0, 0)), "is of no array"),
        (tensor_pickle(shape=(0, *[2**47] * 7), stride=(1,) * 8), "is of no array"),
        (tensor_pickle(shape=(2**24, 2), stride=(0, 1)), "tensors would take"),
        (tensor_pickle(shape=(-1,)), "damaged pickle"),
        (tensor_pickle(shape=(1,) * 9, stride=(1,) * 9), "damaged pickle"),
        (tensor_pickle(storage="UntypedStorage"), "asks for torch.UntypedStorage"),
        (pickle.dumps({}, 2), "expected 1 to 20000 tensors, found 0"),
        (pickle.dumps([1, 2], 2), "expected a dictionary of tensors, found list"),
        (pickle.dumps({"model": {"a": 3}}, 2), "'a' is int, expected a state dict"),
        (pickle.dumps({(1, 2): 3}, 2), "a dictionary key is tuple"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "damaged pickle"),
        (b"\x80\x02}" + b"0" * 10, "pickle instruction POP"),
        (b"", "damaged pickle"),
    ],
)
def test_lying_pickles(tmp_path, capsys, data, message):
    refused(checkpoint(tmp_path / "bad.pt", data), message, capsys, tmp_path)


def test_a_tuple_whose_hash_takes_forever_is_no_key(tmp_path, capsys):
    """Twofold nesting, sixty deep: the pickle is tiny, hashing its value would take 2^60 steps."""
    laughs = b"\x80\x02}" + b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"K\x01s."
    refused(checkpoint(tmp_path / "bad.pt", laughs), "a dictionary key is tuple", capsys, tmp_path)


def test_archives_that_expand_or_overlap(tmp_path, capsys):
    good = tensor_pickle()
    bomb = {"x/data.pkl": good, "x/data/0": b"\0" * 10_000_000}
    refused(archive(tmp_path / "bomb.pt", bomb, zipfile.ZIP_DEFLATED), "is compressed", capsys, tmp_path)
    refused(
        archive(tmp_path / "script.pt", {"x/data.pkl": good, "x/constants.pkl": b""}), "TorchScript", capsys, tmp_path
    )
    refused(archive(tmp_path / "zip.pt", {"readme.txt": b"hello"}), "another archive", capsys, tmp_path)
    two = {"x/data.pkl": good, "y/data.pkl": good}
    refused(archive(tmp_path / "two.pt", two), "another archive", capsys, tmp_path)
    refused(checkpoint(tmp_path / "big.pt", good, **{"x/byteorder": b"big"}), "big-endian", capsys, tmp_path)
    many = {f"x/data/{i}": b"" for i in range(20_101)}
    refused(archive(tmp_path / "many.pt", many), "records in the archive", capsys, tmp_path)
    (tmp_path / "many.pt").unlink()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "double.pt", "w") as z:
        z.writestr("x/data.pkl", good)
        z.writestr("x/data.pkl", pickle.dumps(1, 2))
    refused(tmp_path / "double.pt", "same name", capsys, tmp_path)
    overlapping = checkpoint(tmp_path / "overlap.pt", good).read_bytes()
    directory = overlapping.index(b"PK\x01\x02")
    first, second = (overlapping.index(b"PK\x01\x02", directory + i) for i in (0, 1))
    moved = bytearray(overlapping)
    moved[second + 42 : second + 46] = moved[first + 42 : first + 46]  # both records start at the same place
    (tmp_path / "overlap.pt").write_bytes(moved)
    refused(tmp_path / "overlap.pt", "overlap", capsys, tmp_path)


def sharded(folder, tensors, mapping=None):
    names = list(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save(folder / file, {name: tensors[name] for name in part})
    index = {"metadata": {}, "weight_map": mapping or {name: f for f, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_sharded_folders(tmp_path, capsys):
    tensors = state_dict(TINY_DINOV2)
    (tmp_path / "folder").mkdir()
    folder = sharded(tmp_path / "folder", tensors)
    _, weights = port.convert(folder, tmp_path / "ours", given=DINOV2_GIVEN)
    assert weights.config == TINY_DINOV2
    index = folder / "model.safetensors.index.json"
    for mapping, message in [
        (dict.fromkeys(tensors, "../model-1.safetensors"), "is not the plain name of a .safetensors file"),
        (dict.fromkeys(tensors, "/etc/x.safetensors"), "is not the plain name"),
        (dict.fromkeys(tensors, "..\\x.safetensors"), "is not the plain name"),
        (dict.fromkeys(tensors, "model.pt"), "is not the plain name"),
        (dict.fromkeys(tensors, 3), "is not the plain name"),
        (dict.fromkeys(tensors, "model-1.safetensors"), "the index and the file disagree about tensor"),
        (dict.fromkeys(tensors, "model-9.safetensors"), "No such file"),
        ({str(i): f"{i}.safetensors" for i in range(1001)}, "1001 shards"),
        ([], 'expected an object "weight_map"'),
    ]:
        index.write_text(json.dumps({"weight_map": mapping}))
        refused(folder, message, capsys, tmp_path)
    index.write_text("{")
    refused(folder, "not valid JSON", capsys, tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    source = save(tmp_path / "s.safetensors", state_dict(TINY_DINOV2))
    (tmp_path / "config.json").write_text(json.dumps(DINOV2_GIVEN))
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"what was here before")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    arguments = ["convert", str(source), str(target), "--config", str(tmp_path / "config.json")]
    assert main(arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert target.read_bytes() == b"what was here before" and len(list(tmp_path.iterdir())) == 3
    monkeypatch.undo()
    assert main([*arguments[:2], str(tmp_path / "no" / "folder"), *arguments[3:]]) == 2
    assert main([*arguments[:2], str(tmp_path), *arguments[3:]]) == 2
    assert main(arguments) == 0 and load_dinov2(target).config == TINY_DINOV2


def changed(data: bytes, edits) -> bytes:
    """Bytes overwritten, inserted, removed and cut off."""
    out = bytearray(data)
    for kind, position, value in edits:
        i = position % (len(out) + 1)
        if kind == "set":
            out[i : i + len(value)] = value
        elif kind == "insert":
            out[i:i] = value
        elif kind == "remove":
            del out[i : i + 1 + len(value)]
        else:
            del out[i:]
    return bytes(out)


EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "set", "insert", "remove", "cut"]), st.integers(0, 10**6), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


def only_input_errors(function, *arguments):
    """Success is fine (some changes hit padding); the one exception that may escape is a one-line InputError."""
    try:
        function(*arguments)
    except InputError as e:
        assert "\n" not in str(e) and len(str(e)) < 2000


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    port.convert(save(folder / "s", state_dict(TINY_DINOV2)), folder / "ours", given=DINOV2_GIVEN)
    return folder / "ours"


@FUZZ
@given(edits=EDITS, header_only=st.booleans())
def test_fuzz_converted_files(converted, edits, header_only):
    data = converted.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    bad = changed(data[:header], edits) + data[header:] if header_only else changed(data, edits)
    path = converted.with_name("fuzzed")
    path.write_bytes(bad)
    only_input_errors(port.read_converted, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(name=st.sampled_from(["norm.bias", "cls_token", "__metadata__", "x"]), field=st.text(max_size=3), value=JSON)
def test_fuzz_headers_by_structure(converted, name, field, value):
    data = converted.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = {"": None, "a": "dtype", "b": "shape", "c": "data_offsets"}.get(field[:1], "config")
    header[name] = value if key is None else {**header.get(name, {}), key: value}
    only_input_errors(read_safetensors, save_raw(converted.with_name("header"), header, data[8 + length :]))


@FUZZ
@given(fields=st.dictionaries(st.sampled_from(["num_heads", "depth", "name", "mlp_ratio", "hiera", "x"]), JSON))
def test_fuzz_given_configurations(converted, fields):
    source = converted.with_name("s")
    only_input_errors(lambda: port.check_tensors(open_source(source).tensors, "s", given=fields))


@settings(FUZZ, max_examples=2000)
@given(edits=EDITS)
def test_fuzz_pickles(edits):
    only_input_errors(scan, changed(tensor_pickle(), edits), "x.pt")


@FUZZ
@given(edits=EDITS)
def test_fuzz_archives(tmp_path_factory, edits):
    buffer = io.BytesIO()
    checkpoint(buffer, tensor_pickle())
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(changed(buffer.getvalue(), edits))
    only_input_errors(lambda: [tensor.read() for tensor in open_source(path).tensors.values()])


def test_nothing_is_left_in_temporary_folders(converted):
    assert not [p for p in converted.parent.iterdir() if p.name.startswith(".")]
    shutil.rmtree(converted.parent)
