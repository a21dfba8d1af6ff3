"""Memory checkpoints of the original code: what is read from them, and that nothing in them is executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_files import CLASSES, DINOV2, World, arguments, make_world
from coco_files import check_message

from ntt_jax.cli import main
from ntt_jax.config import DinoV2Config
from ntt_jax.errors import InputError
from ntt_jax.memory.bank import load_memory
from ntt_jax.upstream.memory import compare_memories, convert_upstream_memory, read_upstream_memory

torch = pytest.importorskip("torch")
ENCODER = DinoV2Config(name="small", embed_dim=6, depth=1, num_heads=1, image_size=28, input_size=28)  # 2 x 2 patches
NAMES = ["bird", "boat"]


def arrays(*, seed: int = 0, shots: int = 3, missing: int = 1) -> dict[str, np.ndarray]:
    """A memory of two classes as the original code leaves it; the second class lacks its last references."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2, shots, 4, 6)).astype(np.float32)
    masks = generator.uniform(0.1, 1, (2, shots, 4)).astype(np.float32)
    masks[1, shots - missing :] = features[1, shots - missing :] = 0
    weight = np.maximum(masks.sum(2), 1e-30)
    means = np.einsum("ksp,kspc->ksc", masks, features) / weight[..., None]
    pooled = np.einsum("ksp,kspc->kc", masks, features) / masks.sum((1, 2))[:, None]
    return {
        "mem_feats": features,
        "mem_masks": masks,
        "mem_fill_counts": np.array([shots, shots - missing]),
        "mem_feats_ins_avg": means.astype(np.float32),
        "mem_feats_avg": pooled.astype(np.float32),
    }


def save(path: Path, memory: dict[str, np.ndarray], **beside: Any) -> Path:
    """As Lightning saves it, the models' weights beside the memory."""
    state = {f"seg_model.{name}": torch.from_numpy(array) for name, array in memory.items()}
    state["seg_model.sam2.image_encoder.weight"] = torch.ones(7, 3, dtype=torch.bfloat16)
    torch.save({"epoch": 0, "pytorch-lightning_version": "2.1", "state_dict": state, "loops": None, **beside}, path)
    return path


def test_instance_means_and_prototypes(tmp_path: Path) -> None:
    expected = arrays()
    upstream = read_upstream_memory(save(tmp_path / "memory.ckpt", expected))
    memory, remarks = convert_upstream_memory(upstream, NAMES, ENCODER)
    np.testing.assert_array_equal(memory.valid, [[True] * 3, [True, True, False]])
    np.testing.assert_array_equal(memory.instance_means, expected["mem_feats_ins_avg"])
    for k, count in enumerate((3, 2)):
        mean = expected["mem_feats_ins_avg"][k, :count].mean(0)
        np.testing.assert_allclose(memory.prototypes[k], mean / np.linalg.norm(mean), atol=1e-6)
    assert remarks[:2] == ["2 classes, up to 3 references each, 6 features", "boat: 2 of 3 references"]
    assert len(remarks) == 3 and remarks[2].startswith("prototypes: the same")


def test_before_post_processing(tmp_path: Path) -> None:
    expected = arrays()
    filled = expected | {name: np.zeros_like(expected[name]) for name in ("mem_feats_ins_avg", "mem_feats_avg")}
    upstream = read_upstream_memory(save(tmp_path / "memory.ckpt", filled))
    memory, remarks = convert_upstream_memory(upstream, NAMES, ENCODER)
    np.testing.assert_allclose(memory.instance_means, expected["mem_feats_ins_avg"], atol=1e-6)
    assert "not post-processed" in remarks[1]
    # Flat, without a prefix, without the counts, half precision: as people save it by hand.
    path = tmp_path / "memory.pth"
    plain = {n: torch.from_numpy(a) for n, a in expected.items() if n in ("mem_feats", "mem_masks")}
    torch.save({n: t.half() for n, t in plain.items()}, path)
    halves, _ = convert_upstream_memory(read_upstream_memory(path), NAMES, ENCODER)
    np.testing.assert_array_equal(halves.valid, memory.valid)
    np.testing.assert_allclose(halves.instance_means, memory.instance_means, atol=2e-3)


