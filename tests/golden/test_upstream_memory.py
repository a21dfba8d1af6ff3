"""Memory checkpoints with the arrays that the original code recorded: made again, they are the same."""

import pathlib

import numpy as np
import pytest

from ntt_jax.config import DinoV2Config
from ntt_jax.upstream.memory import convert_upstream_memory, read_upstream_memory


@pytest.mark.parametrize("kind", ["frac", "bin"])
def test_recorded_aggregation(golden: pathlib.Path, tmp_path: pathlib.Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    recorded = np.load(golden / f"dev_postprocess_{kind}.npz", allow_pickle=False)
    memory = {name: recorded[f"{name}_fp16"].astype(np.float32) for name in ("mem_feats", "mem_masks")}
    memory |= {name: recorded[name] for name in ("mem_feats_ins_avg", "mem_feats_avg", "mem_feats_covariances")}
    path = tmp_path / "memory_postprocessed.ckpt"
    torch.save({"state_dict": {f"seg_model.{name}": torch.from_numpy(a) for name, a in memory.items()}}, path)
    encoder = DinoV2Config(name="recorded", embed_dim=64, depth=1, num_heads=1, image_size=518, input_size=518)
    made, remarks = convert_upstream_memory(read_upstream_memory(path), [f"class {k}" for k in range(5)], encoder)
    assert len(remarks) == 2 and remarks[1].startswith("prototypes: the same"), remarks
    means = recorded["mem_feats_ins_avg"].astype(np.float64).mean(axis=1)
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(made.prototypes, expected, atol=1e-6)
