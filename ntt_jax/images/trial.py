"""Reading an image file in a process of its own, only to see whether the process survives it."""

import json
import signal
import subprocess
import sys

from ntt_jax.files import PathLike

SECONDS = 60
"""How long the process may take, its start among it."""

_READ = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ntt_jax.errors import InputError
from ntt_jax.images.reading import read_image
try:
    read_image(sys.argv[2])
except InputError:
    pass
"""


def fatal(path: PathLike) -> str | None:
    """How a process that reads the file ends, in words, if it ends without having read or refused it."""
    command = [sys.executable, "-c", _READ, json.dumps(sys.path), str(path)]
    nothing = subprocess.DEVNULL
    try:
        status = subprocess.run(command, timeout=SECONDS, stdin=nothing, stdout=nothing, stderr=nothing).returncode
    except subprocess.TimeoutExpired:
        return f"has not read it after {SECONDS} s"
    if status == 0:
        return None
    try:
        return f"ends with {signal.Signals(-status).name}"
    except ValueError:
        return f"ends with status {status}"
