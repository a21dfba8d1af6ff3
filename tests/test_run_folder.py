import json
import subprocess
import sys

import pytest

from ntt_jax.errors import InputError
from ntt_jax.run_folder import FolderLock, RunFolder, differences

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
        with RunFolder(lock, IDENTITY, restart=True) as run:
            assert len(run.records) == 0 and not run.results.exists() and not run.metrics.exists()


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
    (tmp_path / ".ntt-0123456789abcdef.tmp").write_text("half")
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
        "import sys, time, pathlib; from ntt_jax.run_folder import FolderLock\n"
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
