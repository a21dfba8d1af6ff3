"""What Ray costs: one worker against the plain command, or how many images per second one driver can take.

    python scripts/ray_overhead.py --images 200    # `evaluate` with --ray local against without
    python scripts/ray_overhead.py --growth        # 1 to 64 workers that sleep 0.05 s for each image
    python scripts/ray_overhead.py --memory 1000000    # the driver's memory, with synthetic records
    python scripts/ray_overhead.py --written 100000    # the same while `segment` writes what was found

The first uses made scenes and tiny models with random weights, and one worker with all cores. Its rate is that of the
images after the first ten, between the records as they reach the disk; start-up (until the first record) is shown by
itself. The other has no models: its workers sleep as long as a GPU takes, and send records of ten detections back: what
is seen is the driver. Both need the `test` extra and a checkout.
"""

import argparse
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

WARM_UP = 10
SECONDS = 0.05


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


def overhead(count: int, rounds: int) -> None:
    """One worker under Ray against the plain command, in turn."""
    import cli_files

    with tempfile.TemporaryDirectory() as folder:
        world = cli_files.make_world(Path(folder))
        scenes = cli_files.write_scenes(world.folder, count, 3)
        for turn in range(rounds):
            rates = {}
            for name, ray in (("plain", None), ("--ray local", "local")):
                out = Path(folder) / f"{name.strip('-')} {turn}"
                options = {"annotations": scenes, "cores": os.cpu_count(), "devices": None}
                options |= {"points_per_side": 32, "ray": ray}
                first, rates[name] = timed(world.evaluate(out, **options), out / "finished.records")
                print(f"{name}: first image after {first:.1f} s, then {rates[name]:.2f} images per second", flush=True)
            print(f"ratio {rates['--ray local'] / rates['plain']:.3f}", flush=True)


class Sleeper:
    """A worker that sleeps in place of models, with the methods of `cluster_worker.GroupWorker`."""

    def __init__(self, answer: bytes, folder: str, count: int, seconds: float):
        self.answer, self.folder, self.count, self.seconds = answer, Path(folder), count, seconds

    def node(self) -> str:
        """Any name."""
        return "here"

    def begin(self) -> tuple[str, bytes]:
        """It can begin once all others can."""
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < self.count:
            time.sleep(0.5)
        return "", pickle.dumps(None)

    def do(self, group: bytes, apart: bool) -> bytes:
        """One image."""
        time.sleep(self.seconds)
        return self.answer


def growth(workers: Sequence[int], seconds: float, each: int) -> None:
    """Images per second at the driver against the ideal, with `each` images for every worker."""
    ray: Any = importlib.import_module("ray")
    from ntt_jax.runs.cluster import STORE_BYTES
    from ntt_jax.runs.cluster_pool import Pool

    detection = {"box": [10.25, 20.5, 30.75, 40.125], "score": 0.123456789, "label": 3, "counts": "x" * 200}
    answer = pickle.dumps(("records", [{"image_id": 1, "detections": [detection] * 10}]))
    for count in workers:
        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, object_store_memory=STORE_BYTES)
        actor = ray.remote(num_cpus=1, max_restarts=0, max_concurrency=1)(Sleeper)
        work: Any = None  # asked for only when a worker dies
        with tempfile.TemporaryDirectory() as folder:
            given = answer, folder, count, seconds
            groups = [[image] for image in range(count * each)]
            pool = Pool(ray, lambda a=actor, g=given: a.remote(*g), lambda: [], lambda nodes, c=count: c, work, groups)
            ends: list[float] = []
            cpu = time.process_time()
            for _ in pool.results():
                ends.append(time.monotonic())
                cpu = cpu if len(ends) > count else time.process_time()
        # Without the first of each worker and the last ones, when some have nothing more to do.
        middle = ends[count : -2 * count]
        rate, ideal = (len(middle) - 1) / (middle[-1] - middle[0]), count / seconds
        busy = (time.process_time() - cpu) / (ends[-1] - ends[count])
        print(
            f"{count:3d} workers: {rate:7.1f} images/s, {rate / ideal:5.1%} of {ideal:.0f}, driver busy {busy:.0%}",
            flush=True,
        )
        ray.shutdown()


