"""`--ray local` in a program that imports Ray before this project does: what is its own, and what is said of deaths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cluster_work
import pytest

from ntt_jax import runs
from ntt_jax.errors import InputError
from ntt_jax.runs import cluster, cluster_worker

pytest.importorskip("ray")
pytest.importorskip("psutil")


def test_what_a_program_meets_whose_cluster_dies_part_by_part(tmp_path):
    """A store that is full with its disk, a worker with other versions, a worker and at last the raylet killed."""
    support, root = Path(cluster_work.__file__).parent, Path(runs.__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(root), str(support)]), "RAY_local_fs_capacity_threshold": "0.0"}
    line = [sys.executable, str(support / "cluster_program.py"), str(tmp_path / "report.json")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    # What Ray writes in C++ to stderr as its raylet goes is its own.
    assert (done.returncode, done.stdout) == (0, "") and "Traceback" not in done.stderr, done.stderr
    said = json.loads((tmp_path / "report.json").read_text())
    assert "Ray's store of results is full, and so is the disk behind it" in said["store"]
    assert "it has jax " in said["versions"] and "`pip install jax==0.0.1` makes them alike" in said["versions"]
    assert "(raylet) has ended; what is finished is saved" in said["raylet"]
    assert not any("\n" in said[name] for name in ("store", "versions", "raylet"))
    # After one group: no worker but the one asked for. It runs as the command does, and nobody hears of the run.
    assert said["workers"].count("ray::IDLE") == 0 and len(said["workers"]) <= 3, said["workers"]
    assert said["niceness"] == 0 and said["print"]
    assert said["environment"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert said["done"] >= 3


def test_versions_of_a_worker():
    here = cluster_worker.versions()
    cluster_worker.check_versions(here)
    with pytest.raises(InputError, match=f"it has jaxlib {here['jaxlib']}, .*`pip install jaxlib==0.4`"):
        cluster_worker.check_versions(here | {"jaxlib": "0.4"})


@pytest.mark.parametrize(
    ("address", "variable", "said"),
    [
        ("ray://me:secret@host:10001", None, r"'ray://host:10001' \(a client's address; start the command on a"),
        ("auto", "ray://host:1", r"'ray://host:1', which RAY_ADDRESS names \(a client's"),
        ("auto", "me:secret@127.0.0.1:1", r"'127.0.0.1:1', which RAY_ADDRESS names \(an address of Ray has no user"),
        ("nonsense", "127.0.0.1:1", r"'nonsense' \("),
        ("me:secret@nowhere", None, r"'nowhere' \(an address of Ray has no user"),
    ],
)
def test_addresses_that_are_none(monkeypatch, address, variable, said):
    """By RAY_ADDRESS too, which is what "auto" then means; a password is not shown."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(InputError, match="--ray: no cluster at " + said) as caught:
        next(cluster.map_groups(cluster_work.Numbers(), [[1]], runs.Compute(ray=address)))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
