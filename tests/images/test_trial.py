"""Headers read by another process: those of this one, and the name of the file that ends its reader."""

import os
from pathlib import Path

import cli_files
import numpy as np
import pytest
from PIL import Image

from ntt_jax.images import trial
from ntt_jax.images.reading import read_header
from ntt_jax.images.trial import Fatal, headers_apart
from ntt_jax.runs.segment_job import as_dataset
from weight_port.files import sha256


@pytest.fixture
def files(tmp_path):
    made = []
    for number in range(12):
        made.append(tmp_path / f"{number} \udcff.png" if number == 3 else tmp_path / f"{number}.jpg")
        Image.fromarray(np.full((8 + number, 9, 3), number, np.uint8)).save(made[-1])
    made[5].write_bytes(b"no image")
    made.append(tmp_path / "missing.png")
    return made


def test_headers_are_those_of_this_process(files):
    found = list(headers_apart(files, hashed=True))
    for file, one in zip(files, found, strict=True):
        if isinstance(one, str):
            assert file.name in ("5.jpg", "missing.png") and str(file) in one and not isinstance(one, Fatal)
        else:
            assert one == (sha256(file), read_header(file))
    assert list(headers_apart([])) == []


def test_a_file_that_ends_its_reader(files, monkeypatch):
    """It is named, and the files around it are read."""
    support = Path(cli_files.__file__).resolve().parent / "poison"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")]))
    poison = files[0].with_name("poison.png")
    poison.write_bytes(files[3].read_bytes())
    monkeypatch.setattr(trial, "AHEAD", 2)
    names = {file.name: file for file in [*files[:4], poison, *files[6:]]}
    dataset, ids, unread = as_dataset(names, "upright", apart=True)
    assert set(unread) == {"poison.png", "missing.png"} and len(ids) == len(names) - 2
    assert unread["poison.png"] == f"{poison}: a process that reads it ends with SIGSEGV"
    assert {image.height for image in dataset.images.values()} == {8, 9, 10, 11, 14, 15, 16, 17, 18, 19}
