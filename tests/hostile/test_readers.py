"""One list of poisons for every reader: each is an `InputError` of one bounded, printable line, at once."""

import ast
import contextlib
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from readers import FORGIVING, MODULES, READERS
from stopwatch import cpu_seconds

from ntt_jax.cli.options import check_file
from ntt_jax.errors import InputError

ROOT = Path(__file__).parents[2]
OPENING = {"open_input", "read_bytes", "parse_json", "open_in_place", "read_text"}
"""Names by which a module opens or parses files that may be anybody's."""
OTHERS = {
    "ntt_jax/app/api.py": "the package's own files",
    "ntt_jax/app/workbench.py": "its own list; another's is passed over: tests/app/test_workbench.py",
    "ntt_jax/cli/app.py": "the token that its user wrote",
    "ntt_jax/export/folder.py": "the package's own loader, copied into an exported folder",
    "ntt_jax/export/loader.py": "a program that its user exported and runs: tests/export",
    "ntt_jax/cli/tune.py": "the grid that its user writes: tests of tune",
    "ntt_jax/cli/reproduce.py": "what its own commands wrote a moment ago",
    "ntt_jax/demo/demo.py": "the package's own files",
    "ntt_jax/demo/training/loop.py": "files of the training that makes the package's small models",
    "ntt_jax/hub/system.py": "the kernel's own files",
    "ntt_jax/report/page.py": "the package's own files",
    "ntt_jax/runs/copies.py": "its own list, of which unknown lines are passed over: tests/runs/test_copies.py",
    "ntt_jax/runs/lock.py": "the lock of a run folder, whose content nobody reads: tests/hostile/test_outputs.py",
    "ntt_jax/safetensors_file.py": "parses the header of a file that others have opened",
}
HARMLESS = {("json", name) for name in ("infinity", "surrogates", "control", "utf16", "long key", "list")}
OBJECTS = ("infinity", "surrogates", "control", "utf16", "long key")
HARMLESS |= {("description of a run", poison) for poison in OBJECTS}
HARMLESS |= {("configuration", poison) for poison in OBJECTS[:-1]}
HARMLESS |= {("hints", poison) for poison in ("list", *OBJECTS[1:-1])}
HARMLESS |= {("read_results", "list")}


