import errno
import json
import subprocess
import sys

import pytest

from ntt_jax.errors import InputError
from ntt_jax.runs.folder import RunFolder, differences
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.processes import Processes

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
            assert len(run.records.own) == 0


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
            assert len(run.records.own) == 0 and not run.results.exists() and not run.metrics.exists()
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


def two(folder):
    return [FolderLock(folder, Processes(index, 2)) for index in range(2)]


def test_each_of_several_processes_has_its_place(tmp_path):
    first, second = two(tmp_path)
    with first, second:
        for index in range(2):
            with pytest.raises(InputError, match="in use by another ntt-jax"):
                FolderLock(tmp_path, Processes(index, 2))
        assert first.holder(1) == second.holder(0) and first.holder(5) is None
        with RunFolder(first, IDENTITY) as run, RunFolder(second, IDENTITY) as other:
            other.records.append([{"image_id": 9}])
            assert 9 not in run.records
            run.wait_for_others(first, [[], [9]])
            assert run.records.read(9) == {"image_id": 9}
    # One process goes on with what two have done.
    with FolderLock(tmp_path) as lock, RunFolder(lock, IDENTITY) as run:
        assert 9 in run.records
    with FolderLock(tmp_path) as lock, pytest.raises(InputError, match="memory"):
        RunFolder(lock, IDENTITY | {"memory": "c" * 64})


def test_a_process_that_ended_is_noticed(tmp_path):
    first, second = two(tmp_path)
    with first, RunFolder(first, IDENTITY) as run:
        first.watch()
        with RunFolder(second, IDENTITY) as other:
            other.records.append([{"image_id": 1}])
        second.__exit__()
        with pytest.raises(InputError, match="process 1 of 2 ended before its share was finished"):
            run.wait_for_others(first, [[], [1, 2]])
        with pytest.raises(InputError, match="process 1 of 2 ended"):
            first.watch()
        run.wait_for_others(first, [[], [1]])  # all that it had to do was done


def test_a_process_that_works_on_from_an_earlier_start_is_noticed(tmp_path):
    first, second = two(tmp_path)
    first.__exit__()
    with second, FolderLock(tmp_path) as lock, pytest.raises(InputError, match="in use by another ntt-jax"):
        RunFolder(lock, IDENTITY)


def test_restart_removes_the_records_of_all_processes(tmp_path):
    locks = [FolderLock(tmp_path, Processes(index, 3)) for index in range(3)]
    for number, lock in enumerate(locks):
        with RunFolder(lock, IDENTITY) as run:
            run.records.append([{"image_id": number}])
        lock.__exit__()
    other = IDENTITY | {"memory": "c" * 64}
    first, second = two(tmp_path)
    with first, second, RunFolder(first, other, restart=True), RunFolder(second, other, restart=True) as run:
        assert not any(number in run.records for number in range(3))


def test_processes_of_other_work_are_refused(tmp_path, monkeypatch):
    """Every process is told which one is off, and in what."""
    seen = []
    monkeypatch.setattr("ntt_jax.runs.folder.agree", lambda processes, mine, watch: [*seen, mine])
    first, second = two(tmp_path)
    with first, second, RunFolder(first, IDENTITY) as run, RunFolder(second, IDENTITY) as other:
        run.gather(first, [1, 2], 4)
        seen.append({"run": run.identity, "--batch-size": 4, "state of the run folder": "x"})
        with pytest.raises(InputError, match="process 1 was started with another state of the run folder"):
            other.gather(second, [1, 2], 4)
        with pytest.raises(InputError, match=r"--batch-size \(was 4, now 2\)"):
            other.gather(second, [1, 2], 2)


def test_a_folder_that_is_not_shared_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("ntt_jax.runs.folder.agree", lambda processes, mine, watch: [mine, mine])
    with FolderLock(tmp_path, Processes(0, 2)) as lock, RunFolder(lock, IDENTITY) as run:
        monkeypatch.setattr(RunFolder._check_shared, "__kwdefaults__", {"within": 0.3})
        with pytest.raises(InputError, match=r"finished-1\.records of process 1 is not to be seen here"):
            run.gather(lock, [], 1)


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(handle, what):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(InputError, match="offers no file locks"):
        FolderLock(tmp_path)
