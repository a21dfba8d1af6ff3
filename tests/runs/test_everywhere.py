"""What people import works where the system has no `fcntl` and no user ids, as on Windows."""

import subprocess
import sys

from cli_files import make_world

HIDDEN = """
import os, sys
sys.modules["fcntl"] = None  # an import of it fails
for name in ("getuid", "geteuid", "pread", "pwrite", "sched_getaffinity", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
"""


def test_import_segment_and_evaluate_without_fcntl(tmp_path_factory, tmp_path):
    world = make_world(tmp_path_factory.getbasetemp())
    images = sorted(world.images.glob("scene2_*"))[:1]
    evaluate = world.evaluate(tmp_path / "run")
    segment = ["segment", *map(str, images), *world.evaluate(tmp_path / "found", annotations=None, images=None)[1:]]
    code = f"""{HIDDEN}
import ntt_jax.segmenter
from ntt_jax.cli import main
# Locks are the one thing that such a system must bring itself; filelock has Windows' own.
import filelock
assert not filelock.unix_has_fcntl
import ntt_jax.runs.lock
ntt_jax.runs.lock.lock_descriptor = lambda handle, blocking: True
assert main({segment!r}) == 0
assert main({evaluate!r}) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists() and (tmp_path / "found" / "detections.json").exists()
