"""Zips from a server: unpacked whole or not at all, and never more, or elsewhere, than the known archive would."""

import io
import stat
import struct
import zipfile
from collections import namedtuple
from collections.abc import Callable

import pytest

from ntt_jax.errors import InputError
from ntt_jax.hub.fetch import StorageError
from ntt_jax.reproduce import archive, coco

VAL = archive.Archive("zips/val.zip", 50_000, 1_000_000, ("val2017/",), 5)
LISTS = archive.Archive("lists.zip", 50_000, 1_000_000, ("annotations/a.json",), 1)
A = b"a" * 1000


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these entries, in this order; a name may stand there twice."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as made:
        for name, content in entries:
            made.writestr(name, content, compress_type=method)
    return data.getvalue()


def entry(name: str, kind: int) -> zipfile.ZipInfo:
    """An entry with a mode of POSIX."""
    made = zipfile.ZipInfo(name)
    made.external_attr = (kind | 0o644) << 16
    return made


def patched(data: bytes, at: int, size: int) -> bytes:
    """The zip with another number of 4 bytes `at` bytes into the first entry of its list of files."""
    place = data.index(b"PK\x01\x02") + at
    return data[:place] + struct.pack("<I", size) + data[place + 4 :]


def listed(count: int) -> bytes:
    """A zip of nothing but a list of files, all of them the same."""
    one = zipped(("val2017/" + "a" * 50, b""))
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    size = (end - start) * count
    return one[:start] + one[start:end] * count + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, size, start, 0)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "path out": (lambda: zipped(("val2017/../../x", A)), "outside the folder"),
    "path out, of Windows": (lambda: zipped(("val2017/..\\..\\x", A)), "outside the folder"),
    "a drive": (lambda: zipped(("val2017/C:x", A)), "outside the folder"),
    "control characters": (lambda: zipped(("val2017/\x1b[2J", A)), "no name of a file"),
    "a long name": (lambda: zipped(("val2017/" + "d/" * 200 + "a", A)), "no name of a file"),
    "a link": (lambda: zipped((entry("val2017/a", stat.S_IFLNK), b"/etc")), "a link or a device"),
    "a pipe": (lambda: zipped((entry("val2017/a", stat.S_IFIFO), b"")), "a link or a device"),
    "twice": (lambda: zipped(("val2017/a.jpg", A), ("val2017/A.JPG", b"b")), "stands there twice"),
    "many files": (lambda: zipped(*((f"val2017/{i}", b"") for i in range(11))), "11 files where 5 are known"),
    "many bytes": (lambda: zipped(("val2017/a", b"x" * 2_000_001)), r"would write 2\.0 MB where 1\.0 MB"),
    "a claim": (lambda: patched(zipped(("val2017/a", A)), 24, 2**32 - 2), r"would write 4\.3 GB where 1\.0 MB"),
    "a bomb": (
        lambda: zipped(("val2017/a", b"\0" * 1_900_000), method=zipfile.ZIP_DEFLATED),
        r"claims 1\.9 MB from 1\d{3} bytes",
    ),
    "none of them": (lambda: zipped(("train2017/a", A)), r"holds no val2017/; is it another"),
}
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a list without end": (lambda: listed(60_000), r"list of files takes more than 4\.2 MB"),
    "more than it says": (
        lambda: patched(zipped(("val2017/a", A * 2), method=zipfile.ZIP_DEFLATED), 24, 1000),
        "Bad CRC-32",
    ),
    "fewer than it says": (
        lambda: patched(zipped(("val2017/a", A), method=zipfile.ZIP_DEFLATED), 24, 3000),
        "fewer bytes|Bad CRC|EOF",
    ),
    "packed by LZMA": (lambda: zipped(("val2017/a", A), method=zipfile.ZIP_LZMA), "another way"),
    "packed by bzip2": (lambda: zipped(("val2017/a", A), method=zipfile.ZIP_BZIP2), "another way"),
    "its list elsewhere": (lambda: zipped(("val2017/a", A))[40:], r"damaged \("),
    "encrypted": (lambda: patched(zipped(("val2017/a", A)), 6, 0x0001_0014), "encrypted"),
    "no zip": (lambda: b"<html>" + A, "not a zip"),
}


@pytest.mark.parametrize("name", [*HOSTILE, *DAMAGED])
def test_another_archive_writes_nothing(tmp_path, name):
    make, words = {**HOSTILE, **DAMAGED}[name]
    folder, path = tmp_path / "data", tmp_path / "val.zip"
    folder.mkdir()
    path.write_bytes(make())
    with pytest.raises(InputError, match=words) as caught:
        archive.unpack(path, folder, VAL)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == ([path] if name in HOSTILE else [])


def test_only_what_was_asked_for(tmp_path):
    path = tmp_path / "lists.zip"
    path.write_bytes(zipped(("annotations/a.json", A), ("annotations/a.json.exe", A), ("annotations/b.json", A)))
    archive.unpack(path, tmp_path, LISTS)
    assert sorted(path.name for path in (tmp_path / "annotations").iterdir()) == ["a.json"]


def test_whole_or_not_at_all(tmp_path):
    path, there = tmp_path / "val.zip", tmp_path / "val2017"
    path.write_bytes(zipped(("val2017/a.jpg", A), ("val2017/b.jpg", b"b" * 1000), ("other/c", b"c")))
    there.mkdir()
    (there / "a.jpg").write_bytes(A)
    (there / "b.jpg").write_bytes(b"b" * 10)  # not whole: written again
    before = (there / "a.jpg").stat().st_ino
    archive.unpack(path, tmp_path, VAL)
    assert (there / "b.jpg").read_bytes() == b"b" * 1000 and not (tmp_path / "other").exists()
    assert (there / "a.jpg").stat().st_ino == before
    data = bytearray(path.read_bytes())
    data[data.index(b"b" * 100) + 50] ^= 1
    path.write_bytes(data)
    (there / "b.jpg").unlink()
    with pytest.raises(InputError, match=r"damaged.*it was deleted, start again"):
        archive.unpack(path, tmp_path, VAL)
    assert not path.exists() and [path.name for path in there.iterdir()] == ["a.jpg"]


def test_nothing_is_written_through_links(tmp_path):
    folder, users, path = tmp_path / "data", tmp_path / "users", tmp_path / "val.zip"
    folder.mkdir()
    users.mkdir()
    (users / "precious").write_bytes(b"precious")
    path.write_bytes(zipped(("val2017/a.jpg", A)))
    (folder / "val2017").symlink_to(users)
    with pytest.raises(InputError, match="symbolic link, expected a folder"):
        archive.unpack(path, folder, VAL)
    (folder / "val2017").unlink()
    (folder / "val2017").mkdir()
    (folder / "val2017" / "a.jpg").symlink_to(users / "precious")
    with pytest.raises(InputError, match="symbolic link, which is not replaced"):
        archive.unpack(path, folder, VAL)
    assert [(one.name, one.read_bytes()) for one in users.iterdir()] == [("precious", b"precious")]


def test_a_disk_without_room_is_said_before_the_first_byte(tmp_path, monkeypatch):
    path = tmp_path / "val.zip"
    path.write_bytes(zipped(("val2017/a.jpg", A)))
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("usage", "free")(999))
    with pytest.raises(StorageError, match=r"not enough space: 1000 bytes to unpack from .*val\.zip, 999 bytes free"):
        archive.unpack(path, tmp_path, VAL)
    assert path.exists() and not (tmp_path / "val2017").exists()


@pytest.mark.parametrize("said", [True, False])
def test_a_server_that_sends_too_much_is_left(hub, tmp_path, monkeypatch, said):
    """Before the first byte where it says so, at the first that is too many where it does not."""
    hub.meta[VAL.path] = bytes(2 * VAL.size + 1)
    hub.unsized = not said
    monkeypatch.setenv("NTT_JAX_COCO_URL", hub.meta_url)
    with pytest.raises(InputError, match=r"zips/val\.zip: the server sends more than 0\.1 MB: another file"):
        coco.fetch_archive(coco.Coco(tmp_path / "coco"), VAL)
    left = [path for path in (tmp_path / "coco").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sum(path.stat().st_size for path in left) <= 200  # the note of a download, if anything


def test_a_hostile_server(hub, tmp_path, monkeypatch):
    hub.meta[VAL.path] = zipped(("val2017/a.jpg", A), ("val2017/../../escaped", A))
    monkeypatch.setenv("NTT_JAX_COCO_URL", hub.meta_url)
    with pytest.raises(InputError, match="outside the folder"):
        coco.fetch_archive(coco.Coco(tmp_path / "coco"), VAL)
    assert not list(tmp_path.rglob("escaped")) and not (tmp_path / "coco" / "val2017").exists()
    hub.meta[VAL.path] = zipped(("val2017/a.jpg", A))
    (tmp_path / "coco" / "downloads" / "val.zip").unlink()
    coco.fetch_archive(coco.Coco(tmp_path / "coco"), VAL)
    assert [path.name for path in (tmp_path / "coco").rglob("*")] == ["val2017", "a.jpg"]
