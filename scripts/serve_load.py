"""What `ntt-jax serve` costs: images a second through the address against the same segmenter called directly.

    python scripts/serve_load.py --seconds 60 --clients 50

The small models and made scenes of the demo; both ways take turns in one process, on the devices that JAX sees. Prints
the ratio, the median and the 95th percentile of the time to an answer, how many were refused, and the peak memory.
"""

import argparse
import io
import resource
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import uvicorn
from PIL import Image

import ntt_jax
from ntt_jax.app import running
from ntt_jax.demo.demo import SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.segmenter.segmenter import Segmenter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of requests (default: 60)")
    parser.add_argument("--clients", type=int, default=50, help="that ask at the same time (default: 50)")
    args = parser.parse_args()
    ntt_jax.use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = make_benchmark(Path(folder), 0, 20)
        weights = convert_checkpoints(Path(folder) / "weights")
        segmenter = Segmenter(load_sam2(weights[0]), load_dinov2(weights[1]), SMALL_DETECT)
        dataset = benchmark.references
        for annotation in list(dataset.annotations.values())[:12]:
            image = dataset.read_image(Path(folder) / "references", annotation.image_id)
            segmenter.add(dataset.categories[annotation.category_id].name, [(image, dataset.mask(annotation))])
        images = list(benchmark.target_images())
    list(segmenter.predict(iter(images[:2])))  # compiles
    direct = [rate(segmenter, images)]
    answered, refused, seconds = ask(segmenter, images, args.seconds, args.clients)
    direct.append(rate(segmenter, images))
    served, plain = len(answered) / seconds, statistics.mean(direct)
    print(f"direct: {plain:.2f} images/s ({', '.join(f'{one:.2f}' for one in direct)})")
    print(f"served: {served:.2f} images/s to {args.clients} clients; ratio {served / plain:.2f}")
    late = sorted(answered)
    print(f"an answer after {statistics.median(late):.2f} s, 95 %: {late[int(0.95 * len(late))]:.2f} s")
    print(f"answered {len(answered)}, refused with 429: {refused}, lost: 0")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def rate(segmenter: Segmenter, images: list) -> float:
    """Images a second without the address."""
    began = time.perf_counter()
    count = sum(1 for _ in segmenter.predict(iter(images)))
    return count / (time.perf_counter() - began)


def ask(segmenter: Segmenter, images: list, seconds: float, clients: int) -> tuple[list[float], int, float]:
    """Seconds to each answer, how many requests were refused, and the time it all took. A lost request ends it."""
    address = running.listen("127.0.0.1", 0)
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    with running.service(segmenter, address) as guard:
        server = uvicorn.Server(uvicorn.Config(guard, log_level="warning", access_log=False, http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [address.listener]}, daemon=True)
        thread.start()
        began = time.perf_counter()

        def client(number: int) -> tuple[list[float], int]:
            times, refused = [], 0
            with httpx.Client(
                base_url=address.url, headers={"authorization": f"Bearer {address.token}"}, timeout=300
            ) as one:
                while time.perf_counter() - began < seconds:
                    asked = time.perf_counter()
                    answer = one.post("/v1/predict", files={"image": files[(number + len(times)) % len(files)]})
                    if answer.status_code == 429:
                        refused += 1
                        time.sleep(float(answer.headers["retry-after"]))
                        continue
                    answer.raise_for_status()
                    times.append(time.perf_counter() - asked)
            return times, refused

        with ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(client, range(clients)))
        took = time.perf_counter() - began
        server.should_exit = True
        thread.join()
    return [one for times, _ in found for one in times], sum(refused for _, refused in found), took


if __name__ == "__main__":
    main()