def memory(count: int) -> None:
    """Peak memory of the driver's part alone: the images, their groups, and synthetic records at full rate."""
    import resource

    from ntt_jax.datasets.dataset import CocoImage
    from ntt_jax.runs.images import groups_to_do
    from ntt_jax.runs.records import RecordFile

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    images = [CocoImage(number, f"folder/{number:08}.jpg", 480, 640) for number in range(count)]
    groups = groups_to_do(images, lambda image: True, 1)
    listed = peak()
    detection = {"box": [10.25, 20.5, 30.75, 40.125], "score": 0.123456789, "label": 3, "counts": "x" * 200}
    with tempfile.TemporaryDirectory() as folder:
        file = RecordFile(Path(folder) / "finished.records")
        begun = time.monotonic()
        for start in range(0, count, 250):
            records = [
                {"image_id": image.id, "detections": [detection] * 10}
                for group in groups[start : start + 250]
                for image in group
            ]
            file.append(records)
        seconds, size = time.monotonic() - begun, file.path.stat().st_size
        file.close()
    print(
        f"{count} images: {before:.0f} MB at the start, {listed:.0f} MB with the images listed, {peak():.0f} MB with "
        f"a record of each ({size / 1e9:.1f} GB on the disk, {count / seconds:.0f} images/s)"
    )


def written(count: int) -> None:
    """Peak memory while `segment` writes detections.json and Parquet of photos with ten synthetic detections each."""
    import resource

    import numpy as np

    from ntt_jax.detection.on_host import HostDetections
    from ntt_jax.evaluation.results import image_record
    from ntt_jax.images.rle import encode_masks
    from ntt_jax.runs.folder import RunFolder
    from ntt_jax.runs.lock import FolderLock
    from ntt_jax.runs.observer import SILENT
    from ntt_jax.runs.segment_output import Found, Shown, write_output

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    masks = np.random.default_rng(0).random((10, 480, 640)) < np.linspace(0, 0.001, 10)[:, None, None]
    boxes, scores = np.tile(np.array([10, 20, 30, 40], np.float32), (10, 1)), np.linspace(1, 0.5, 10, dtype=np.float32)
    one = HostDetections(480, 640, boxes, scores, np.zeros(10, np.int32), tuple(encode_masks(masks)))
    record = image_record(0, one)
    bank: Any = argparse.Namespace(class_names=("bird",), category_ids=(1,))
    with tempfile.TemporaryDirectory() as folder, FolderLock(Path(folder)) as lock, RunFolder(lock, {}) as run:
        for start in range(0, count, 250):
            run.records.append([{**record, "image_id": number} for number in range(start, start + 250)])
        photos: dict[str, Any] = {f"folder/{n:08}.jpg": (Path(f"/photos/folder/{n:08}.jpg"), n) for n in range(count)}
        before, begun = peak(), time.monotonic()
        shown = Shown(np.zeros(1, np.float32), None, (), ("parquet",))
        write_output(Path(folder), Found(run, photos, {}, "upright"), bank, shown, SILENT, whole=False)
        size = (Path(folder) / "detections.json").stat().st_size
    print(
        f"{count} photos: {before:.0f} MB with photos and records listed, {peak():.0f} MB when all is written "
        f"(detections.json {size / 1e9:.1f} GB, {count / (time.monotonic() - begun):.0f} photos/s)"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, metavar="N")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="times that both are measured, in turn")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="that they sleep for each image")
    parser.add_argument("--each", type=int, default=300, metavar="N", help="images for each of them")
    parser.add_argument("--memory", type=int, metavar="N", help="the driver's memory for N images that have records")
    parser.add_argument("--written", type=int, metavar="N", help="its memory while N photos are written")
    args = parser.parse_args()
    if args.written:
        written(args.written)
    elif args.memory:
        memory(args.memory)
    elif args.growth:
        growth(args.workers, args.seconds, args.each)
    else:
        overhead(args.images, args.rounds)


if __name__ == "__main__":
    main()
