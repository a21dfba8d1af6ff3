"""`ntt-jax serve` or `app` as a process of its own, with the small models: what the scripts of the address share."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ntt_jax.demo.demo import SMALL_DETECT, Benchmark
from ntt_jax.segmenter.segmenter import Segmenter

TOKEN = "a-token-for-this-measurement"


def small_segmenter(benchmark: Benchmark, sam2: object, dinov2: object, references: int = 12) -> Segmenter:
    """A segmenter that was shown the first objects of the benchmark's reference scenes."""
    segmenter, dataset = Segmenter(sam2, dinov2, SMALL_DETECT), benchmark.references  # type: ignore[arg-type]
    for annotation in list(dataset.annotations.values())[:references]:
        image = dataset.read_image(benchmark.folder / "references", annotation.image_id)
        segmenter.add(dataset.categories[annotation.category_id].name, [(image, dataset.mask(annotation))])
    return segmenter


class Program:
    """The command, running until the block's end; `url` is where it answers."""

    def __init__(
        self, arguments: Sequence[str | Path], folder: Path, weights: Sequence[Path], points_per_side: int = 16
    ):
        (folder / "token").write_text(TOKEN)
        command = [sys.executable, "-m", "ntt_jax.cli", *map(str, arguments)]
        command += ["--sam2", str(weights[0]), "--dinov2", str(weights[1]), "--points-per-side", str(points_per_side)]
        command += ["--token-file", str(folder / "token"), "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"http://[\w.]+:\d+", self._process.stdout.readline())
        if found is None:
            raise SystemExit("the program did not start")
        self.url = found[0]

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def open_files(self) -> int:
        """How many files and sockets it holds open."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    @property
    def children(self) -> int:
        """How many processes it has started that have not been waited for."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(len((task / "children").read_text().split()) for task in tasks)

    def memory(self) -> tuple[int, int]:
        """MiB of memory: now, and the most so far; 0 of one that has ended."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        now, most = re.findall(r"(?:VmHWM|VmRSS):\s*(\d+)", status)[::-1] or ("0", "0")
        return int(now) // 1024, int(most) // 1024
