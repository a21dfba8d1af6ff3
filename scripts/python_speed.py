"""Seconds per photo from Python, as README shows it, and by `ntt-jax segment`: the small models, the same photos.

    python scripts/python_speed.py --photos 40 --repeats 3 --json out.json

Every process runs once with few photos and once with all; the difference divided by the photos between is the time of
one, without start and compilation. The processes take turns, after a first round that fills the compilation caches.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import add_json_option, circumstances, show

from ntt_jax.demo.demo import REFERENCE_SCENES, SMALL_DETECT, convert_checkpoints, make_benchmark

FEW = 5
FROM_PYTHON = """
import sys
import ntt_jax
ntt_jax.use_all_cores()
sam2, dinov2, memory, points, each, *photos = sys.argv[1:]
sam2, dinov2 = ntt_jax.load_sam2(sam2), ntt_jax.load_dinov2(dinov2)
segmenter = ntt_jax.Segmenter.load(memory, sam2, dinov2, points_per_side=int(points))
found = [segmenter.predict(photo) for photo in photos] if each == "each" else segmenter.predict(photos)
assert len(found) == len(photos)
"""


def prepare(folder: Path, photos: int) -> tuple[list[str], list[str]]:
    """Models and a memory in `folder`, and photos; returns the paths of models and memory, and those of the photos."""
    benchmark = make_benchmark(folder, 0, photos, REFERENCE_SCENES)
    sam2, dinov2 = convert_checkpoints(folder / "weights")
    files = [str(sam2), str(dinov2), str(folder / "memory.safetensors")]
    references, annotations = folder / "references.json", folder / "references" / "annotations.json"
    command = [sys.executable, "-m", "ntt_jax.cli"]
    sample = ["sample", f"--annotations={annotations}", "--classes=all", "--shots=5", f"--out={references}"]
    memory = ["memory", f"--dinov2={dinov2}", f"--annotations={annotations}", f"--images={annotations.parent}"]
    subprocess.run([*command, *sample], check=True, stdout=subprocess.DEVNULL)
    memory += [f"--references={references}", f"--out={files[2]}"]
    subprocess.run([*command, *memory], check=True, stdout=subprocess.DEVNULL)
    targets = benchmark.targets
    return files, [str(targets.image_path(folder / "targets", image_id)) for image_id in sorted(targets.images)]


def command(way: str, files: list[str], photos: list[str], folder: Path) -> list[str]:
    """The process of one way."""
    points = SMALL_DETECT.points_per_side
    if way != "ntt-jax segment":
        each = "each" if way == "predict, photo by photo" else "list"
        return [sys.executable, "-c", FROM_PYTHON, *files, str(points), each, *photos]
    options = [f"--{name}={file}" for name, file in zip(("sam2", "dinov2", "memory"), files, strict=True)]
    options += [f"--out={folder}", "--pictures=none", "--restart", f"--points-per-side={points}"]
    return [sys.executable, "-m", "ntt_jax.cli", "segment", *photos, *options]


WAYS = ("ntt-jax segment", "predict, photo by photo", "predict, a list")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    add_json_option(parser)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, photos = prepare(folder, args.photos)
        cache = str(folder / "cache")
        environment = os.environ | {
            "XDG_CACHE_HOME": cache,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def run(way: str, count: int) -> float:
            begun = time.perf_counter()
            called = command(way, files, photos[:count], folder / "found")
            subprocess.run(called, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            return time.perf_counter() - begun

        for way in WAYS:
            run(way, FEW)
        for _ in range(args.repeats):
            for way in WAYS:
                few = run(way, FEW)
                seconds[way].append((run(way, args.photos) - few) / (args.photos - FEW))
                starts[way].append(few - FEW * seconds[way][-1])
    median = {way: statistics.median(values) for way, values in seconds.items()}
    report = {
        **circumstances(),
        "seconds_per_photo": median,
        "all": seconds,
        "start": {way: statistics.median(values) for way, values in starts.items()},
        "python_over_command": median[WAYS[1]] / median[WAYS[0]],
    }
    show(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
