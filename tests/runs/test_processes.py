"""How several processes find each other and share work. The helper processes here are real ones."""

import socket
import threading
import time

import pytest

from ntt_jax.cli import main
from ntt_jax.errors import InputError
from ntt_jax.runs.processes import Processes, agree, join


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_processes_meet_and_hear_what_each_says():
    coordinator = f"127.0.0.1:{free_port()}"
    heard = {}

    def one(index):
        heard[index] = agree(Processes(index, 2, coordinator), {"index": index, "classes": ["ö" * index]}, timeout=120)

    other = threading.Thread(target=one, args=(1,))
    other.start()
    one(0)
    other.join()
    assert heard[0] == heard[1] == [{"index": 0, "classes": [""]}, {"index": 1, "classes": ["ö"]}]


def test_others_that_never_come():
    with pytest.raises(InputError, match=r"not all 2 processes came to 127.0.0.1:\d+ within 2 seconds") as caught:
        agree(Processes(1, 2, f"127.0.0.1:{free_port()}"), {}, timeout=2)
    assert "\n" not in str(caught.value)


def test_waiting_can_be_stopped():
    def stop():
        raise InputError("process 0 of 2 ended")

    started = time.monotonic()
    with pytest.raises(InputError, match="process 0 of 2 ended"):
        agree(Processes(1, 2, f"127.0.0.1:{free_port()}"), {}, watch=stop)
    assert time.monotonic() - started < 60


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(InputError, match="the port is taken") as caught:
            agree(Processes(0, 2, f"127.0.0.1:{taken.getsockname()[1]}"), {}, timeout=60)
    assert "\n" not in str(caught.value)


def test_a_cluster_that_is_none(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="could not meet at the cluster's coordinator: coordinator_address should be"):
        join("auto", None, None, timeout=60)


def test_one_process_meets_nobody():
    assert join(None, None, None) == Processes(0, 1)
    assert agree(Processes(), {"a": 1}) == [{"a": 1}]
    assert join("host:1", 1, 3) == Processes(1, 3, "host:1")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("group", [1, 4])
def test_shares_are_all_that_is_to_do_in_whole_groups(count, group):
    items, done = range(30), {3, 8, 9, 10, 11, 29}
    shares = Processes(0, count).shares(items, lambda item: item not in done, group)
    assert len(shares) == count
    together = [item for share in shares for item in share]
    assert together == sorted(set(together)) and set(together) >= set(items) - done
    for share in shares:  # whole groups, of which each has something to do
        assert {item // group for item in share if item in done} <= {
            item // group for item in share if item not in done
        }
        assert all(other in share for item in share for other in items if other // group == item // group)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2 * group
    assert Processes(0, 3).shares([1], bool, 1) == [[], [], [1]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--process-id", "0", "--num-processes", "2"], "need --coordinator"),
        (["--coordinator", "host:1", "--process-id", "2", "--num-processes", "2"], "the last is 1, found 2"),
        (["--coordinator", "host"], "expected HOST:PORT or 'auto', found 'host'"),
        (["--coordinator", "host:99999"], "expected HOST:PORT"),
        (["--coordinator", "host:1", "--process-id", "-1"], "whole number"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, options, words):
    file = tmp_path / "file"
    file.write_text("x")
    command = ["evaluate", "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    for name in ("--sam2", "--dinov2", "--memory", "--annotations"):
        command += [name, str(file)]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()
