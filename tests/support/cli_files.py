"""A small world for the command line: converted checkpoints of tiny models, a data set of simple scenes on the disk."""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dinov2_weights
import numpy as np
import safetensors.numpy
import sam2_weights
from flax import nnx
from PIL import Image
from recipe import recipe

import weight_port
from ntt_jax.cli import main
from ntt_jax.config import DinoV2Config, HieraConfig, Sam2Config, to_dict
from ntt_jax.images.rle import encode_masks

SAM2 = Sam2Config(
    name="tiny_sam2",
    hiera=HieraConfig(8, 1, (1, 1, 2, 1), (3,), (8, 4, 4, 4), (4, 4)),
    image_size=128,
    d_model=32,
    decoder_num_heads=2,
    decoder_mlp_dim=64,
    iou_head_hidden_dim=32,
)
DINOV2 = DinoV2Config(name="tiny_dinov2", embed_dim=24, depth=2, num_heads=2, image_size=70, input_size=70)
OTHER_DINOV2 = dataclasses.replace(DINOV2, name="other", embed_dim=36)
CLASSES = {3: "square", 5: "disc", 8: "bar"}
COLOURS = {3: (230, 60, 60), 5: (40, 80, 220), 8: (60, 220, 60)}


def convert(folder: Path, config: Sam2Config | DinoV2Config, seed: int = 3) -> Path:
    """A checkpoint of recipe weights with Meta's names in Hugging Face's container, through the weight tool."""
    if isinstance(config, Sam2Config):
        shapes = sam2_weights.checkpoint_shapes(config)
    else:
        state = nnx.to_flat_state(nnx.state(dinov2_weights.skeleton(config), nnx.Param))
        shapes = dict(dinov2_weights.checkpoint_shape(path, param.shape) for path, param in state)
    original, converted = (
        folder / f"{config.name}_{seed}_meta.safetensors",
        folder / f"{config.name}_{seed}.safetensors",
    )
    safetensors.numpy.save_file({name: recipe(name, shape, seed) for name, shape in shapes.items()}, original)
    weight_port.convert(original, converted, given=to_dict(config))
    return converted


