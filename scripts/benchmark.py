"""Time the target pass against the same stages built from Meta's PyTorch modules, in one run.

    python scripts/benchmark.py --size T+S --json out.json
    python scripts/benchmark.py --size L+L --repeats 3 --points-per-side 32

Both engines hold the same deterministic random weights and see the same photo-sized random image; repetitions are
interleaved and the median counts. Every row says what it timed; `equal` compares the detections of the two.
Freed memory is kept by the process, which is what torch is fastest with.
Needs the `torch` and `test` extras and a checkout (the oracles of the parity tests build the PyTorch models).
"""

import argparse
import functools
import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the card

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch_reference import TorchPass

from ntt_jax.compiled.point_parallel import PointParallel
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import COMPILER_OPTIONS, DINOV2_CONFIGS, SAM2_CONFIGS, DetectConfig
from ntt_jax.detection.merge import merge_candidates
from ntt_jax.images.preprocess import encoder_input, resize_for_sam, sam_input
from ntt_jax.images.rle import decode_rle
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.pipeline import propose_masks
from weight_port import convert_state_dict

SIZES = {
    "T+S": ("sam2_hiera_tiny", "dinov2_vits14"),
    "S+B": ("sam2_hiera_small", "dinov2_vitb14"),
    "L+L": ("sam2_hiera_large", "dinov2_vitl14"),
}
# GFLOP per image at the published sizes, for operations per second. Decoders: 1024 points that all pass, in the order
# of operations of each engine (ntt_jax/models/sam2/point_grid counts them).
GFLOP = {
    "L+L": {
        "sam2 encoder": 1620,
        "dinov2": 1014,
        "ours decoder": 854,
        "torch decoder": 3676,
    }
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="T+S")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--pred-iou-threshold", type=float, default=0.4)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--dtypes", default="float32", help="of our rows: float32, tensorfloat32, bfloat16, with commas"
    )
    parser.add_argument("--torch-rows", default="float32", help="float32, tensorfloat32, bfloat16, compiled (bfloat16)")
    parser.add_argument("--torch-chunk", type=int, default=64, help="points decoded together by torch")
    parser.add_argument(
        "--batch-sizes",
        default="1",
        help="images per step of the whole passes, with commas; the encoders' rows take the last",
    )
    parser.add_argument("--cores", type=int, help="CPUs: how many share the points in our rows (default: all)")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--whole-only", action="store_true", help="leave out the single stages")
    parts.add_argument(
        "--stages-only", action="store_true", help="leave out the whole pass, and with it the comparison"
    )
    parser.add_argument("--json", help="write all numbers to this file")
    return parser.parse_args()


