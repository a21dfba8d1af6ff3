"""Ten thousand kinds of bad requests to a running `ntt-jax app` and `serve`: never a 5xx, and the programs stay well.

    python scripts/fuzz_uploads.py --cases 10000 --seed 0

Spoiled images, forms, JSON, headers and paths, written to the socket byte by byte, to every route that takes something.
An answer must have a status below 500, and one line of `detail` where it is an error. A request that is not HTTP may be
cut off without an answer. At the end both programs must answer as at the start, within bounded memory, with no file,
process or connection left behind. Prints how many answers had which status; ends with 1 if anything is wrong, after
printing what was sent (`--only CASE` sends it again).
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
from pathlib import Path

from bad_requests import Request, bad_request, form
from small_server import TOKEN, Program, small_segmenter

from ntt_jax.demo.demo import convert_checkpoints, make_benchmark
from ntt_jax.loading import load_dinov2, load_sam2

TIMEOUT = 600
"""Seconds that `serve` may take, so that on a busy machine the largest images are answered and not refused with 503."""
WITHIN = 60.0 + TIMEOUT  # seconds for an answer
GROWTH = 2500
"""MiB that a program may grow by: the largest image that is accepted takes 1.2 GB until it is read, two at once."""


def main() -> None:
    """Send and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="requests (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=6, help="requests at the same time (default: 6)")
    parser.add_argument(
        "--seconds", type=float, default=7200, help="after which no further one is sent (default: 7200)"
    )
    parser.add_argument("--only", type=int, help="one case, whose answer is printed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(fuzz(Path(folder), args))


def fuzz(folder: Path, args: argparse.Namespace) -> int:
    """Start both programs, send all cases, and look whether they are well."""
    benchmark = make_benchmark(folder, 0, 4, 10)
    weights = convert_checkpoints(folder / "weights")
    segmenter = small_segmenter(benchmark, load_sam2(weights[0]), load_dinov2(weights[1]), 3)
    segmenter.save(folder / "memory.safetensors")
    photos = sorted((folder / "targets" / "images").iterdir())
    os.environ["TMPDIR"] = str(folder / "temporary")
    (folder / "temporary").mkdir()
    with (
        Program(
            ["serve", "--memory", folder / "memory.safetensors", "--timeout", str(TIMEOUT)], folder, weights, 4
        ) as serve,
        Program(["app", folder / "targets" / "images", "--no-browser"], folder, weights, 4) as app,
    ):
        programs, sound = {"serve": serve, "app": app}, photos[0].read_bytes()
        ids = [photo["id"] for photo in well(app, "GET", "/v1/project")["photos"]]
        prompt = {"points": [[100, 100]], "labels": [1]}
        for id in ids[:2]:
            well(app, "POST", f"/v1/photos/{id}/masks", json.dumps(prompt).encode())
            shown = {"class_name": "bird", "prompt": prompt}
            well(app, "POST", f"/v1/photos/{id}/references", json.dumps(shown).encode())
        before = predicted(serve, sound)
        start = {name: program.memory()[0] for name, program in programs.items()}
        files = {name: program.open_files for name, program in programs.items()}
        statuses: collections.Counter[str] = collections.Counter()
        wrong: list[str] = []
        lock, began = threading.Lock(), time.monotonic()

        def case(number: int) -> None:
            if time.monotonic() - began > args.seconds:
                return
            request = bad_request(random.Random(f"{args.seed} {number}"), ids, sound)
            try:
                status, problem = send(programs[request.program], request)
            except Exception:
                status, problem = 0, traceback.format_exc(limit=3)
            with lock:
                statuses[f"{status or 'no answer'} {request.kind}"] += 1
                if problem:
                    wrong.append(f"case {number}, {request.kind}: {problem}\n  {request.head()[:300]!r}")
                    print(wrong[-1], flush=True)
                if sum(statuses.values()) % 1000 == 0:
                    print(f"{sum(statuses.values())} sent; memory {memories(programs)}", flush=True)

        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            list(pool.map(case, range(args.cases) if args.only is None else [args.only]))
        seconds = time.monotonic() - began
        for name, program in programs.items():
            if not program.alive:
                wrong.append(f"{name}: ended")
                continue
            grown = program.memory()[1] - start[name]
            if grown > GROWTH:
                wrong.append(f"{name}: grew by {grown} MiB")
        if not wrong or all(program.alive for program in programs.values()):
            wrong += left_behind(folder, programs, files)
            if predicted(serve, sound) != before:
                wrong.append("serve: another answer to the same image than at the start")
            well(app, "GET", "/v1/project")
        by_status: collections.Counter[str] = collections.Counter()
        for name, count in statuses.items():
            by_status[name.partition(" ")[0] if name[0].isdigit() else "no answer"] += count
        print(f"{sum(statuses.values())} requests in {seconds:.0f} s")
        for name, count in sorted(statuses.items()) if args.cases < 500 else sorted(by_status.items()):
            print(f"  {name}: {count}")
        print(f"memory {memories(programs)}; at the start {start}")
        print(f"{len(wrong)} wrong", *wrong[:20], sep="\n  ")
        return 1 if wrong else 0


def memories(programs: dict[str, Program]) -> str:
    """Of both programs, in words."""
    return ", ".join("{} {} MiB (most {})".format(name, *program.memory()) for name, program in programs.items())


def send(program: Program, request: Request) -> tuple[int, str]:
    """The status, 0 where the connection was closed without an answer, and what is wrong with it."""
    address = urllib.parse.urlsplit(program.url)
    with socket.create_connection((address.hostname, address.port), timeout=WITHIN) as connection:
        data = request.bytes(address.netloc, TOKEN)
        with contextlib.suppress(OSError):  # answered, or cut off, before all was sent
            for start in range(0, len(data), 65536):
                connection.sendall(data[start : start + 65536])
            if request.broken:  # it may promise more than it sends: who has nothing more to say need not wait
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):  # go on, to who asked whether to
        head, _, body = body.partition(b"\r\n\r\n")
    if not head:
        return 0, "" if request.broken else "closed without an answer"
    words = head.split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if not 200 <= status < 500:
        return status, body.decode("utf-8", "replace")[:300]
    if status >= 400 and b"application/json" in head and request.method != "HEAD":
        detail = json.loads(body)["detail"]
        if not isinstance(detail, str) or len(detail) > 1000 or not detail.replace(" ", "").isprintable():
            return status, f"a detail that is not one printable line: {detail!r:.300}"
        if "/tmp" in detail or "Traceback" in detail:
            return status, f"says more than it should: {detail:.300}"
    return status, ""


def well(program: Program, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> dict:
    """What a sound request gets."""
    request = Request("", "", method, path, [("Content-Type", kind)], body)
    address = urllib.parse.urlsplit(program.url)
    with socket.create_connection((address.hostname, address.port), timeout=300) as connection:
        connection.sendall(request.bytes(address.netloc, TOKEN))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, content = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(f"{method} {path}: {answer[:300]!r}")
    return json.loads(content)


def predicted(serve: Program, image: bytes) -> object:
    """The detections in a sound image."""
    kind, body = form([("image", "photo.png", "image/png", image)])
    return well(serve, "POST", "/v1/predict?score_threshold=0", body, kind)["detections"]


def left_behind(folder: Path, programs: dict[str, Program], files: dict[str, int]) -> list[str]:
    """Temporary files, processes and connections that are still there when nothing is being answered."""
    time.sleep(1)
    found = [f"{name}: {p.children} processes left" for name, p in programs.items() if p.children]
    found += [f"temporary file left: {path}" for path in (folder / "temporary").iterdir()]
    for name, program in programs.items():
        if program.open_files > files[name] + 8:
            found.append(f"{name}: {program.open_files} files open, {files[name]} at the start")
    return found


if __name__ == "__main__":
    main()
