import json

import numpy as np
import pytest
from PIL import Image

from ntt_jax.datasets.coco import load_coco
from ntt_jax.demo import demo
from ntt_jax.errors import InputError
from ntt_jax.memory.bank import load_memory
from ntt_jax.references.sampling import load_references


def test_demo(tmp_path, capsys):
    metrics = demo.run_demo(tmp_path, seed=1, scenes=6, shots=(1, 3))
    printed = capsys.readouterr().out
    assert set(metrics) == {1, 3}
    for shots, values in metrics.items():
        assert json.loads((tmp_path / f"metrics_{shots}.json").read_text())["segm"]["AP"] == values["segm"]["AP"]
        assert f"{values['segm']['AP']:.3f}" in printed and f"{values['bbox']['AP50']:.3f}" in printed
        assert values["images"] == 6
        results = json.loads((tmp_path / f"results_{shots}.json").read_text())
        assert len(results) == values["detections"] > 0
        bank = load_memory(tmp_path / f"memory_{shots}.safetensors")
        assert bank.shots == (shots,) * 6
        assert load_references(tmp_path / f"references_{shots}.json").seed == 1
    for name in ("references", "targets", "features"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png"))
        assert min(picture.shape[:2]) > 300 and picture.std() > 20
    targets = load_coco(tmp_path / "targets" / "annotations.json")
    assert len(targets.images) == 6
    assert not any(path.name.startswith(".") for path in tmp_path.rglob("*"))  # nothing half-written


def test_same_seed_same_scenes(tmp_path):
    for name in "ab":
        demo.make_benchmark(tmp_path / name, 5, 2, 2)
    first, second = ((tmp_path / name / "targets" / "annotations.json").read_bytes() for name in "ab")
    assert first == second
    assert (tmp_path / "a" / "references" / "annotations.json").read_bytes() != first


def test_bad_arguments(tmp_path):
    for bad in ({"shots": ()}, {"shots": (0,)}, {"scenes": 0}):
        with pytest.raises(InputError, match="demo: expected at least one"):
            demo.run_demo(tmp_path, **bad)


def test_table_with_undefined_numbers():
    values = {"bbox": {"AP": None, "AP50": 0.5}, "segm": {"AP": 0.25, "AP50": None}}
    lines = demo.table({5: values}).splitlines()
    assert lines[1].split() == ["5", "-", "0.500", "0.250", "-"]