class Rows:
    """Named measurements, repeated in turn."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Callable[[], Any], float]] = {}
        self.first: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}

    def add(self, name: str, call: Callable[[], Any], images: int = 1) -> Any:
        """Register a call that ends synchronised; runs it twice (compile, settle) and returns its result.

        The second time is printed too: on a GPU the first calls take minutes, and a run that is cut off has shown
        something.
        """
        start = time.perf_counter()
        result = call()
        self.first[name] = time.perf_counter() - start
        second = _time(call) / images
        self.calls[name] = (call, images)
        print(f"  {name}: first call {self.first[name]:.2f} s, then {second:.4f} s per image", flush=True)
        return result

    def measure(self, repeats: int) -> None:
        for _ in range(repeats):
            for name, (call, images) in self.calls.items():
                start = time.perf_counter()
                call()
                self.seconds.setdefault(name, []).append((time.perf_counter() - start) / images)

    def table(self) -> list[dict[str, Any]]:
        return [
            {
                "row": name,
                "seconds_per_image": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "first_call_seconds": self.first[name],
            }
            for name, values in self.seconds.items()
        ]


def operations(size: str, row: str) -> float | None:
    """GFLOP per image of a row, None where not counted."""
    known, engine, stage = GFLOP.get(size, {}), row.split()[0], row.split(" | ")[1]
    if stage.startswith("whole") and known:
        return known["sam2 encoder"] + known["dinov2"] + known[f"{engine} decoder"]
    return known.get(stage) or known.get(f"{engine} {stage}")


def matrix_rate(device: str, dtype: Any, precision: str = "highest") -> float:
    """TFLOP/s of a large product through JAX, the ceiling the pass is held against."""
    n = 8192 if device == "gpu" else 2048
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    with jax.default_matmul_precision(precision):
        product = jax.jit(lambda a: a @ a, compiler_options=COMPILER_OPTIONS).lower(x).compile()
    jax.block_until_ready(product(x))
    best = min(_time(lambda: jax.block_until_ready(product(x))) for _ in range(8))
    return 2 * n**3 / best / 1e12


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cast(model: Any, kind: type, dtype: Any) -> Any:
    """The model with kernels of another type, as its constructor declares them."""
    definition, wanted = nnx.split(nnx.eval_shape(lambda: kind(model.config, dtype=dtype, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda want, have: have.astype(want.dtype), wanted, nnx.state(model))
    return nnx.merge(definition, state)


def agreement(ours: Any, theirs: dict[str, Any]) -> dict[str, Any]:
    """How far two sets of detections agree, in order."""
    n = min(len(ours.scores), len(theirs["scores"]))
    masks = [decode_rle(rle) for rle in ours.rles[:n]]
    differing = [int(np.sum(a != b)) for a, b in zip(masks, theirs["masks"][:n], strict=True)]
    return {
        "detections": [len(ours.scores), len(theirs["scores"])],
        "labels_equal": bool(np.array_equal(ours.labels[:n], theirs["labels"][:n])),
        "score_difference": float(np.abs(ours.scores[:n] - theirs["scores"][:n]).max(initial=0)),
        "boxes_difference": float(np.abs(ours.boxes[:n] - theirs["boxes"][:n]).max(initial=0)),
        "mask_pixels_differing": max(differing, default=0),
    }


def add_ours(rows: Rows, args: argparse.Namespace, models: Any, image: np.ndarray, prototypes: Any, dtype: str) -> Any:
    """Our stages and whole pass in one precision; returns the detections of `image`."""
    precision = "tensorfloat32" if dtype == "tensorfloat32" else "highest"
    kernel = jnp.bfloat16 if dtype == "bfloat16" else jnp.float32
    sam2, dinov2 = (cast(m, kind, kernel) for m, kind in zip(models, (Sam2, DinoVisionTransformer), strict=True))
    config = DetectConfig(args.points_per_side, args.pred_iou_threshold)
    height, width = image.shape[:2]
    cores = jax.local_devices() if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else None

    batches = [int(batch) for batch in args.batch_sizes.split(",")]
    if not args.whole_only:
        count = batches[-1]
        images = jnp.asarray(np.stack([resize_for_sam(image, sam2.config.image_size)] * count))

        def stage(name: str, function: Callable[..., Any], *inputs: Any, images: int = 1) -> Any:
            with jax.default_matmul_precision(precision):
                compiled = jax.jit(function, compiler_options=COMPILER_OPTIONS).lower(*inputs).compile()
            return rows.add(f"ours {dtype} | {name}", lambda: jax.block_until_ready(compiled(*inputs)), images)

        features = stage("sam2 encoder", lambda m, x: m.encode_image(sam_input(x)), sam2, images, images=count)
        patches = stage("dinov2", lambda m, x: m(encoder_input(x, m.config.input_size)), dinov2, images, images=count)
        grid = patches.shape[1:3]
        # "decoder" includes what `after` starts from: patch weights and boxes of the masks.
        if cores is None:
            proposals = stage("decoder", lambda m, f: propose_masks(m, f, grid, config), sam2, features[0])
        else:
            divided = PointParallel(sam2, dinov2, config, nnx.split((sam2, dinov2))[0], cores)
            one = features[0]
            proposals = rows.add(f"ours {dtype} | decoder", lambda: jax.block_until_ready(divided.propose(one)))
        candidates, logits, ious = proposals
        print(f"  {int(candidates.valid.sum())} of {len(ious)} candidates pass", flush=True)
        after = functools.partial(merge_candidates, height=height, width=width, config=config)
        stage("after", after, patches[0].astype(jnp.float32), candidates, logits, ious, prototypes)
        del features, patches, logits
    found: list[Any] = [None]
    for batch in () if args.stages_only else batches:
        predictor = Predictor(
            sam2,
            dinov2,
            prototypes,
            config,
            batch_size=batch,
            matmul_precision=precision,
            devices=cores,
            canvas=max(height, width),
        )
        count = batch * (1 if batch == 1 else 3)
        name = f"ours {dtype} | whole, batch {batch}"
        found = rows.add(name, functools.partial(_all, predictor, [image] * count), images=count)
    return found[0]


def _all(predictor: Predictor, images: list[np.ndarray]) -> list[Any]:
    return list(predictor(images))


def add_torch(rows: Rows, args: argparse.Namespace, engine: TorchPass, image: np.ndarray, prototypes: Any, row: str):
    """Torch's stages and whole pass in one precision; returns the detections of `image`."""
    tf32 = row == "tensorfloat32"

    def run(function: Callable[..., Any], *inputs: Any) -> Any:
        engine.dtype = torch.bfloat16 if row in ("bfloat16", "compiled") else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        engine.use_compiled(row == "compiled")
        with torch.inference_mode(), engine.autocast():
            result = function(*inputs)
        if engine.device == "cuda":
            torch.cuda.synchronize()
        return result

    batches = [int(batch) for batch in args.batch_sizes.split(",")]
    name = f"torch {row} | "
    if not args.whole_only:
        count = batches[-1]
        x = engine.prepare([image] * count)
        # Looked up when called: which of them is compiled depends on the row.
        embedding, high_res = rows.add(
            name + "sam2 encoder", functools.partial(run, lambda x: engine.encode_image(x), x), count
        )
        patches = rows.add(name + "dinov2", functools.partial(run, lambda x: engine.encode_patches(x), x), count)
        features = embedding[:1], [level[:1] for level in high_res]
        logits, ious = rows.add(name + "decoder", functools.partial(run, engine.decode, features))
        after = functools.partial(run, engine.after, patches[:1], logits, ious, prototypes, *image.shape[:2])
        rows.add(name + "after", after)
    found: list[Any] = [None]
    for batch in () if args.stages_only else batches:
        call = functools.partial(run, engine.whole, [image] * batch, prototypes)
        found = rows.add(f"{name}whole, batch {batch}", call, batch)
    return found[0]


