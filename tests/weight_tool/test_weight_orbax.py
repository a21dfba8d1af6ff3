"""The orbax export, restored with orbax alone and put into our modules by the recipe that the help gives."""

import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from weight_checkpoints import DINOV2_GIVEN, SAM2_GIVEN, TINY_DINOV2, TINY_SAM2, save, state_dict

from ntt_jax.config import from_dict
from ntt_jax.errors import InputError
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.sam2_base import Sam2
from weight_port import port, rules
from weight_port.__main__ import main
from weight_port.orbax_folder import export_orbax

MODELS = [
    (TINY_DINOV2, DINOV2_GIVEN, "", DinoVisionTransformer, np.float32),
    (TINY_SAM2, SAM2_GIVEN, "2.1", Sam2, np.float32),
    (TINY_DINOV2, DINOV2_GIVEN, "", DinoVisionTransformer, ml_dtypes.bfloat16),
]


def converted(folder, config, given, video, dtype):
    source = save(folder / "source.safetensors", state_dict(config, video, dtype))
    port.convert(source, folder / "ours.safetensors", given=given)
    return folder / "ours.safetensors"


@pytest.mark.parametrize(("config", "given", "video", "module", "dtype"), MODELS)
def test_plain_orbax_restores_every_bit(tmp_path, capsys, config, given, video, module, dtype):
    source, folder = converted(tmp_path, config, given, video, dtype), tmp_path / "model orbax"
    assert main(["export", "--orbax", str(source), str(folder)]) == 0
    assert config.name in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "params"]

    params = ocp.StandardCheckpointer().restore(folder / "params")
    weights = port.read_converted(source)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    found = {".".join(str(key.key) for key in path): array for path, array in leaves}
    assert set(found) == set(weights.tensors)
    for name, array in weights.tensors.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == np.asarray(array).tobytes(), name

    assert from_dict(json.loads((folder / "config.json").read_text())) == weights.config
    graph, state = nnx.split(nnx.eval_shape(lambda: module(weights.config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    for name, array in rules.values(nnx.merge(graph, state)).items():
        np.testing.assert_array_equal(array, weights.tensors[name])


def test_a_disk_that_fills_while_orbax_writes(tmp_path):
    """RLIMIT_FSIZE stands for the disk: a write beyond it fails as one without room does (EFBIG for ENOSPC)."""
    pytest.importorskip("resource")
    # Set by the process itself: what runs between fork and exec would make this one fork, which JAX forbids.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from weight_port.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    source = converted(tmp_path, *MODELS[0][:3], np.float32)
    before = sorted(path.name for path in tmp_path.iterdir())
    result = subprocess.run(
        [sys.executable, "-c", limited, "export", "--orbax", str(source), str(tmp_path / "full")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert "cannot be written" in line and result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    source = converted(tmp_path, *MODELS[0][:3], np.float32)
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_orbax(source, tmp_path / "there")
    (tmp_path / "there").rmdir()
    assert main(["export", "--orbax", str(source), str(tmp_path / "no" / "such")]) == 2
    assert capsys.readouterr().err.count("\n") == 1

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        export_orbax(source, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
