"""What `--ray local` costs: images per second of `ntt-jax evaluate` with one worker, against the plain command.

python scripts/ray_overhead.py --images 200

Made scenes and tiny models with random weights, one core each. The rate is that of the images after the first ten,
between the records as they reach the disk; start-up (until the first record) is shown by itself.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import cli_files

WARM_UP = 10


def timed(command: list[str], records: Path) -> tuple[float, float]:
    """Seconds until the first record, and images per second after the first ten."""
    started = time.monotonic()
    seen: list[float] = []
    process = subprocess.Popen([sys.executable, "-m", "ntt_jax.cli", *command], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        count = records.read_bytes().count(b"\n") if records.exists() else 0
        seen += [time.monotonic()] * (count - len(seen))
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:1])} ended with status {process.returncode}")
    return seen[0] - started, (len(seen) - WARM_UP) / (seen[-1] - seen[WARM_UP - 1])


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, metavar="N")
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        world = cli_files.make_world(Path(folder))
        scenes = cli_files.write_scenes(world.folder, count, 3)
        rates = {}
        for name, ray in (("plain", None), ("--ray local", "local")):
            out = Path(folder) / name.strip("-")
            options = {"annotations": scenes, "cores": 1, "devices": None, "points_per_side": 32, "ray": ray}
            first, rates[name] = timed(world.evaluate(out, **options), out / "finished.records")
            print(f"{name}: first image after {first:.1f} s, then {rates[name]:.2f} images per second", flush=True)
        print(f"ratio {rates['--ray local'] / rates['plain']:.3f}")


if __name__ == "__main__":
    main()
