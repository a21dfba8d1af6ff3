"""What `ntt-jax serve` costs: images a second through the address against the plain `Predictor`.

    python scripts/serve_load.py                        # 50 requests at once, then 200 clients for a minute
    python scripts/serve_load.py --clients 50 --seconds 20

The small models and made scenes of the demo. The server is a process of its own, as people start it; the `Predictor`
runs here before and after it, on the same images and cores, decoded already. Prints the ratio, the time to an answer,
how many requests were refused with 429 and sent again, and the server's memory. Ends with 1 if a request is lost: if
it is answered with anything else, or with other detections than the `Predictor`'s.
"""

import argparse
import asyncio
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from small_server import TOKEN, Program, small_segmenter

import ntt_jax
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.demo.demo import SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import load_memory

IMAGES = 24


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burst", type=int, default=50, help="requests that are sent at once (default: 50)")
    parser.add_argument("--clients", type=int, default=200, help="that ask one request after the other (default: 200)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of these clients (default: 60)")
    args = parser.parse_args()
    ntt_jax.use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Prepare models, memory and images, and run all parts in turn."""
    benchmark = make_benchmark(folder, 0, IMAGES)
    sam2, dinov2 = convert_checkpoints(folder / "weights")
    models, memory = (load_sam2(sam2), load_dinov2(dinov2)), folder / "memory.safetensors"
    small_segmenter(benchmark, *models).save(memory)
    images = list(benchmark.target_images())
    predictor = Predictor(*models, load_memory(memory).memory.prototypes, SMALL_DETECT)
    found = list(predictor(images))  # compiles, too
    expected = [sorted(one for one in np.asarray(o.scores).tolist() if one >= DEFAULT_THRESHOLD) for o in found]
    before = rate(predictor, images)
    with Program(["serve", "--memory", memory], folder, (sam2, dinov2)) as program:
        load = Load(program.url, [png(image) for image in images], expected)
        asyncio.run(load.burst(4))  # compiles
        print("server with its programs compiled: memory {} MiB, the most so far {}".format(*program.memory()))
        burst = asyncio.run(load.burst(args.burst))
        tell(f"{args.burst} requests at once", burst, before)
        print("  memory {} MiB, the most so far {}".format(*program.memory()))
        clients = asyncio.run(load.clients(args.clients, args.seconds))
        print("  memory {} MiB, the most so far {}".format(*program.memory()))
    after = rate(predictor, images)
    tell(f"{args.clients} clients for {args.seconds:g} s", clients, statistics.mean([before, after]))
    print(f"the Predictor: {before:.2f} images/s before, {after:.2f} after")


def rate(predictor: Predictor, images: list[np.ndarray]) -> float:
    """Images a second without the address."""
    began = time.perf_counter()
    count = sum(1 for _ in predictor(images * 2))
    return count / (time.perf_counter() - began)


def png(image: np.ndarray) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def tell(what: str, found: "Answers", plain: float) -> None:
    """Print one part's numbers."""
    rate, late = len(found.times) / found.seconds, sorted(found.times)
    print(
        f"{what}: {len(late)} answered, {found.refused} times 429, 0 lost; {rate:.2f} images/s, "
        f"ratio {rate / plain:.2f}; an answer after {statistics.median(late):.2f} s, "
        f"95 %: {late[int(0.95 * len(late))]:.2f} s"
    )


class Answers:
    """Seconds to each answer, refusals, and the time it all took."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.refused = 0
        self.seconds = 0.0


class Load:
    """Requests to a running server."""

    def __init__(self, url: str, files: list[bytes], expected: list[list[float]]):
        self._url, self._files, self._expected = url, files, expected

    async def burst(self, count: int) -> Answers:
        """So many requests at the same time, one each."""
        return await self._run(count, 0.0)

    async def clients(self, count: int, seconds: float) -> Answers:
        """So many clients that ask one request after the other; what was asked in time is waited for."""
        return await self._run(count, seconds)

    async def _run(self, count: int, seconds: float) -> Answers:
        found, limits = Answers(), httpx.Limits(max_connections=count)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=300, limits=limits) as client:
            began = time.perf_counter()
            await asyncio.gather(*(self._client(client, i, began + seconds, found) for i in range(count)))
            found.seconds = time.perf_counter() - began
        return found

    async def _client(self, client: httpx.AsyncClient, number: int, end: float, found: Answers) -> None:
        while True:
            chosen = number % len(self._files)
            asked = time.perf_counter()
            answer = await self._ask(client, chosen, found)
            found.times.append(time.perf_counter() - asked)
            scores = sorted(one["score"] for one in answer["detections"])
            expected = self._expected[chosen]
            if len(scores) != len(expected) or not np.allclose(scores, expected, atol=1e-4):
                raise SystemExit(f"image {chosen}: other detections than the Predictor's")
            number += 1
            if time.perf_counter() >= end:
                return

    async def _ask(self, client: httpx.AsyncClient, chosen: int, found: Answers) -> Any:
        """One request, sent again as long as it is refused for load."""
        while True:
            answer = await client.post("/v1/predict", files={"image": self._files[chosen]})
            if answer.status_code == 200:
                return json.loads(answer.content)
            if answer.status_code != 429:
                raise SystemExit(f"lost: {answer.status_code} {answer.text}")
            found.refused += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))


if __name__ == "__main__":
    main()
