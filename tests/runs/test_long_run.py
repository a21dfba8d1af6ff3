"""2,000 images in one process: memory does not grow and the speed stays. Run with -m large -s to see the numbers."""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from cli_files import CLASSES, make_world, run, start
from PIL import Image

IMAGES = 2000


def resident(pid):
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def finished(records):
    """Records in the file so far."""
    return records.read_bytes().count(b"\n") if records.exists() else 0


@pytest.mark.large
def test_memory_and_speed_stay(tmp_path_factory, tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    world = make_world(tmp_path_factory.getbasetemp())
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    entries = []
    for index in range(IMAGES):
        height, width = generator.integers(40, 160, 2).tolist()
        picture = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        name = f"{index:04}.png"
        Image.fromarray(picture).resize((width, height)).save(tmp_path / "images" / name)
        entries.append({"id": index + 1, "file_name": name, "height": height, "width": width})
    annotations = tmp_path / "annotations.json"
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    annotations.write_text(json.dumps({"images": entries, "annotations": [], "categories": categories}))

    run(world.evaluate(tmp_path / "first"))  # compiles, which takes more memory than all the rest
    process = start(world.evaluate(tmp_path / "run", annotations=annotations, images=tmp_path / "images"))
    marks = []  # time, images, memory
    for until in range(20, IMAGES, 60):
        while (count := finished(tmp_path / "run" / "finished.records")) < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        marks.append((time.monotonic(), count, resident(process.pid)))
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    speeds, memories = [], []
    for number in range(4):
        quarter = marks[len(marks) * number // 4 : len(marks) * (number + 1) // 4]
        speeds.append((quarter[-1][1] - quarter[0][1]) / (quarter[-1][0] - quarter[0][0]))
        memories.append(statistics.median(memory for _, _, memory in quarter))  # it goes up and down by some 20 MiB
        print(f"to image {quarter[-1][1]}: {memories[-1]:.0f} MiB, {speeds[-1]:.1f} images/s")
    assert memories[-1] < 1.05 * memories[0] + 10, "memory has grown"
    assert min(speeds[1:]) > 0.7 * max(speeds[1:]), "the speed has changed"
