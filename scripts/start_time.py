"""Measure `ntt-jax segment` on one image as a user starts it: from process start to the written result.

    python scripts/start_time.py --size T+S --json out.json        # or S+B, L+L
    python scripts/start_time.py --size T+S --by-name --warm 5     # names in a warm cache, against the files

The first start compiles into an empty cache, the later ones find it; the best of these counts as warm. Each is a
process of its own, whose wall time and peak resident memory are reported. Weights are random ones of the published
sizes, which changes neither. --by-name starts in turn with the files and with the names of the models, whose converted
files lie in a cache then; "ratio" is that of the quickest starts. Needs the `torch` and `test` extras and a checkout,
as `benchmark.py` does.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import SIZES
from measured import add_json_option, circumstances, show
from PIL import Image
from torch_reference import TorchPass

from ntt_jax.config import DINOV2_CONFIGS, SAM2_CONFIGS, DetectConfig
from ntt_jax.hub import cache, resolve
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, save_memory
from weight_port import convert

CLASSES = 20


def write_inputs(folder: Path, size: str) -> list[str]:
    """Converted weights, a memory and an image in `folder`; returns the arguments that name them."""
    sam2, dinov2 = SAM2_CONFIGS[SIZES[size][0]], DINOV2_CONFIGS[SIZES[size][1]]
    states = TorchPass(sam2, dinov2, DetectConfig(), "cpu").state_dicts
    for name, state in zip(("sam2", "dinov2"), states, strict=True):
        torch.save({"model": state} if name == "sam2" else state, folder / f"{name}.pt")
        convert(folder / f"{name}.pt", folder / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    names = [f"class {k}" for k in range(CLASSES)]
    means = [[rng.standard_normal(dinov2.embed_dim).astype(np.float32)] for _ in names]
    bank = MemoryBank(memory_from_instance_means(means, names), tuple(names), tuple(range(1, CLASSES + 1)), dinov2)
    save_memory(folder / "memory.safetensors", bank)
    blocks = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))).save(folder / "image.png")
    files = (f"--{name}={folder / name}.safetensors" for name in ("sam2", "dinov2", "memory"))
    return [*files, str(folder / "image.png")]


def by_name(folder: Path, size: str, arguments: list[str]) -> list[str]:
    """The arguments with the names of the models, which stand for the same weights in a cache from now on."""
    os.environ["NTT_JAX_CACHE"] = str(folder / "weights")
    named = []
    for kind, name in zip(("sam2", "dinov2"), SIZES[size], strict=True):
        found = resolve(folder / f"{kind}.pt")
        cache.record_name(name, found.stem, origin="scripts/start_time.py", commit=None, source_sha256=None)
        named.append(f"--{kind}={name}")
    return [*named, *arguments[len(named) :]]


def start(arguments: list[str], out: Path) -> dict[str, float]:
    """Run the command once in a process of its own."""
    command = [sys.executable, "-m", "ntt_jax.cli", "segment", *arguments, f"--out={out}"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return {"seconds": seconds, "peak_resident_gib": usage.ru_maxrss / 2**20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="T+S")
    parser.add_argument("--by-name", action="store_true", help="compare starts by name with starts from files")
    parser.add_argument("--warm", type=int, default=2, help="starts after the first")
    add_json_option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [*write_inputs(folder, args.size), f"--compilation-cache={folder / 'cache'}"]
        kinds = [arguments, by_name(folder, args.size, arguments)] if args.by_name else [arguments]
        runs = [start(arguments, folder / "out")]
        warm = [[start(one, folder / f"out{i}-{k}") for k, one in enumerate(kinds)] for i in range(args.warm)]
    report: dict[str, Any] = {
        **circumstances(),
        "cold": runs[0],
    }
    if args.warm:
        best = [min(of, key=lambda run: run["seconds"]) for of in zip(*warm, strict=True)]
        report["warm"] = best[0]
        if args.by_name:
            report |= {"warm_by_name": best[1], "ratio": round(best[1]["seconds"] / best[0]["seconds"], 3)}
    show(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
