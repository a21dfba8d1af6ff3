"""What dies during a run on a Ray cluster leaves the bytes as they are: workers killed at random, the driver stopped.

    python scripts/ray_kills.py                 # all of it: 10 to 20 minutes
    python scripts/ray_kills.py --kills 0       # the driver alone

A small `evaluate` (made scenes, tiny models with random weights) with `--ray local`. First workers are killed by
SIGKILL at random moments, also while they load, again and again while the run goes on, and in another run when it is
done; then the driver is interrupted as by Ctrl-C on a terminal (SIGINT to its whole process group), once and three
times in a row, killed by SIGKILL, loses its raylet, has no room on its disk, and is started again. Each time
results.json and metrics.json are compared with those of a run without Ray, and afterwards no process of the cluster may
be left. The last line says whether all went well; it comes within `--limit` seconds, whatever hangs. Needs the `test`
extra and a checkout.
"""

import argparse
import atexit
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


class Run:
    """One `evaluate` in a process group of its own, and what it says on stderr (in a file: nobody need read a pipe)."""

    deadline = 0.0
    """When, by `time.monotonic`, whatever still runs has hung."""

    def __init__(self, command: list[str]):
        line = [sys.executable, "-m", "ntt_jax.cli", *command]
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 as long as this
        self.process = subprocess.Popen(line, stderr=self._said, start_new_session=True)
        self._seen: dict[int, psutil.Process] = {}
        atexit.register(self.end)  # also when this script is interrupted

    def end(self) -> None:
        """End it, and all that it started."""
        self.process.kill()
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def wait(self) -> tuple[int, list[str]]:
        """Its exit status and the lines it said."""
        while self.running():
            time.sleep(0.1)
        return self.process.returncode, self.said()

    def said(self) -> list[str]:
        """The lines it has said so far."""
        self._said.seek(0)
        return self._said.read().strip().splitlines()

    def running(self) -> bool:
        """Whether it still runs. Ends the script, and all that it started, if that is too long."""
        if self.process.poll() is not None:
            return False
        self.below()
        if time.monotonic() > Run.deadline:
            self.end()
            print(*self.said()[-5:], sep="\n")
            raise SystemExit("NOT ALL WELL: a command still ran at the limit")
        return True

    def below(self) -> list[psutil.Process]:
        """The processes that it has started: those of its cluster."""
        try:
            living = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []
        self._seen |= {process.pid: process for process in living}
        return living

    def workers(self) -> list[int]:
        """Its workers, also those that have only begun to start."""
        return [process.pid for process in self.below() if is_worker(process)]

    def left_over(self) -> tuple[list[str], float]:
        """Which of its processes are still there, when those that are ending have ended, and how long that took."""
        ended = time.monotonic()
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=240)
        names = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                names.append(next((Path(part).name for part in line if part.endswith((".py", "_server"))), line[0]))
        return names, time.monotonic() - ended


def is_worker(process: psutil.Process) -> bool:
    """Whether it runs models, or will. (The process that starts workers has the name of their file further back.)"""
    try:
        first = process.cmdline()[:3]
    except psutil.Error:
        return False
    return any(part.startswith("ray::GroupWorker") or part.endswith("default_worker.py") for part in first)


def finished(out: Path) -> int:
    """Images that have a record."""
    path = out / "finished.records"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def compare(out: Path, alone: Path) -> str:
    """Whether both files are those of the run without Ray."""
    same = all((out / name).read_bytes() == (alone / name).read_bytes() for name in ("results.json", "metrics.json"))
    return "the bytes of one process" if same else "OTHER BYTES"


def kill_workers(commands: Iterator[tuple[list[str], Path]], alone: Path, kills: int, seed: int) -> bool:
    """Kill workers at random moments of a run, which is started again where it ended early; then of another run."""
    moments, done, starts, loading, runs, well = random.Random(seed), 0, 0, 0, 0, True
    while done < kills:
        command, out = next(commands)
        while True:
            run, starts, here = Run(command), starts + 1, done
            while run.running() and done < kills:
                if not run.workers():  # none has been asked for yet
                    time.sleep(0.1)
                    continue
                time.sleep(moments.uniform(0.0, 12.0))
                before = finished(out)
                if living := run.workers():
                    with contextlib.suppress(ProcessLookupError):  # it has ended by itself a moment ago
                        os.kill(moments.choice(living), signal.SIGKILL)
                        done, loading = done + 1, loading + (before == 0)
            status, said = run.wait()
            left, _ = run.left_over()
            skipped = json.loads((out / "metrics.json").read_text())["skipped"] if status == 0 else []
            end = said[-1] if said else "nothing said"
            if status == 0:
                end = f"{len(skipped)} images left out" if skipped else "all images finished"
            print(
                f"  start {starts}: {done - here} killed, status {status}, {len(left)} processes left: {end}",
                flush=True,
            )
            if status not in (0, 2) or left:
                print(*left, *said[-20:], sep="\n")
                return False
            if status == 0 and not skipped:
                break
        runs, found = runs + 1, compare(out, alone)
        print(f"  run {runs}: {found}", flush=True)
        well &= found != "OTHER BYTES"
    print(f"{done} workers killed at random ({loading} before any image was finished), {starts} starts, {runs} run(s)")
    return well


