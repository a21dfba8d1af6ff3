"""Downloads against a server that fails in every way: resumed, checked, and never used before they are whole."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hub_server import Fault

from ntt_jax.errors import InputError
from ntt_jax.hub import cache, fetch, names, resolve

DATA = np.random.default_rng(5).bytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
MODEL = "dinov2_vits14"


@pytest.fixture
def file(hub, tmp_path):
    """Address and target of a file on the server."""
    hub.meta["net.pt"] = DATA
    return f"{hub.meta_url}/net.pt", tmp_path / "got" / "net.pt"


def left(target):
    """What lies beside the target."""
    return sorted(path.name.removeprefix(target.name) for path in target.parent.iterdir() if path != target)


def test_a_file_arrives_once(hub, file):
    fetch.fetch(*file, size=len(DATA), sha256=DIGEST)
    fetch.fetch(*file)
    assert file[1].read_bytes() == DATA and hub.paths() == ["/meta/net.pt"] and not left(file[1])


@pytest.mark.parametrize("then", ["close", "stall"])
def test_a_broken_connection_is_resumed_by_the_same_call(hub, file, then):
    hub.faults["/meta/net.pt"] = [Fault(after=100_000, then=then), Fault(after=50_000, then=then)]
    fetch.fetch(*file, sha256=DIGEST)
    assert file[1].read_bytes() == DATA
    assert hub.ranges("/meta/net.pt") == [None, "bytes=100000-", "bytes=150000-"]


def test_a_connection_that_brings_nothing_is_given_up_and_what_is_there_stays(hub, file):
    hub.faults["/meta/net.pt"] = [Fault(after=100_000)] + [Fault(after=0)] * 3
    with pytest.raises(
        InputError, match=r"the connection broke.*; 0\.1 MB are kept, the same command goes on from there"
    ):
        fetch.fetch(*file)
    assert not file[1].exists()
    fetch.fetch(*file)
    assert file[1].read_bytes() == DATA and hub.ranges("/meta/net.pt")[-1] == "bytes=100000-"


def test_another_file_of_this_name_starts_over(hub, file):
    hub.faults["/meta/net.pt"] = [Fault(after=100_000)] + [Fault(after=0)] * 3
    with pytest.raises(InputError):
        fetch.fetch(*file)
    hub.meta["net.pt"] = DATA[::-1]
    fetch.fetch(*file)
    assert file[1].read_bytes() == DATA[::-1]


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_what_grows_is_no_link_to_a_file_of_the_users(hub, file, tmp_path, kind):
    precious, part = tmp_path / "precious", file[1].with_name("net.pt.part")
    precious.write_bytes(DATA[:1000])
    file[1].parent.mkdir()
    (os.symlink if kind == "symbolic" else os.link)(precious, part)
    hub.faults["/meta/net.pt"] = [Fault(after=100_000)]
    fetch.fetch(*file, sha256=DIGEST)  # without a note the link is no beginning: it is removed, not followed
    assert precious.read_bytes() == DATA[:1000] and file[1].read_bytes() == DATA
    file[1].unlink()
    hub.faults["/meta/net.pt"] = [Fault(after=100_000)] + [Fault(after=0)] * 6
    with pytest.raises(InputError, match="goes on from there"):
        fetch.fetch(*file)
    part.unlink()
    (os.symlink if kind == "symbolic" else os.link)(precious, part)
    with pytest.raises(InputError, match="symbolic link" if kind == "symbolic" else "2 names"):
        fetch.fetch(*file)
    assert precious.read_bytes() == DATA[:1000]


def test_a_whole_part_is_not_fetched_again(hub, file):
    hub.faults["/meta/net.pt"] = [Fault(after=100_000)] + [Fault(after=0)] * 3
    with pytest.raises(InputError):
        fetch.fetch(*file)
    file[1].with_name("net.pt.part").write_bytes(DATA)  # as after a kill between the last byte and the new name
    fetch.fetch(*file)
    assert file[1].read_bytes() == DATA and hub.ranges("/meta/net.pt")[-1] == f"bytes={len(DATA)}-"


def test_a_flipped_byte_is_thrown_away(hub, file):
    hub.faults["/meta/net.pt"] = [Fault(flip=True)]
    with pytest.raises(InputError, match=r"net\.pt is damaged: its sha256 is .*, expected .*thrown away, start again"):
        fetch.fetch(*file, sha256=DIGEST)
    assert not file[1].exists() and ".part" not in left(file[1])
    fetch.fetch(*file, sha256=DIGEST)
    assert file[1].read_bytes() == DATA


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=404), "nothing at this address"),
        (Fault(status=401), r"not permitted \(401\).*HF_TOKEN"),
        (Fault(status=403), r"not permitted \(403\).*accept its terms"),
        (Fault(status=407), "the proxy wants a login"),
        (Fault(status=451), "the server answers 451"),
        (Fault(status=302, headers={"Location": "/meta/net.pt"}), "request failed"),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_refusal_is_said_at_once(hub, file, fault, words):
    hub.faults["/meta/net.pt"] = [fault] * 99
    with pytest.raises(InputError, match=words):
        fetch.fetch(*file)
    assert hub.paths().count("/meta/net.pt") == (1 if fault.status != 302 else 21) and not file[1].exists()


def test_a_busy_server_is_asked_again(hub, file):
    hub.faults["/meta/net.pt"] = [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=500)]
    fetch.fetch(*file)
    hub.faults["/meta/other.pt"] = [Fault(status=500)] * 3
    with pytest.raises(InputError, match="the server answers 500"):
        fetch.fetch(f"{hub.meta_url}/other.pt", file[1].with_name("other.pt"))
    hub.faults["/meta/third.pt"] = [Fault(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(InputError, match=r"too many requests \(429\).*it asks to wait 3600 s"):
        fetch.fetch(f"{hub.meta_url}/third.pt", file[1].with_name("third.pt"))


@pytest.mark.parametrize(
    "said",
    [
        f"bytes 1{'0' * 5000}-2{'0' * 5000}/3{'0' * 5000}",  # more digits than Python reads
        f"bytes 100000-299999/3{'0' * 5000}",
        f"bytes 100000-{'9' * 30}/{'9' * 30}",
        "bytes 100000-100004/*",  # no part of a file whose length is not known
        "bytes 100001-299999/300000",
        "bytes",
    ],
    ids=["begin", "length", "30 digits", "unknown", "another part", "none"],
)
def test_a_part_that_does_not_say_its_place_is_not_taken(hub, file, said):
    """The attempt after it starts over, and what arrives is the file."""
    hub.faults["/meta/net.pt"] = [Fault(after=100_000), Fault(status=206, headers={"Content-Range": said})]
    fetch.fetch(*file)
    assert file[1].read_bytes() == DATA
    assert hub.ranges("/meta/net.pt") == [None, "bytes=100000-", None]


def test_more_than_its_size_is_not_written(hub, file):
    hub.unsized = True
    with pytest.raises(InputError, match=r"the server sends more than 0\.2 MB: another file"):
        fetch.fetch(*file, size=200_000)
    assert not file[1].exists() and ".part" not in left(file[1])
    fetch.fetch(*file, size=len(DATA), sha256=DIGEST)
    assert file[1].read_bytes() == DATA


def test_a_redirect_is_followed(hub, file):
    hub.faults["/meta/old.pt"] = [Fault(status=302, headers={"Location": "/meta/net.pt"})]
    fetch.fetch(f"{hub.meta_url}/old.pt", file[1], sha256=DIGEST)
    assert file[1].read_bytes() == DATA


def test_a_file_of_another_size_is_refused_before_it_comes(hub, file):
    with pytest.raises(InputError, match="the server has 300000 bytes, expected 5: another file"):
        fetch.fetch(*file, size=5)
    assert not file[1].exists()


def test_a_full_disk_is_said_before_it_is_full(hub, file, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(fetch.StorageError, match="the disk is full; free some space"):
        fetch.fetch(*file)


def test_a_proxy_that_is_not_there(hub, file, monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    huggingface_hub.close_session()
    try:
        with pytest.raises(InputError, match=r"no connection|the proxy refuses") as found:
            fetch.fetch(*file)
    finally:
        monkeypatch.delenv("HTTP_PROXY")
        huggingface_hub.close_session()
    assert "secret" not in str(found.value)


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A process that runs `code` with the caches and addresses of the test."""
    environment = {**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# A process started in the background by a shell ignores SIGINT, and so would the one started here.
FETCH = """
import pathlib, signal, sys
from ntt_jax.hub.fetch import fetch
signal.signal(signal.SIGINT, signal.default_int_handler)
fetch(sys.argv[1], pathlib.Path(sys.argv[2]))
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_has_not_worked_in_vain(hub, file, sign):
    hub.faults["/meta/net.pt"] = [Fault(after=200_000, then="stall")]
    process = start(FETCH, *file)
    part = file[1].with_name("net.pt.part")
    wait_for(lambda: hub.stalled.is_set() and part.exists() and part.stat().st_size == 200_000)
    process.send_signal(sign)
    _, stderr = process.communicate()
    assert process.returncode != 0 and not file[1].exists()
    assert ("the same command goes on from there" in stderr) == (sign == signal.SIGINT)
    fetch.fetch(*file, sha256=DIGEST)
    assert file[1].read_bytes() == DATA and hub.ranges("/meta/net.pt") == [None, "bytes=200000-"]


def test_a_killed_download_of_a_name_goes_on_too(hub, tmp_path):
    """From the Hub, whose own client starts again from the first byte."""
    path = hub.cdn_path("facebook/dinov2-small", "model.safetensors")
    hub.faults[path] = [Fault(after=30_000, then="stall")]
    process = start(f"from ntt_jax.hub import resolve; resolve({MODEL!r})")
    wait_for(lambda: [part.stat().st_size for part in (tmp_path / "hf").rglob("*.part")] == [30_000])
    process.kill()
    process.communicate()
    assert cache.named(MODEL) is None and resolve(MODEL).exists()
    assert hub.ranges(path) == [None, "bytes=30000-"]


def test_an_interrupted_command_says_that_it_goes_on(hub, tmp_path):
    path = hub.cdn_path("facebook/sam2.1-hiera-tiny", "model.safetensors")
    hub.faults[path] = [Fault(after=30_000, then="stall")]
    boxes = tmp_path / "boxes.json"
    boxes.write_text("{}")
    code = "import sys; from ntt_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [
        "masks",
        "--sam2",
        "sam2.1_hiera_tiny",
        "--boxes",
        boxes,
        "--images",
        tmp_path,
        "--out",
        tmp_path / "m.json",
    ]
    process = start(code, *line)
    wait_for(lambda: [part.stat().st_size for part in (tmp_path / "hf").rglob("*.part")] == [30_000])
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate()[1]
    assert process.returncode == 130
    assert "interrupted; what has arrived of the weights is kept; the same command goes on from there" in stderr


def test_two_processes_fetch_one_file_once(hub):
    code = f"from ntt_jax.hub import resolve; print(resolve({MODEL!r}))"
    # What the tests put in the place of the published model, there too:
    tiny = names.PUBLISHED[MODEL]
    code = f"from ntt_jax.hub import names; names.PUBLISHED[{MODEL!r}] = names.{tiny!r}; {code}"
    path = hub.cdn_path("facebook/dinov2-small", "model.safetensors")
    both = [start(code), start(code)]
    output = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert output[0][0] == output[1][0] != "" and hub.paths().count(path) == 1
    assert len(cache.entries()) == 1 and sum("converted" in stderr for _, stderr in output) == 1


def wait_for(condition, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
