import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(os.environ.get("NTT_SHARED", pathlib.Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of recorded outputs of the original PyTorch code; not part of the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("recorded outputs are not on this machine (set NTT_SHARED)")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def coco_open() -> pathlib.Path:
    """Folder of openly licensed COCO photos with masks; not part of the repository."""
    if not (SHARED / "data" / "coco_open").is_dir():
        pytest.skip("the photos are not on this machine (set NTT_SHARED)")
    return SHARED / "data" / "coco_open"