def test_says_what_differs(tmp_path: Path) -> None:
    changed = arrays()
    changed["mem_feats_ins_avg"][0, 1, 2] += 0.1
    changed["mem_feats_avg"][1] *= 1.5
    memory, remarks = convert_upstream_memory(
        read_upstream_memory(save(tmp_path / "memory.ckpt", changed)), NAMES, ENCODER
    )
    assert any(r.startswith("bird, reference 1: instance mean differs by") for r in remarks)
    assert any(r.startswith("bird: prototypes differ, cosine 0.9") for r in remarks)
    assert any(r.startswith("boat: pooled mean differs by 3.3e-01") for r in remarks)
    np.testing.assert_array_equal(memory.instance_means, changed["mem_feats_ins_avg"])  # its own test path reads these


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: [m.pop(n) for n in ("mem_feats", "mem_feats_ins_avg")], ["holds no memory", "--out_path"]),
        (lambda m: m.update(mem_feats_ins_avg=np.ones((2, 6), np.float32)), ["mem_feats_ins_avg", "3 sizes", "[2, 6]"]),
        (lambda m: m.update(mem_feats_ins_avg=np.ones((3, 3, 6), np.float32)), ["mem_feats_avg is [2, 6]"]),
        (lambda m: m.update(mem_feats=np.ones((2, 4, 4, 6), np.float32)), ["mem_feats [2, 4, 4, 6]"]),
        (lambda m: m.update(mem_masks=np.ones((2, 3, 5), np.float32)), ["mem_masks is [2, 3, 5]"]),
        (lambda m: m.update(mem_fill_counts=np.array([4, 1])), ["counts", "from 0 to 3"]),
        (lambda m: m.update(mem_fill_counts=np.array([2, 0])), ["class 'boat' has no reference"]),
        (lambda m: m["mem_feats_ins_avg"].__setitem__((0, 1), np.nan), ["class 'bird', reference 1", "mask was empty"]),
        (lambda m: m.update({"other.mem_feats_avg": m["mem_feats_avg"]}), ["two tensors", "'mem_feats_avg'"]),
    ],
)
def test_refuses_other_checkpoints(tmp_path: Path, change: Any, parts: list[str]) -> None:
    memory = arrays()
    change(memory)
    path = save(tmp_path / "memory.ckpt", memory)
    with pytest.raises(InputError) as caught:
        convert_upstream_memory(read_upstream_memory(path), NAMES, ENCODER)
    check_message(caught.value, str(path), *parts)


def test_refuses_other_classes_and_encoders(tmp_path: Path) -> None:
    upstream = read_upstream_memory(save(tmp_path / "memory.ckpt", arrays()))
    other = DinoV2Config(name="other", embed_dim=12, depth=1, num_heads=1, image_size=28, input_size=28)
    finer = DinoV2Config(name="finer", embed_dim=6, depth=1, num_heads=1, image_size=42, input_size=42)
    for names, encoder, part in (
        (["bird"], ENCODER, "a memory of 2 classes, but 1 classes are chosen"),
        (NAMES, other, "features of 6 numbers, but other makes 12"),
        (NAMES, finer, "4 patches a reference, but finer has 9"),
    ):
        with pytest.raises(InputError) as caught:
            convert_upstream_memory(upstream, names, encoder)
        check_message(caught.value, part)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def test_code_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    path = save(tmp_path / "memory.ckpt", arrays(), hyper_parameters=Runs(target))
    read_upstream_memory(path)  # the object beside the tensors is never built
    assert not target.exists()
    path.write_bytes(pickle.dumps({"mem_feats": Runs(target)}))
    with pytest.raises(InputError):
        read_upstream_memory(path)
    assert not target.exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.getbasetemp())


def test_the_command(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = load_memory(world.memory)  # 3 classes, 2 references each
    means = np.array(made.memory.instance_means)
    path = save(tmp_path / "memory_postprocessed.ckpt", {"mem_feats_ins_avg": means})
    out = tmp_path / "memory.safetensors"
    options = {"dinov2": world.dinov2, "annotations": world.train, "out": out, "compare": world.memory}
    assert main(["import-memory", str(path), *arguments(options | {"classes": "all"})]) == 0
    bank = load_memory(out)
    assert bank.class_names == tuple(CLASSES.values()) and bank.category_ids == tuple(CLASSES)
    assert bank.encoder == made.encoder and bank.provenance["encoder_sha256"] == made.provenance["encoder_sha256"]
    np.testing.assert_array_equal(bank.memory.prototypes, made.memory.prototypes)
    assert "prototypes: the same (largest difference 0.0e+00)" in capsys.readouterr().out

    pickled = tmp_path / "few_shot.pkl"
    references = made.provenance["references"]
    content = {int(k): [{"img_id": i, "ann_ids": [a]} for i, a in v] for k, v in references.items()}
    pickled.write_bytes(pickle.dumps(content))
    means[0, 1] *= -2
    save(path, {"mem_feats_ins_avg": means, "mem_fill_counts": np.array([2, 1, 2])})
    assert main(["import-memory", str(path), *arguments(options | {"references": pickled})]) == 0
    assert load_memory(out).provenance["references"] == references and load_memory(out).shots == (2, 1, 2)
    printed = capsys.readouterr().out
    assert "square: prototypes differ, cosine" in printed and "disc: 1 of 2 references" in printed
    assert "disc: 2 references there, 1 here" in printed and "bar: prototypes differ" not in printed
    assert len(compare_memories(load_memory(out).memory, made.memory, bank.class_names)) == 2

    for replaced, part in (
        ({"classes": "square,disc"}, "a memory of 3 classes, but 2 classes are chosen"),
        ({"references": tmp_path / "x.pkl"}, "--references: there is no file"),
        ({"classes": "all", "compare": path}, str(path)),
        ({}, "one of the arguments --references --classes is required"),
    ):
        assert main(["import-memory", str(path), *arguments(options | replaced)]) == 2
        assert part in capsys.readouterr().err
    assert DINOV2.embed_dim == means.shape[2]