def stop_driver(command: list[str], out: Path, alone: Path, how: str, images: int) -> bool:
    """Stop the driver in the middle by one of `WAYS`, look what it leaves, and start it again."""
    run = Run(command)
    while finished(out) < images // 4:
        if not run.running():
            print(*run.said()[-20:], sep="\n")
            return False
        time.sleep(0.05)
    below = run.below()
    stopped = time.monotonic()
    WAYS[how](run, out, below)
    status, said = run.wait()
    took, kept = time.monotonic() - stopped, finished(out)
    left, seconds = run.left_over()
    again, more = Run(command).wait()
    found = compare(out, alone) if again == 0 else f"status {again}: {more[-1] if more else 'nothing said'}"
    print(f"{how}: status {status} after {took:.1f} s, {kept} of {images} images kept")
    print(f"  {len(below)} processes of its cluster before, {len(left)} after {seconds:.1f} s {' '.join(left)}")
    for line in said[-8:]:
        print(f"  it said: {line}")
    print(f"  started again: {found}", flush=True)
    return found.startswith("the bytes") and not left and status == STATUS[how]


def interrupt(run: Run, times: int) -> None:
    """Ctrl-C on a terminal, so many times."""
    for _ in range(times):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(0.3 if times > 1 else 0.0)


def kill_raylet(below: list[psutil.Process]) -> None:
    """Ray's own process on the machine of the command."""
    (raylet,) = [process for process in below if process.cmdline()[:1] and process.cmdline()[0].endswith("/raylet")]
    raylet.kill()


def fill_disk(run: Run, out: Path) -> None:
    """No file of the driver may grow beyond what its records have by now: as with a full disk, a write fails. (Those of
    Ray, which has begun, may.)"""
    size = (out / "finished.records").stat().st_size
    psutil.Process(run.process.pid).rlimit(psutil.RLIMIT_FSIZE, (size, size))


WAYS: dict[str, Callable[[Run, Path, list[psutil.Process]], None]] = {
    "Ctrl-C": lambda run, out, below: interrupt(run, 1),
    "Ctrl-C three times": lambda run, out, below: interrupt(run, 3),
    "SIGKILL to the driver": lambda run, out, below: run.process.kill(),
    "SIGKILL to the raylet": lambda run, out, below: kill_raylet(below),
    "the disk of the driver is full": lambda run, out, below: fill_disk(run, out),
}
STATUS = dict(zip(WAYS, (130, 130, -signal.SIGKILL, 2, 2), strict=True))


def main() -> None:
    """Do all of it."""
    # A shell in the background ignores it, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="workers to kill (default: 20)")
    parser.add_argument("--images", type=int, default=240, metavar="N", help="of a run (default: 240)")
    parser.add_argument("--limit", type=float, default=2400, metavar="S", help="seconds for all of it (default: 2400)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    import cli_files

    Run.deadline = time.monotonic() + args.limit
    with tempfile.TemporaryDirectory() as folder:
        world = cli_files.make_world(Path(folder))
        scenes = cli_files.write_scenes(world.folder, args.images, 3)
        options: dict[str, Any] = {"annotations": scenes, "devices": None, "cores": 1, "batch_size": 2}
        options["points_per_side"] = 16

        def command(out: Path, ray: str | None) -> tuple[list[str], Path]:
            return world.evaluate(out, **options, ray=ray), out

        alone = Path(folder) / "alone"
        status, said = Run(command(alone, None)[0]).wait()
        if status:
            raise SystemExit("\n".join(said))
        killed = (command(Path(folder) / f"killed {number}", "local") for number in itertools.count())
        well = not args.kills or kill_workers(killed, alone, args.kills, args.seed)
        for how in WAYS:
            well &= stop_driver(*command(Path(folder) / how, "local"), alone, how, args.images)
    print("ALL WELL" if well else "NOT ALL WELL", flush=True)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
