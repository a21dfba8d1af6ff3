"""A program of a user that imports Ray before this project, and whose cluster of one machine dies part by part.

python cluster_program.py REPORT        # writes what it met as JSON, and should print nothing
"""

import ray  # isort: skip  before what sets Ray's settings

import builtins
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
from cluster_work import Numbers

from ntt_jax import runs
from ntt_jax.errors import InputError
from ntt_jax.runs import cluster
from ntt_jax.runs.cluster import connected, map_groups

STORE = 80 * 2**20  # about the least that Ray takes


def processes(name: str) -> list[psutil.Process]:
    """Those that this program has started, by what their command line begins with."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if any(Path(part).name.startswith(name) for part in one.cmdline()[:3]):
                found.append(one)
    return found


def refused(work: Numbers) -> str:
    """What one group on one worker ends with."""
    try:
        return str(list(map_groups(work, [[1]], runs.Compute(ray="local"))))
    except InputError as error:
        return str(error)


def main(report: Path) -> None:
    """All of it on one cluster: to start one takes seconds."""
    said: dict[str, Any] = {}
    given = builtins.print
    cluster.STORE_BYTES = STORE
    with connected(ray, "local"):
        (raylet,) = processes("raylet")
        said["environment"] = {name: value for name, value in raylet.environ().items() if name.startswith("RAY_")}
        said["store"] = refused(Numbers(more=STORE))
        said["workers"] = [one.cmdline()[0] for kind in ("default_worker", "ray::") for one in processes(kind)]
        here, cluster.versions = cluster.versions, lambda: {"jax": "0.0.1"}
        said["versions"] = refused(Numbers())
        cluster.versions = here
        done, killed = 0, 0
        try:
            for records in map_groups(Numbers(seconds=0.05), [[n] for n in range(2000)], runs.Compute(ray="local")):
                done += len(records)
                workers = processes("ray::GroupWorker")
                if killed == 0 and done >= 3:
                    said["niceness"] = workers[0].nice() - psutil.Process().nice()
                    killed = workers[0].pid
                    os.kill(killed, signal.SIGKILL)
                elif killed > 0 and workers and killed not in [worker.pid for worker in workers]:
                    os.kill(raylet.pid, signal.SIGKILL)
                    killed = -1
        except InputError as error:
            said["raylet"] = str(error)
        said |= {"done": done, "print": builtins.print is given}
        report.write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
