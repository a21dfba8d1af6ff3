import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntt_jax.errors import InputError
from ntt_jax.runs import records
from ntt_jax.runs.records import RecordFile

RECORDS = [{"image_id": i, "detections": [f"é\n{i}"] * (i % 3)} for i in (7, 3, 0, 12)]


def write(path, entries):
    file = RecordFile(path)
    file.append(entries)
    file.close()


def test_records_come_back(tmp_path):
    path = tmp_path / "finished.records"
    write(path, RECORDS[:1])
    write(path, RECORDS[1:])
    file = RecordFile(path)
    assert len(file) == 4 and file.dropped == 0 and 5 not in file
    assert [file.read(r["image_id"]) for r in RECORDS] == RECORDS
    file.close()


def test_the_last_record_of_an_image_counts(tmp_path):
    path = tmp_path / "finished.records"
    write(path, [{"image_id": 1, "skipped": "no such file"}])
    write(path, [{"image_id": 1, "detections": []}])
    file = RecordFile(path)
    assert len(file) == 1 and file.read(1) == {"image_id": 1, "detections": []}
    file.close()


def test_a_torn_end_is_dropped_wherever_it_was_torn(tmp_path):
    """Cut after every byte: what is before the cut and whole survives, and appending goes on behind it."""
    path = tmp_path / "finished.records"
    write(path, RECORDS)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        file = RecordFile(path)
        survivors = sum(end <= cut for end in ends)
        assert len(file) == survivors
        assert file.dropped == cut - ([0, *ends][survivors])
        file.append(RECORDS[survivors:])
        file.close()
        assert path.read_bytes() == whole


@given(st.data())
def test_a_damaged_byte_is_never_read_as_a_result(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.records"
    path.unlink(missing_ok=True)
    write(path, RECORDS)
    whole = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    file = RecordFile(path)
    assert len(file) < len(RECORDS) and file.dropped > 0
    for record in RECORDS[: len(file)]:
        assert file.read(record["image_id"]) == record
    file.close()


@given(st.binary(max_size=300))
def test_any_file_can_be_opened(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.records"
    path.write_bytes(content)
    file = RecordFile(path)
    file.append(RECORDS)
    file.close()
    file = RecordFile(path)
    assert len(file) >= len(RECORDS) and file.dropped == 0
    file.close()


def test_zeroes_behind_a_power_failure_are_dropped(tmp_path):
    path = tmp_path / "finished.records"
    write(path, RECORDS)
    with open(path, "ab") as out:
        out.write(bytes(4096))
    file = RecordFile(path)
    assert len(file) == 4 and file.dropped == 4096
    file.close()


def test_a_record_that_changed_behind_our_back_is_an_error(tmp_path):
    path = tmp_path / "finished.records"
    write(path, RECORDS)
    file = RecordFile(path)
    path.write_bytes(path.read_bytes().replace(b"7", b"8"))
    with pytest.raises(InputError, match="has changed on the disk"):
        file.read(7)
    file.close()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "finished.records"
    write(path, RECORDS[:1])
    before = path.read_bytes()
    file = RecordFile(path)

    class FullAfter:
        """The file, on a disk with room for a few more bytes."""

        def __init__(self, inner, room):
            self.inner, self.room = inner, room

        def write(self, data):
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = self.inner.write(data[: self.room])
            self.room -= taken
            return taken

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(file, "_file", FullAfter(file._file, 30))
    with pytest.raises(OSError) as caught:
        file.append(RECORDS[1:])
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert len(file) == 1
    file.close()


def test_a_removed_file_is_noticed(tmp_path):
    path = tmp_path / "finished.records"
    file = RecordFile(path)
    path.unlink()
    with pytest.raises(InputError, match="was removed"):
        file.append(RECORDS)
    file.close()


def test_not_a_number_never_gets_in(tmp_path):
    path = tmp_path / "finished.records"
    file = RecordFile(path)
    with pytest.raises(ValueError, match="Out of range"):
        file.append([{"image_id": 1, "detections": [float("nan")]}])
    file.close()
    assert path.read_bytes() == b""


def test_a_line_is_readable_by_hand(tmp_path):
    path = tmp_path / "finished.records"
    write(path, [{"image_id": 1}])
    checksum, text = path.read_bytes().split(b" ", 1)
    assert len(checksum) == 8 and json.loads(text) == {"image_id": 1}
    assert records.MAX_RECORD > 2**20


def test_a_record_that_could_not_be_read_again_is_refused(tmp_path, monkeypatch):
    """The next start would take a line over the limit for a torn one, and drop it and all behind it."""
    path = tmp_path / "finished.records"
    write(path, RECORDS[:1])
    before = path.read_bytes()
    monkeypatch.setattr(records, "MAX_RECORD", 1000)
    file = RecordFile(path)
    fits = {"image_id": 1, "text": "x" * (1000 - records.LINE_BYTES - len('{"image_id":1,"text":""}'))}
    with pytest.raises(InputError, match=r"image_id 2: what was found takes 0\.0 MiB, over the limit"):
        file.append([fits, {**fits, "image_id": 2, "text": fits["text"] + "x"}])
    assert path.read_bytes() == before
    file.append([fits])
    file.append(RECORDS[1:])
    file.close()
    assert len(path.read_bytes().splitlines()[1]) == 999
    again = RecordFile(path)
    assert again.dropped == 0 and again.read(1) == fits and len(again) == 5
    again.close()
