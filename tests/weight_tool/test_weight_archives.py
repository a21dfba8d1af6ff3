"""Archives that two readers of zip files would read differently, files that are cut while they are read, and the
limits on pickles. No torch needed."""

import contextlib
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stopwatch import cpu_seconds
from weight_checkpoints import (
    DINOV2_GIVEN,
    TINY_DINOV2,
    archive,
    assert_same_bits,
    checkpoint,
    save,
    state_dict,
    tensor_pickle,
)

from ntt_jax.errors import InputError
from weight_port import port
from weight_port.choose import choose
from weight_port.files import InputFile, sha256
from weight_port.pickle_scan import _OPERATIONS, Opaque, scan
from weight_port.source import open_source
from weight_port.store import read_safetensors
from weight_port.zip_records import read_records

EVIL = b"\x80\x02cbuiltins\nbytearray\nK\x01\x85R."


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["x/DATA.PKL", "X/data.pkl", "x/ｄata.pkl", "x//data.pkl", "x/./data.pkl", "x\\data.pkl"]
)
@pytest.mark.parametrize("first", [True, False])
def test_names_that_some_reader_takes_for_another(tmp_path, name, first):
    members = {"x/data.pkl": tensor_pickle(), "x/data/0": b"\0" * 64}
    members = {name: EVIL, **members} if first else {**members, name: EVIL}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as z:
        for entry, data in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = entry  # as it is: ZipInfo itself normalises
            z.writestr(info, data)
    refused(tmp_path / "a.pt", "the same name but for case|odd name|not a checkpoint of torch.save")


def parts(path):
    """The records' bytes, the directory, the end record."""
    data = checkpoint(path, tensor_pickle()).read_bytes()
    directory, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    return data[:directory], data[directory:end], data[end:]


def ending(count, size, offset, comment=b""):
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, offset, len(comment)) + comment


def test_directories_that_are_not_where_the_end_record_says(tmp_path):
    records, directory, end = parts(tmp_path / "a.pt")
    count, size, start = 3, len(directory), len(records)
    assert end == ending(count, size, start)
    for data, message in [
        (records + directory + directory + end, "its directory ends at byte"),
        (records + directory + ending(count, size, start + 7), "its directory ends at byte"),
        (b"\0" * 40 + records + directory + ending(count, size, start + 40), "not a safetensors file"),
        (records + b"\0" * 40 + directory + ending(count, size, start + 40), "belong to no record"),
        (records + directory + end + b"more", "after the archive's end record"),
        (records + directory + ending(count, size, start, b"hello"), "after the archive's end record"),
        (records + directory + ending(count - 1, size, start), "its directory has bytes over"),
        (records + directory + ending(count + 1, size, start), "a header is cut off"),
        (records + directory + end[:-3], "its end record is missing"),
        (records, "its end record is missing"),
    ]:
        (tmp_path / "a.pt").write_bytes(data)
        refused(tmp_path / "a.pt", message)


def test_records_that_say_something_else_in_their_own_header(tmp_path):
    records, directory, end = parts(tmp_path / "a.pt")
    for place, value in [(8, b"\x08"), (14, b"\1"), (18, b"\1"), (22, b"\1"), (30, b"y"), (6, b"\1"), (0, b"X")]:
        changed = records[:place] + value + records[place + 1 :]
        (tmp_path / "a.pt").write_bytes(changed + directory + end)
        refused(tmp_path / "a.pt", "another in its own header|a text file|not a safetensors")
    data = records.index(b"\x80\x02}")
    (tmp_path / "a.pt").write_bytes(records[: data + 3] + b"Z" + records[data + 4 :] + directory + end)
    refused(tmp_path / "a.pt", "its pickle's checksum is wrong")


def test_what_writers_of_zip_do_differently_is_read(tmp_path):
    """Sizes after the data (as torch writes), 64-bit sizes, padding in extra fields, folders as entries."""
    content = tensor_pickle()
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as z:
        z.writestr("x/", b"")
        with z.open(zipfile.ZipInfo("x/data.pkl"), "w", force_zip64=True) as f:
            f.write(content)
        padded = zipfile.ZipInfo("x/data/0")
        padded.extra = b"FB\x05\x00ZZZZZ"
        z.writestr(padded, b"\1" * 64)
    found = read_records(InputFile(tmp_path / "a.pt"))
    assert found["x/data.pkl"].crc == zlib.crc32(content) and found["x/data.pkl"].size == len(content)
    streamed = tmp_path / "b.pt"
    with open(streamed, "wb") as raw, zipfile.ZipFile(_Stream(raw), "w") as z:
        z.writestr("x/data.pkl", content)
        z.writestr("x/data/0", b"\1" * 64)
    for path in (tmp_path / "a.pt", streamed):
        file = InputFile(path)
        record = read_records(file)["x/data/0"]
        assert file.content(record.offset, record.size) == b"\1" * 64


