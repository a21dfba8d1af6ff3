"""One list of poisons for every reader: each is an `InputError` of one bounded, printable line, at once."""

import json
import os
import pickle
import socket
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from ntt_jax.cli.options import check_file
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.evaluation.results import read_results
from ntt_jax.files import parse_json, read_bytes
from ntt_jax.images.mask_files import read_mask
from ntt_jax.images.reading import open_image_size, read_image, read_index_image
from ntt_jax.memory.bank import load_memory
from ntt_jax.references.prompted import load_prompted
from ntt_jax.references.sampling import load_references
from ntt_jax.runs.inputs import read_references
from ntt_jax.upstream.memory import read_upstream_memory
from ntt_jax.upstream.references import import_upstream_references
from weight_port.port import inspect, read_converted

DATA = CocoDataset("data.json", "", {}, {}, {}, {})
READERS: dict[str, Callable[[Path], Any]] = {
    "load_dataset": load_dataset,
    "load_coco": load_coco,
    "load_memory": load_memory,
    "load_references": load_references,
    "load_prompted": load_prompted,
    "load references or pickle": lambda path: read_references(path, DATA),
    "import_upstream_references": lambda path: import_upstream_references(path, DATA),
    "read_upstream_memory": read_upstream_memory,
    "read_results": lambda path: read_results(path, DATA, []),
    "read_image": read_image,
    "read_index_image": read_index_image,
    "read_mask": read_mask,
    "open_image_size": open_image_size,
    "read_converted": read_converted,
    "inspect": inspect,
    "json": lambda path: parse_json(read_bytes(path, max_bytes=2**30, what="file"), path, what="file"),
}
HARMLESS = {("json", name) for name in ("infinity", "surrogates", "control", "utf16", "long key", "list")}
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
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 1000 and message, message[:300]
    assert time.monotonic() - start < 5


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
