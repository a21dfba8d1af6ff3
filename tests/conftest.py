import os
import pathlib
from collections.abc import Callable, Iterator

import hypothesis
import jax
import pytest
import shape_checks

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
shape_checks.install()  # before the package is imported
# No deadline for an example: a machine that others share stops for a second now and then.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

TESTS = pathlib.Path(__file__).resolve().parent
# Begun first, the longest before the others, so that two processes that take file after file end together.
LONG = (
    "test_sensitivity.py",
    "reproduce/test_reproduce.py",
    "cli/test_kill.py",
    "demo/test_training.py",
    "cli/test_commands.py",
    "parity/test_photos.py",
    "demo/test_demo.py",
    "models/test_sam2.py",
    "test_pipeline.py",
    "segmenter/test_segmenter.py",
    "test_tutorial.py",
    "detection/test_detection.py",
    "models/test_dinov2.py",
    "ablation/test_ablation.py",
    "models/test_point_grid.py",
    "report/test_page.py",
)

# Where types may not be promoted in silence: what computes. Training is left out, where optax counts on promotion.
STRICT = ("models", "detection", "memory", "images", "golden", "parity", "test_pipeline.py")

SHARED = pathlib.Path(os.environ.get("NTT_SHARED", TESTS.parents[1] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {TESTS / name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def strict_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    strict = request.path.relative_to(TESTS).parts[0] in STRICT
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Converted weights of the tests go to a folder of theirs, also in the processes that they start."""
    os.environ["NTT_JAX_CACHE"] = str(tmp_path_factory.mktemp("ntt-jax cache"))


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of recorded outputs of the original PyTorch code; not part of the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("recorded outputs are not on this machine (set NTT_SHARED)")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], pathlib.Path]:
    """A recorded output by its file's name: the few of tests/golden/recorded are on every clone."""

    def find(name: str) -> pathlib.Path:
        for folder in (TESTS / "golden" / "recorded", SHARED / "golden"):
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{name} is not on this machine (set NTT_SHARED)")

    return find


@pytest.fixture(scope="session")
def coco_open() -> pathlib.Path:
    """Folder of openly licensed COCO photos with masks; not part of the repository."""
    if not (SHARED / "data" / "coco_open").is_dir():
        pytest.skip("the photos are not on this machine (set NTT_SHARED)")
    return SHARED / "data" / "coco_open"
