"""What is larger than memory should hold is read from a copy that nobody can cut."""

import os
import tempfile

import numpy as np
import pytest

from ntt_jax.errors import InputError
from weight_port.files import InputFile


def test_a_file_that_is_cut_while_a_part_of_it_is_mapped(tmp_path):
    """A map of the file itself would end the process (SIGBUS) at the last line."""
    path, content = tmp_path / "a", np.random.default_rng(0).integers(0, 256, 3 * 2**20, np.uint8)
    path.write_bytes(content.tobytes())
    mapped = InputFile(path).mapped(5, content.size - 5)
    assert isinstance(mapped.base, np.memmap) and not mapped.flags.writeable
    os.truncate(path, 10)
    np.testing.assert_array_equal(mapped, content[5:])
    with pytest.raises(InputError, match="was cut while it was read"):
        InputFile(path).mapped(5, content.size)


def test_no_room_for_the_copy(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    with pytest.raises(InputError, match=r"1,000 bytes of it need room in .*no such folder \(TMPDIR\)"):
        InputFile(path).mapped(0, 1000)
