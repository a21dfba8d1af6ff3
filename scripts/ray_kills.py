"""What dies during a run on a Ray cluster leaves the bytes as they are: workers killed at random, the driver stopped.

    python scripts/ray_kills.py                 # all of it: some minutes
    python scripts/ray_kills.py --kills 0       # the driver alone

A small `evaluate` (made scenes, tiny models with random weights) with `--ray local`. First workers are killed by
SIGKILL at random moments, also while they load, again and again while the run goes on; then the driver is interrupted
as by Ctrl-C on a terminal (SIGINT to its whole process group), killed by SIGKILL, and started again. Each time
results.json and metrics.json are compared with those of a run without Ray, and afterwards no process of the cluster may
be left. Needs the `test` extra and a checkout.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


class Run:
    """One `evaluate` in a process group of its own, and what it says on stderr."""

    def __init__(self, command: list[str]):
        line = [sys.executable, "-m", "ntt_jax.cli", *command]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait(self) -> tuple[int, list[str]]:
        """Its exit status and the lines it said."""
        _, said = self.process.communicate()
        return self.process.returncode, said.strip().splitlines()

    def below(self) -> list[psutil.Process]:
        """The processes that it has started: those of its cluster."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def workers(self) -> list[int]:
        """Its workers, also those that have only begun to start."""
        return [process.pid for process in self.below() if is_worker(process)]


def is_worker(process: psutil.Process) -> bool:
    """Whether it runs models, or will."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "ray::GroupWorker" in line or "default_worker.py" in line


def left_over(processes: list[psutil.Process]) -> int:
    """How many are still there, when those that are ending have ended."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    return len(alive)


def finished(out: Path) -> int:
    """Images that have a record."""
    path = out / "finished.records"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def compare(out: Path, alone: Path) -> str:
    """Whether both files are those of the run without Ray."""
    same = all((out / name).read_bytes() == (alone / name).read_bytes() for name in ("results.json", "metrics.json"))
    return "the bytes of one process" if same else "OTHER BYTES"


def kill_workers(command: list[str], out: Path, alone: Path, kills: int, seed: int) -> bool:
    """Kill workers at random moments of a run, which is started again where it ended early."""
    moments, done, starts, loading = random.Random(seed), 0, 0, 0
    while True:
        run, starts = Run(command), starts + 1
        while run.process.poll() is None and done < kills:
            time.sleep(moments.uniform(0.0, 5.0))
            if living := run.workers():
                before = finished(out)
                os.kill(moments.choice(living), signal.SIGKILL)
                done, loading = done + 1, loading + (before == 0)
        status, said = run.wait()
        if status not in (0, 2):
            raise SystemExit("\n".join(said))
        skipped = json.loads((out / "metrics.json").read_text())["skipped"] if status == 0 else []
        if status == 0 and not skipped:
            break
        print(f"  start {starts} ended: {said[-1] if status else f'{len(skipped)} images left out'}", flush=True)
    found = compare(out, alone)
    print(f"{done} workers killed at random ({loading} before any image was finished), {starts} start(s): {found}")
    return found != "OTHER BYTES"


def stop_driver(command: list[str], out: Path, alone: Path, how: signal.Signals, images: int) -> bool:
    """Stop the driver in the middle, look what it leaves, and start it again."""
    run = Run(command)
    while finished(out) < images // 4:
        if run.process.poll() is not None:
            raise SystemExit("\n".join(run.wait()[1]))
        time.sleep(0.05)
    started_by_it = run.below()
    stopped = time.monotonic()
    if how == signal.SIGINT:
        os.killpg(run.process.pid, how)
    else:
        run.process.send_signal(how)
    status, said = run.wait()
    took, kept, left = time.monotonic() - stopped, finished(out), left_over(started_by_it)
    again, _ = Run(command).wait()
    found = compare(out, alone) if again == 0 else f"status {again}"
    print(f"{how.name} to the driver: status {status} after {took:.1f} s, {kept} of {images} images kept")
    print(f"  {len(started_by_it)} processes of its cluster before, {left} after")
    for line in said:
        print(f"  it said: {line}")
    print(f"  started again: {found}", flush=True)
    return found.startswith("the bytes") and not left


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="workers to kill (default: 20)")
    parser.add_argument("--images", type=int, default=240, metavar="N", help="of the run (default: 240)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    import cli_files

    with tempfile.TemporaryDirectory() as folder:
        world = cli_files.make_world(Path(folder))
        scenes = cli_files.write_scenes(world.folder, args.images, 3)
        options: dict[str, Any] = {"annotations": scenes, "devices": None, "cores": 1, "batch_size": 2}
        options["points_per_side"] = 16

        def command(out: Path, ray: str | None) -> list[str]:
            return world.evaluate(out, **options, ray=ray)

        alone = Path(folder) / "alone"
        status, said = Run(command(alone, None)).wait()
        if status:
            raise SystemExit("\n".join(said))
        well = True
        if args.kills:
            out = Path(folder) / "killed"
            well &= kill_workers(command(out, "local"), out, alone, args.kills, args.seed)
        for how in (signal.SIGINT, signal.SIGKILL):
            out = Path(folder) / how.name
            well &= stop_driver(command(out, "local"), out, alone, how, args.images)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