def scene(generator: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image with one large object on noise, and its class and mask."""
    height, width = size, size + int(generator.integers(0, 30))
    image = generator.integers(40, 190, (height, width, 3)).astype(np.uint8)
    category = int(generator.choice(list(CLASSES)))
    y, x = np.mgrid[:height, :width]
    side = int(generator.integers(36, size - 24))
    top, left = 12 + generator.integers(0, size - 24 - side + 1), 12 + generator.integers(0, width - 24 - side + 1)
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    if category == 5:
        inside &= (y - top - side / 2) ** 2 + (x - left - side / 2) ** 2 <= (side / 2) ** 2
    elif category == 8:
        inside &= (x - left) < 33
    image[inside] = np.clip(COLOURS[category] + generator.normal(0, 20, (int(inside.sum()), 3)), 0, 255)
    return image, [(category, inside)]


def write_scenes(folder: Path, count: int, seed: int, *, size: int = 72) -> Path:
    """`count` scenes as PNG files in `folder`/images and their annotation file, whose path is returned."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in CLASSES.items()],
    }
    for index in range(count):
        image, objects = scene(generator, size + 4 * (index % 5))
        name = f"scene{seed}_{index:03}.png"
        Image.fromarray(image).save(folder / "images" / name)
        # Ids neither start at 0 nor ascend, as in real files.
        image_id = 1000 + (index * 7) % 997
        content["images"].append({"id": image_id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for category, mask in objects:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            content["annotations"].append(
                {
                    "id": 50 + len(content["annotations"]),
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [int(v) for v in box],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_masks(mask[None])[0],
                }
            )
    path = folder / f"annotations{seed}.json"
    path.write_text(json.dumps(content))
    return path


@dataclass(frozen=True)
class World:
    """Paths of everything the commands need."""

    folder: Path
    sam2: Path
    dinov2: Path
    train: Path
    val: Path
    images: Path
    references: Path
    memory: Path
    cache: Path

    def evaluate(self, out: Path, **replaced: Any) -> list[str]:
        """Arguments of a small `evaluate`; `replaced` options are written with underscores, None removes one."""
        options = {
            "sam2": self.sam2,
            "dinov2": self.dinov2,
            "memory": self.memory,
            "annotations": self.val,
            "images": self.images,
            "out": out,
            "points_per_side": 4,
            "devices": 1,
            "compilation_cache": self.cache,
        }
        return ["evaluate", *arguments(options | replaced)]


def arguments(options: dict[str, Any]) -> list[str]:
    """Options as on a command line; True is a flag, None leaves one out."""
    result = []
    for name, value in options.items():
        if value is not None:
            result += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return result


def make_world(base: Path) -> World:
    """The world below `base`, made once per test session: 12 scenes to choose references from, 20 to evaluate on."""
    folder = base / "cli world"  # with a space, as folders of people have
    world = World(
        folder,
        sam2=folder / f"{SAM2.name}_3.safetensors",
        dinov2=folder / f"{DINOV2.name}_3.safetensors",
        train=folder / "annotations1.json",
        val=folder / "annotations2.json",
        images=folder / "images",
        references=folder / "references.json",
        memory=folder / "memory.safetensors",
        cache=folder / "xla",
    )
    if folder.exists():
        return world
    folder.mkdir()
    convert(folder, SAM2)
    convert(folder, DINOV2)
    write_scenes(folder, 12, 1)
    write_scenes(folder, 20, 2)
    shared = {"annotations": world.train}
    sample = ["sample", *arguments(shared | {"classes": "all", "shots": 2, "out": world.references})]
    assert main(sample) == 0
    memory = shared | {"dinov2": world.dinov2, "images": world.images, "references": world.references}
    memory |= {"out": world.memory, "devices": 1, "compilation_cache": "none"}
    assert main(["memory", *arguments(memory)]) == 0
    return world


class Started:
    """An `ntt-jax` forked by `Starter`: as a `subprocess.Popen`, as far as the tests need it."""

    def __init__(self, starter: "Starter", output: Path):
        self.starter, self.output, self.pid = starter, output, 0

    def poll(self) -> int | None:
        """The exit status, None as long as it runs."""
        return self.starter.status.get(self.pid)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, within: float = 120) -> int:
        """The exit status, once there is one."""
        deadline = time.monotonic() + within
        while (status := self.poll()) is None:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.005)
        return status

    def text(self) -> str:
        """What it said on stdout and stderr."""
        return self.output.read_text()


class Starter:
    """Starts `ntt-jax` by forking a process that has imported everything (quick_start.py). Use as a context manager."""

    def __init__(self, folder: Path):
        self.folder, self.status, self._count = folder, {}, 0
        # Optimising takes most of the time of a compilation, and these programs run for moments.
        flags = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_backend_optimization_level=0"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        script = str(Path(__file__).with_name("quick_start.py"))
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._pids: queue.Queue[int] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, *status = map(int, line.split())
            if status:
                self.status[pid] = status[0]
            else:
                self.status.pop(pid, None)
                self._pids.put(pid)

    def __call__(self, command: list[str], devices: int = 1) -> Started:
        self._count += 1
        started = Started(self, self.folder / f"output {self._count}.txt")
        assert self._process.stdin is not None
        print(json.dumps([*command, devices, str(started.output)]), file=self._process.stdin, flush=True)
        started.pid = self._pids.get(timeout=120)
        return started

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._reader.join()
        self._process.stdout.close()
        self._process.wait()


def start(command: list[str], *, largest_file: int | None = None) -> subprocess.Popen[str]:
    """The real console script in a process of its own, on one CPU device.

    largest_file: no file may grow beyond this many bytes there, which looks like a full disk.
    """
    line = [str(Path(sys.executable).with_name("ntt-jax")), *command]
    if largest_file is not None:
        limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file},) * 2)"
        line = [sys.executable, "-c", f"{limit}; os.execv(sys.argv[1], sys.argv[1:])", *line]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(command: list[str], status: int = 0) -> str:
    """`start` to its end; returns its stderr. It must exit with `status` and never show a traceback."""
    process = start(command)
    _, stderr = process.communicate()
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    return stderr
