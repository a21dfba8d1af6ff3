"""Archives that two programs read differently: there is one reader, and it refuses what allows two readings."""

import pickle
import struct
import zipfile
import zlib

import pytest
from torch_archives import archive, checkpoint, tensor_pickle

from ntt_jax.errors import InputError
from weight_port.source import open_source

EVIL = b"\x80\x02cbuiltins\nbytearray\nq\0\x8a\x05" + (3 * 10**9).to_bytes(5, "little") + b"\x85R."
RECORDS = {"x/data.pkl": tensor_pickle(), "x/version": b"3\n", "x/data/0": b"\0" * 64}


def refused(path, *parts):
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert all(part in str(caught.value) for part in parts), caught.value


def local(name, data):
    raw = name.encode()
    sizes = zlib.crc32(data), len(data), len(data)
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0x21, *sizes, len(raw), 0) + raw + data


def central(name, data, offset):
    raw = name.encode()
    sizes = zlib.crc32(data), len(data), len(data)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0x21, *sizes, len(raw), 0, 0, 0, 0, 0, offset) + raw


def end(count, size, start, comment=b""):
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, len(comment)) + comment


def test_an_honest_archive_made_by_hand_is_read(tmp_path):
    body, directory = b"", b""
    for name, data in RECORDS.items():
        directory += central(name, data, len(body))
        body += local(name, data)
    (tmp_path / "x.pt").write_bytes(body + directory + end(3, len(directory), len(body)))
    assert list(open_source(tmp_path / "x.pt").tensors) == ["norm.bias"]


@pytest.mark.parametrize("name", ["x/DATA.PKL", "x/Data.pkl", "x/data.p\u212al", "X/data.pkl"])
def test_names_that_collide_when_case_or_form_is_folded(tmp_path, name):
    for records in ({**RECORDS, name: EVIL}, {name: EVIL, **RECORDS}):
        refused(archive(tmp_path / "x.pt", records), "two records of the archive have the same name")


@pytest.mark.parametrize("name", ["/x/data.pkl", "x\\data.pkl", "x/../y/data.pkl", "x/a\nb"])
def test_names_that_lead_elsewhere(tmp_path, name):
    refused(archive(tmp_path / "x.pt", {**RECORDS, name: EVIL}), "a record of the archive has the name")


def test_a_second_directory_where_the_end_record_points(tmp_path):
    """A reader that trusts the stated offset sees other entries than one that counts back from the end."""
    padding = 2000
    body, offsets = local("x/pad", b"\0" * padding), {}
    for name, data in RECORDS.items():
        offsets[name] = len(body)
        body += local(name, data)
    evil = len(body)
    body += local("x/data.pkl", EVIL)
    second = b"".join(
        central(name, EVIL if name == "x/data.pkl" else data, evil if name == "x/data.pkl" else offsets[name])
        for name, data in RECORDS.items()
    )
    first = b"".join(central(name, data, offsets[name] - len(second)) for name, data in RECORDS.items())
    (tmp_path / "x.pt").write_bytes(body + second + first + end(3, len(second), len(body)))
    with zipfile.ZipFile(tmp_path / "x.pt") as read:  # one of the readers that it was made to deceive
        assert read.read("x/data.pkl") == RECORDS["x/data.pkl"]
    refused(tmp_path / "x.pt", "its directory does not end where its end record says")


def test_bytes_behind_the_end_record_and_comments(tmp_path):
    good = checkpoint(tmp_path / "x.pt", tensor_pickle()).read_bytes()
    for tail in (b"x", end(0, 0, 0), b"PK\5\6" + b"\0" * 17):
        (tmp_path / "x.pt").write_bytes(good + tail)
        refused(tmp_path / "x.pt", "damaged or truncated archive")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as z:
        z.writestr("x/data.pkl", tensor_pickle())
        z.comment = b"hello"
    refused(tmp_path / "x.pt", "does not end in an end record")


def test_a_header_that_disagrees_with_the_directory(tmp_path):
    good = bytearray(checkpoint(tmp_path / "x.pt", tensor_pickle()).read_bytes())
    at = good.index(b"x/version")  # in its own header, not in the directory
    bad = bytes(good[:at]) + b"x/VERSION" + bytes(good[at + 9 :])
    (tmp_path / "x.pt").write_bytes(bad)
    refused(tmp_path / "x.pt", "and the directory disagree")


def test_a_file_that_is_cut_while_it_is_open_ends_in_one_line(tmp_path):
    path = checkpoint(tmp_path / "x.pt", tensor_pickle())
    tensors = open_source(path).tensors
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match="truncated, or cut while it was read"):
        tensors["norm.bias"]


@pytest.mark.parametrize("fill", [b"(", b"}", b"]", b")"])
def test_pickles_of_one_instruction(tmp_path, fill):
    data = b"\x80\x02" + fill * (2 * 10**6) + b"."
    refused(checkpoint(tmp_path / "x.pt", data), "more than 1,000,000 instructions")


def test_pickle_bytes_are_not_a_model(tmp_path):
    refused(checkpoint(tmp_path / "x.pt", pickle.dumps({"a": "x" * 1000}, 2)), "expected a state dict")