def keep_freed_memory() -> None:
    """Start again with an allocator that gives nothing back: torch's decoder is up to three times faster with it."""
    tuned = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    if any(os.environ.get(name) != value for name, value in tuned.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | tuned)


def main() -> int:
    args = arguments()
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", args.cores or len(os.sched_getaffinity(0)))
    device = "gpu" if jax.default_backend() == "gpu" else "cpu"
    sam2_name, dinov2_name = SIZES[args.size]
    sam2_config, dinov2_config = SAM2_CONFIGS[sam2_name], DINOV2_CONFIGS[dinov2_name]
    config = DetectConfig(args.points_per_side, args.pred_iou_threshold)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (args.height // 16, args.width // 16, 3), dtype=np.uint8)
    image = np.ascontiguousarray(np.kron(image, np.ones((16, 16, 1), np.uint8)))  # flat patches, like objects
    prototypes = rng.standard_normal((args.classes, dinov2_config.embed_dim)).astype(np.float32)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)

    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": str(jax.devices()[0].device_kind) if device == "gpu" else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "matrix_tflops": {"float32": matrix_rate(device, jnp.float32)},
    }
    if device == "gpu":
        report["matrix_tflops"]["tensorfloat32"] = matrix_rate(device, jnp.float32, "tensorfloat32")
        report["matrix_tflops"]["bfloat16"] = matrix_rate(device, jnp.bfloat16)
    print(json.dumps(report, indent=1), flush=True)

    torch.set_num_threads(report["cores"])
    rows = Rows()
    engine = TorchPass(sam2_config, dinov2_config, config, "cuda" if device == "gpu" else "cpu", args.torch_chunk)
    state_dicts = engine.state_dicts
    models = (
        convert_state_dict(state_dicts[0], sam2_config),
        convert_state_dict(state_dicts[1], dinov2_config),
    )
    print("first calls", flush=True)
    on_device = torch.from_numpy(prototypes).to(engine.device)

    failed: list[str] = []

    def each(add: Callable[[str], Any], names: str) -> dict[str, Any]:
        found = {}
        for name in filter(None, names.split(",")):
            try:
                found[name] = add(name)
            except Exception as error:  # out of memory, say: the other rows still count
                failed.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")
                print(f"  FAILED, the rest of {failed[-1]}", flush=True)
        return found

    def all_of_ours() -> dict[str, Any]:
        return each(lambda name: add_ours(rows, args, models, image, jnp.asarray(prototypes), name), args.dtypes)

    def all_of_torch() -> dict[str, Any]:
        return each(lambda name: add_torch(rows, args, engine, image, on_device, name), args.torch_rows)

    if device == "gpu":  # both compile for minutes, on the host; what counts is timed afterwards
        with ThreadPoolExecutor(2) as pool:
            parts = [pool.submit(all_of_ours), pool.submit(all_of_torch)]
            ours, theirs = (part.result() for part in parts)
    else:
        ours, theirs = all_of_ours(), all_of_torch()
    gc.collect()
    rows.measure(args.repeats)
    report["rows"], report["failed"] = rows.table(), failed
    counted = args.points_per_side == 32 and args.pred_iou_threshold < 0.5
    for row in report["rows"]:
        gflop = operations(args.size, row["row"]) if counted else None
        row["tflops"] = gflop / row["seconds_per_image"] / 1e3 if gflop else None
    if device == "gpu":
        report["peak_device_gib"] = {
            "ours": jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30,
            "torch": torch.cuda.max_memory_allocated() / 2**30,
        }
    exact = theirs.get("float32")
    if exact is not None:
        report["agreement with torch float32"] = {d: agreement(found, exact) for d, found in ours.items()}
    report["peak_resident_gib_of_both_engines"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    width = max((len(row["row"]) for row in report["rows"]), default=0)
    print(f"\n{'row':{width}}  s/image      min      max  first call  TFLOP/s")
    for row in report["rows"]:
        print(
            f"{row['row']:{width}} {row['seconds_per_image']:8.4f} {row['min']:8.4f} {row['max']:8.4f} "
            f"{row['first_call_seconds']:11.2f} {'' if row['tflops'] is None else format(row['tflops'], '8.2f')}"
        )
    print(json.dumps(report.get("agreement with torch float32"), indent=1))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