def packed(header: bytes, body: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    return struct.pack("<Q", len(header)) + header + body


def zipped() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model": {}}))
        archive.writestr("A/DATA.PKL", pickle.dumps({"model": {}}))
    return buffer.getvalue()


ESCAPES = "\x1b]0;pwn\x07\x1b[2J\u202e\r\n\ud800"
BYTES: dict[str, bytes] = {
    "one byte": b"\0",
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
    "random": np.random.default_rng(0).bytes(5000),
    "list": b"[]",
    "infinity": b'{"images":[1e999],"provenance":Infinity,"format":NaN}',
    "integer": b'{"images":' + b"9" * 5000 + b"}",
    "surrogates": b'{"\\ud800":"\\udfff","format":"\\ud800","images":"\\ud800"}',
    "control": json.dumps({ESCAPES: ESCAPES, "images": ESCAPES, "format": ESCAPES}).encode(),
    "long key": b'{"' + b"a" * 3_000_000 + b'":0,"format":"' + b"b" * 3_000_000 + b'","images":{}}',
    "deep": b"[" * 200_000,
    "deep objects": b'{"images":' * 100_000,
    "wide": b"[" + b"[]," * 2_000_000 + b"[]]",
    "keys": b"{" + b",".join(b'"%d":0' % i for i in range(1_500_000)) + b"}",
    "texts": b"[" + b'"ab",' * 2_000_000 + b"0]",
    "utf16": '{"images":[],"annotations":0}'.encode("utf-16"),
    "bad utf8": b'{"\xed\xa0\x80":"\xc0\xaf"}',
    "header of escapes": packed(
        json.dumps({ESCAPES: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), b"\0" * 4
    ),
    "header that is deep": packed(b'{"__metadata__":{"bank":"' + b"[" * 50_000 + b'"},"a":{"dtype":' + b"[" * 50_000),
    "header that is wide": packed(b'{"a":[' + b"{}," * 1_000_000 + b"{}]}"),
    "header of surrogates": packed(
        b'{"__metadata__":{"bank":"\\ud800","config":"\\ud800","format":"ntt-jax-weights"}}'
    ),
    "header of a claim": packed(b'{"prototypes":{"dtype":"F32","shape":[0,140737488355328],"data_offsets":[0,0]}}'),
    "header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "tensors": safetensors.numpy.save({"a": np.zeros(3, np.float32)}),
    "pickle": pickle.dumps({"a": 1}),
    "pickle that acts": b"cos\nsystem\n(S'echo pwned'\ntR.",
    "pickle of marks": b"\x80\x02" + b"(" * 300_000 + b".",
    "pickle of memos": b"\x80\x02" + b"".join(b"]r" + struct.pack("<I", i) for i in range(100_000)) + b".",
    "zip of two cases": zipped(),
    "jpeg of nothing": b"\xff\xd8\xff" + b"\xe1\0\2\xff" * 200_000,
    "png of chunks": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    + struct.pack(">IIB", 8, 8, 8)
    + b"\0" * 8
    + b"\0\0\0\0abCd\0\0\0\0" * 200_000,
    "gif of comments": b"GIF89a\x08\0\x08\0\0\0\0" + b"!\xfe\x01a\0" * 200_000,
    "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>",
    "list of names": (ESCAPES.encode("utf-8", "surrogatepass") + b"\n") * 1000,
}


def folder_of(tmp: Path) -> dict[str, Path]:
    """Things that are no files, or none that can be read."""
    made = {name: tmp / name for name in ("pipe", "folder", "socket", "no", "broken link", "device", "empty")}
    os.mkfifo(made["pipe"])
    made["folder"].mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(made["socket"]))
    made["broken link"].symlink_to(tmp / "nowhere")
    made["device"].symlink_to("/dev/zero")
    made["empty"].touch()
    made["link to pipe"] = tmp / "link to pipe"
    made["link to pipe"].symlink_to(made["pipe"])
    sparse = tmp / "sparse"
    with open(sparse, "wb") as file:
        file.write(b'{"images":[')
        file.truncate(600_000_000)
    return made | {"sparse": sparse, "name": tmp / "a\x1b[2J\n\u202e.json", "null": Path("a\0b")}


def refused(read: Callable[[Path], Any], path: Path) -> None:
    start = cpu_seconds()
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 1000 and message, message[:300]
    assert cpu_seconds() - start < 15


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_what_is_no_file(tmp_path, name):
    for poison, path in folder_of(tmp_path).items():
        if name == "inspect" and poison == "folder":
            continue  # a folder may be a model of Hugging Face's; this one is empty
        refused(READERS[name], path)


def test_options_refuse_what_is_no_file(tmp_path):
    for poison, path in folder_of(tmp_path).items():
        if poison not in ("empty", "sparse"):  # which the reader refuses
            refused(lambda path: check_file(path, "--annotations"), path)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_every_poison(tmp_path, name):
    path = tmp_path / "file"
    for poison, data in BYTES.items():
        path.write_bytes(data)
        if (name, poison) in HARMLESS:
            READERS[name](path)
        else:
            refused(READERS[name], path)


@pytest.mark.parametrize("name", FORGIVING)
def test_what_only_saves_time_is_as_if_it_were_not_there(tmp_path, name):
    path = tmp_path / "file.json"
    for data in (*BYTES.values(), b'{"model":{"a":5},"version":{},"key":[]}'):  # found by the fuzzer
        path.write_bytes(data)
        start = cpu_seconds()
        assert FORGIVING[name](path) is None
        assert cpu_seconds() - start < 15
    path.unlink()
    assert FORGIVING[name](path) is None
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with contextlib.suppress(InputError):
        assert FORGIVING[name](path) is None


def opening(file: Path) -> set[str]:
    """Names in `OPENING` that a module calls or hands on."""
    tree = ast.parse(file.read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return OPENING & (names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)})


def test_every_module_that_opens_files_has_a_reader_here():
    """A new module that reads files fails here until `tests/support/readers.py` has a reader of it."""
    files = [file for package in ("ntt_jax", "weight_port") for file in sorted((ROOT / package).rglob("*.py"))]
    found = {file.relative_to(ROOT).as_posix() for file in files if opening(file)}
    assert found - set(OTHERS) == set(MODULES), "add a reader to tests/support/readers.py, or remove it there"
    named = {name for names in MODULES.values() for name in names}
    assert named == set(READERS) | set(FORGIVING), "each reader stands for a module, each module has its readers"
