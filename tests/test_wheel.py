"""The wheel alone, without the source tree: what is in it, and that the main job runs from it."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import ntt_jax

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what the build reads, so that nothing is left in the source tree."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("ntt_jax", "weight_port"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "source" / "docs").mkdir()
    for name in ("pyproject.toml", "docs/package.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, *build, "-w", str(folder), str(folder / "source")], check=True, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel; its dependencies are those of the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(scripts / "python"),
        "install",
        "-q",
        "--no-deps",
    ]
    subprocess.run([sys.executable, *pip, str(wheel)], check=True, cwd=folder)
    (packages,) = folder.rglob("site-packages")
    # A plain path: links of editable installations there are not followed.

    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return scripts


def test_wheel_holds_what_the_commands_need(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert f"\nVersion: {ntt_jax.__version__}\n" in metadata
    assert {"ntt_jax/py.typed", "ntt_jax/cli/__init__.py", "weight_port/__main__.py"} <= names
    tracked = {
        str(path.relative_to(ROOT))
        for package in ("ntt_jax", "weight_port")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not tracked - names  # second package, pages, styles, scripts, small models
    # Only the page travels with the wheel: its links must lead somewhere without the repository.
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    assert links and all(link.startswith("https://") for link in links)


def test_demo_runs_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(
        str(installed / "python"), "-c", "import ntt_jax, weight_port; print(ntt_jax.__file__, weight_port.__file__)"
    )
    assert str(ROOT) not in where and where.count("site-packages") == 2
    assert run(str(installed / "ntt-jax"), "--version").strip() == f"ntt-jax {ntt_jax.__version__}"
    run(str(installed / "ntt-jax"), "demo", "--out", "demo", "--scenes", "3", "--shots", "1")
    metrics = json.loads((tmp_path / "demo" / "metrics_1.json").read_text())
    assert metrics["images"] == 3 and metrics["detections"] > 0
    assert (tmp_path / "demo" / "targets.png").stat().st_size > 1000
