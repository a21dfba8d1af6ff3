"""Reading with limits, writing whole or not at all, descriptions of anything."""

import json
import os
import pathlib
from typing import Any

import pytest
from coco_files import check_message, json_values
from hypothesis import given, settings

from ntt_jax import files
from ntt_jax.errors import InputError
from ntt_jax.files import describe, read_bytes, write_bytes, write_json


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(json_values)
def test_descriptions_are_short_lines(value: Any) -> None:
    assert describe(value).isprintable() and len(describe(value)) <= 200


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (10**400, "an integer of 1329 bits"),
        ("a\nb", "'a\\nb'"),
        ("x" * 99, "'" + "x" * 60 + "'..."),
        ([1, 2.5], "[1, 2.5]"),
        ([[]], "a list of 1"),
        ({"a": 1}, "an object of 1 keys"),
        (b"", "a bytes"),
    ],
)
def test_descriptions(value: Any, text: str) -> None:
    assert describe(value) == text


def test_reading(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, max_bytes=5, what="thing") == b"12345"
    os.mkfifo(tmp_path / "pipe")
    cases = [(tmp_path, "a folder"), (tmp_path / "no", "No such file"), (tmp_path / "a\0b", "cannot read")]
    for bad, part in [*cases, (tmp_path / "pipe", "not a regular file"), (tmp_path / ("n" * 300), "too long")]:
        with pytest.raises(InputError) as caught:
            read_bytes(bad, max_bytes=5, what="thing")
        check_message(caught.value, "thing", part)
    with pytest.raises(InputError, match="larger than the limit of 4 bytes"):
        read_bytes(path, max_bytes=4, what="thing")


def test_writing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, 2]})
    assert json.loads(path.read_bytes()) == {"a": [1, 2]}
    write_bytes(path, iter([b"12", b"3"]))
    assert path.read_bytes() == b"123"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_failed_write_changes_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def chunks(error: BaseException) -> Any:
        yield b"new"
        raise error

    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, chunks(KeyboardInterrupt()))
    with pytest.raises(InputError, match="their message"):
        write_bytes(path, chunks(InputError("their message")))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    for bad in (tmp_path / "no" / "file", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(InputError, match=r"cannot be written|is a folder"):
            write_bytes(bad, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_equal_short_numbers_of_a_dense_file_are_one_object(monkeypatch):
    numbers = ["-600", "9e9", "0.5", "-0.0", "-0", "12345678", "1.2345678", "1e999", "-600", "9e9"]
    text = "[" + ",".join(numbers * 2) + "]"
    expected = json.loads(text)
    monkeypatch.setattr(files, "_SMALL", 10)
    monkeypatch.setattr(files, "_BYTES_PER_NUMBER", 8)
    found = files.parse_json(text.encode(), "a.json", what="file")
    assert list(map(repr, found)) == list(map(repr, expected))
    assert found[0] is found[8] is found[10] and found[1] is found[9] and found[6] is not found[16]
    with pytest.raises(InputError, match="not valid JSON"):
        files.parse_json(text.replace("12345678", "9" * 5000).encode(), "a.json", what="file")