class _Stream:
    """A file that cannot seek: zipfile then writes sizes after the data."""

    def __init__(self, raw):
        self.raw = raw

    def write(self, data):
        return self.raw.write(data)

    def flush(self):
        self.raw.flush()


@pytest.mark.parametrize("one", [b"(", b"}", b"]", b"N", b"K\x01", b"(t", b"X\0\0\0\0", b"\x85", b"}q\0"])
def test_pickles_of_one_instruction_end_soon(one):
    data = b"\x80\x02)" + one * (8 * 2**20 // len(one))
    started = cpu_seconds()
    with pytest.raises(InputError, match=r"damaged pickle|more than 1,000,000 instructions"):
        scan(data, "x.pt")
    assert cpu_seconds() - started < 30  # 1 s, and several where a full heap is looked through for garbage


PIECES = [*map(bytes, (b"X\x05\0\0\0model", b"X\x09\0\0\0cls_token", b"cposix\nsystem\n", b"q\0", b"h\0"))]
PIECES += [tensor_pickle()[2:-2], tensor_pickle("blocks.0.attn.proj.bias")[2:-2], *_OPERATIONS, b"}(", b"us", b"K\x01"]


@settings(max_examples=1000, deadline=None, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20), st.sampled_from([None, "model", ""]))
def test_fuzz_pickles_by_instruction_and_what_is_chosen_from_them(pieces, key):
    with contextlib.suppress(InputError):
        found = scan(b"\x80\x02}" + b"".join(pieces) + b".", "x.pt")
        if isinstance(found, dict):
            choose(found, "x.pt", key=key)


def test_a_pickle_of_gigabytes_is_not_read(tmp_path):
    archive(tmp_path / "a.pt", {"x/data.pkl": b"(" * (17 * 2**20), "x/data/0": b""})
    refused(tmp_path / "a.pt", "its pickle is larger than 16 MB")


def test_objects_are_names_only():
    found = scan(
        b"\x80\x02}(X\x01\x00\x00\x00acposix\nsystem\nX\x01\x00\x00\x00x\x85RX\x01\x00\x00\x00bK\x01u.", "x.pt"
    )
    assert isinstance(found["a"], Opaque) and found["a"].name == "posix.system" and found["b"] == 1


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_that_is_cut_while_it_is_used_ends_in_one_line(tmp_path, kind):
    port.convert(save(tmp_path / "s", state_dict(TINY_DINOV2)), tmp_path / "ours", given=DINOV2_GIVEN)
    path = tmp_path / f"cut.{kind}"
    port.export(tmp_path / "ours", path)
    tensors = open_source(path).tensors
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="was cut while it was read"):
        for tensor in tensors.values():
            tensor.read()


def test_numbers_are_checked_when_they_are_read(tmp_path):
    tensors = state_dict(TINY_DINOV2) | {"norm.bias": np.full(16, np.nan, np.float32)}
    source = save(tmp_path / "s", tensors)
    with pytest.raises(InputError, match=r"norm\.bias has 16 of 16 numbers"):
        port.convert(source, tmp_path / "ours", given=DINOV2_GIVEN)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_the_hash_of_an_unchanged_file_is_made_once(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1" * 100)
    first = sha256(path)
    reads = []
    monkeypatch.setattr(InputFile, "read", lambda self, offset, count: reads.append(count))
    assert sha256(path) == first and not reads
    monkeypatch.undo()
    path.write_bytes(b"2" * 100)
    os.utime(path, ns=(1, 1))
    assert sha256(path) != first


def test_export_without_torch(tmp_path):
    original = state_dict(TINY_DINOV2)
    port.convert(save(tmp_path / "s", original), tmp_path / "ours", given=DINOV2_GIVEN)
    port.export(tmp_path / "ours", tmp_path / "back.pt")
    assert_same_bits(open_source(tmp_path / "back.pt").tensors, original)
    assert set(read_safetensors(tmp_path / "ours")[1]) >= {"config", "source_sha256"}
