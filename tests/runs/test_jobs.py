"""The jobs as functions: docs/runs.md's example on made scenes, and what an observer hears."""

import re
from pathlib import Path

import pytest
from cli_files import make_world

from ntt_jax import runs
from ntt_jax.cli import main
from ntt_jax.errors import InputError


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


class Heard:
    """Keeps what it hears."""

    def __init__(self):
        self.lines, self.steps = [], 0

    def begin(self, what, total, *, done=0, unit="images"):
        self.lines.append((what, total, done, unit))

    def step(self, count=1):
        self.steps += count

    def end(self):
        self.lines.append("end")

    def note(self, message):
        self.lines.append(message)


def test_the_example_of_the_docs(world, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    code = block[1].replace("points_per_side=32", "points_per_side=4")
    monkeypatch.chdir(tmp_path)
    given = {"sam2": world.sam2, "dinov2": world.dinov2, "train": world.train, "val": world.val}
    names = given | {"images": world.images, "references": world.references}
    exec(code, names)
    assert (tmp_path / "memory.safetensors").read_bytes() == world.memory.read_bytes()
    assert main(world.evaluate(tmp_path / "command", devices=1)) == 0
    for name in ("results.json", "metrics.json"):
        assert (tmp_path / "runs/30shot" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    # Called again, it has nothing to do and says the same.
    heard = Heard()
    again = runs.build_memory(
        tmp_path / "again.safetensors",
        dinov2=world.dinov2,
        annotations=world.train,
        images=world.images,
        references=world.references,
        observer=heard,
    )
    assert sum(again.shots) == 6 and heard.steps == 6
    assert heard.lines == [("memory", 6, 0, "references"), "end"]


def test_an_input_that_is_wrong_changes_nothing(world, tmp_path):
    with pytest.raises(InputError, match="none of the 20 images"):
        runs.evaluate(
            tmp_path,
            sam2=world.sam2,
            dinov2=world.dinov2,
            memory=world.memory,
            annotations=world.val,
            images=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []
