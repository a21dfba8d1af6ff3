import errno
import json
import os
import subprocess
import sys

import pytest
from filelock import FileLock

from ntt_jax.errors import InputError
from ntt_jax.runs.folder import RunFolder, differences
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.records import RecordFile

IDENTITY = {"sam2": "a" * 64, "memory": "b" * 64, "classes": {"1": "cat"}, "configuration": {"points_per_side": 32}}


def one_finished(lock):
    with RunFolder(lock, IDENTITY) as run:
        run.records.append([{"image_id": 5}])


def test_a_run_is_found_again(tmp_path):
    with FolderLock(tmp_path) as lock:
        with RunFolder(lock, IDENTITY) as run:
            run.records.append([{"image_id": 5}])
            run.note_start({"device": "cpu"})
        with RunFolder(lock, IDENTITY) as run:
            assert 5 in run.records and run.starts == [{"device": "cpu"}]


def test_another_run_is_refused_with_what_changed(tmp_path):
    other = IDENTITY | {"memory": "c" * 64, "configuration": {"points_per_side": 16}}
    with FolderLock(tmp_path) as lock:
        one_finished(lock)
        before = (tmp_path / "run.json").read_bytes()
        with pytest.raises(InputError) as caught:
            RunFolder(lock, other)
        message = str(caught.value)
        assert "memory (was bbbbbbbbbbbb..., now cccccccccccc...)" in message
        assert "configuration: points_per_side (was 32, now 16)" in message
        assert "sam2" not in message and "--restart" in message and "\n" not in message
        assert (tmp_path / "run.json").read_bytes() == before
        with RunFolder(lock, other, restart=True) as run:
            assert len(run.records) == 0


def test_a_run_without_a_finished_image_makes_way(tmp_path):
    with FolderLock(tmp_path) as lock:
        RunFolder(lock, IDENTITY).records.close()
        with RunFolder(lock, IDENTITY | {"memory": "c" * 64}) as run:
            assert run.identity["memory"] == "c" * 64


def test_restart_removes_the_old_outcome(tmp_path):
    with FolderLock(tmp_path) as lock:
        with RunFolder(lock, IDENTITY) as run:
            run.records.append([{"image_id": 5}])
            run.results.write_text("[]")
            run.metrics.write_text("{}")
            (tmp_path / "report.html").write_text("old")
        with RunFolder(lock, IDENTITY, restart=True) as run:
            assert len(run.records) == 0 and not run.results.exists() and not run.metrics.exists()
            assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2, "identity": {}, "starts": []}'])
def test_a_damaged_description_is_refused(tmp_path, text):
    with FolderLock(tmp_path) as lock:
        one_finished(lock)
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match="--restart"):
            RunFolder(lock, IDENTITY)


def test_records_without_description_are_refused(tmp_path):
    with FolderLock(tmp_path) as lock:
        one_finished(lock)
        (tmp_path / "run.json").unlink()
        with pytest.raises(InputError, match=r"no run\.json"):
            RunFolder(lock, IDENTITY)


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    (tmp_path / ".results.json.0123456789abcdef.tmp").write_text("half")
    with FolderLock(tmp_path) as lock:
        RunFolder(lock, IDENTITY).records.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["finished.records", "lock", "run.json"]


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    with FolderLock(tmp_path), pytest.raises(InputError, match="in use by another ntt-jax"):
        FolderLock(tmp_path)
    with FolderLock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time, pathlib; from ntt_jax.runs.lock import FolderLock\n"
        "lock = FolderLock(pathlib.Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match=f"process {other.pid} on "):
            FolderLock(tmp_path)
        other.kill()
        other.wait()
        with FolderLock(tmp_path):
            pass


def test_identity_is_kept_as_json(tmp_path):
    with FolderLock(tmp_path) as lock, RunFolder(lock, {"pairs": ((1, 2),)}) as run:
        assert run.identity == {"pairs": [[1, 2]]}
        assert json.loads((tmp_path / "run.json").read_text())["identity"] == run.identity
        RunFolder(lock, {"pairs": ((1, 2),)}).records.close()


def test_differences_name_what_was_added_and_removed():
    assert differences({"a": 1}, {"b": [2]}) == "a (was 1, now null), b (was null, now [2])"
    assert differences(IDENTITY, dict(IDENTITY)) == ""


def of_an_earlier_version(folder):
    """A run that two processes of an earlier version left half finished: each had a file of records and a lock."""
    with FolderLock(folder) as lock, RunFolder(lock, IDENTITY) as run:
        run.records.append([{"image_id": 5}, {"image_id": 6, "skipped": "gone"}])
    second = RecordFile(folder / "finished-1.records")
    second.append([{"image_id": 9}, {"image_id": 6}, {"image_id": 5, "skipped": "gone"}])
    second.close()
    (folder / "lock-1").write_text("process 1 on somewhere\n")


def test_a_run_of_several_processes_of_an_earlier_version_goes_on(tmp_path):
    of_an_earlier_version(tmp_path)
    for _ in range(2):
        with FolderLock(tmp_path) as lock, RunFolder(lock, IDENTITY) as run:
            assert [run.records.read(id) for id in (5, 6, 9)] == [{"image_id": id} for id in (5, 6, 9)]
        assert not (tmp_path / "finished-1.records").exists()


def test_another_run_leaves_those_records_alone(tmp_path):
    of_an_earlier_version(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("finished*")}
    with FolderLock(tmp_path) as lock, pytest.raises(InputError, match="memory"):
        RunFolder(lock, IDENTITY | {"memory": "c" * 64})
    assert {path.name: path.read_bytes() for path in tmp_path.glob("finished*")} == before
    with FolderLock(tmp_path) as lock, RunFolder(lock, IDENTITY | {"memory": "c" * 64}, restart=True) as run:
        assert len(run.records) == 0 and not list(tmp_path.glob("finished-*"))


def test_a_process_of_an_earlier_version_that_still_works_is_noticed(tmp_path):
    of_an_earlier_version(tmp_path)
    with FileLock(tmp_path / "lock-1"), pytest.raises(InputError, match="in use by another ntt-jax"):
        FolderLock(tmp_path)


def test_a_lock_that_is_a_link_or_another_file_is_refused(tmp_path):
    other = tmp_path / "other"
    other.write_text("somebody's own")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").symlink_to(other)
    with pytest.raises(InputError, match="symbolic link"):
        FolderLock(folder)
    (folder / "lock").unlink()
    other.rename(folder / "lock")
    with pytest.raises(InputError, match="not of this program"):
        FolderLock(folder)
    assert (folder / "lock").read_text() == "somebody's own"


def test_a_refused_run_changes_nothing(tmp_path):
    with FolderLock(tmp_path):
        before = (tmp_path / "lock").read_bytes()
        for _ in range(2):
            with pytest.raises(InputError, match=f"process {os.getpid()} on "):
                FolderLock(tmp_path)
        assert (tmp_path / "lock").read_bytes() == before


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(handle, what):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)  # what the library asks the system
    with pytest.raises(InputError, match="offers no file locks"):
        FolderLock(tmp_path)
