"""The exported folder is run in a process that cannot import this package."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from cli_files import DINOV2, SAM2, convert
from jax import export

import ntt_jax
from ntt_jax.cli import main
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.export import export_folder
from ntt_jax.export.programs import programs, serialize
from ntt_jax.images.preprocess import resize_for_sam
from ntt_jax.images.rle import decode_rle
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.aggregate import Memory, memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, save_memory
from ntt_jax.pipeline import encode_images

pytest.importorskip("flatbuffers")

CONFIG = DetectConfig(points_per_side=4, pred_iou_threshold=0.0, nms_iou_threshold=0.9)
SIZES = [(50, 60), (7, 300), (600, 90)]

# What a user's program does, where `ntt_jax` and `weight_port` cannot be found.
RUN = """
import sys
sys.modules.update(dict.fromkeys(("ntt_jax", "weight_port")))
import jax
import numpy as np
import load
open("jax", "w").write(jax.__version__)
exported = load.Exported(".")
for name, array in np.load("images.npz").items():
    np.savez(name, **exported(array))
encoded = exported.program("encode")(exported.weights, np.load("resized.npy"))
np.savez("encoded", **encoded)
proposals = np.load("proposals.npz")
matched = exported.program("match")(exported.classes, encoded["patches"], *(proposals[n] for n in proposals))
np.savez("matched", **matched)
exported.classes = {name: np.concatenate([x, x[:2]]) for name, x in exported.classes.items()}
np.savez("five", **exported(np.load("images.npz")["image0"]))
assert sys.modules["ntt_jax"] is None
"""


def bank(negatives: bool) -> MemoryBank:
    rng = np.random.default_rng(3)
    means = [list(rng.standard_normal((2, DINOV2.embed_dim)).astype(np.float32)) for _ in range(3)]
    others = [list(rng.standard_normal((1, DINOV2.embed_dim)).astype(np.float32)) for _ in range(3)]
    memory = memory_from_instance_means(means, ["a", "b", "c"], others if negatives else ())
    return MemoryBank(memory, ("a", "b", "c"), (1, 2, 3), DINOV2)


def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {f"image{i}": rng.integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Converted checkpoints and a memory file."""
    folder = tmp_path_factory.mktemp("files")
    save_memory(folder / "memory.safetensors", bank(False))
    return convert(folder, SAM2), convert(folder, DINOV2), folder / "memory.safetensors"


@pytest.fixture(scope="module")
def models(files):
    return load_sam2(files[0]), load_dinov2(files[1])


@pytest.fixture(scope="module")
def exported(files, tmp_path_factory):
    """The folder that the command wrote, with what the loader computed in it, and the memory."""
    folder, memory = tmp_path_factory.mktemp("exported"), bank(False)
    options = zip(("--sam2", "--dinov2", "--memory", "--out"), map(str, (*files, folder)), strict=True)
    rules = ["--points-per-side", "4", "--pred-iou-threshold", "0", "--nms-iou-threshold", "0.9"]
    assert main(["export", *(part for option in options for part in option), *rules]) == 0
    np.savez(folder / "images.npz", **images())
    np.save(folder / "resized.npy", resize_for_sam(images()["image0"], SAM2.image_size))
    rng, count = np.random.default_rng(2), CONFIG.points_per_side**2
    blobs = jax.image.resize(rng.standard_normal((count, 4, 4)), (count, SAM2.mask_size, SAM2.mask_size), "linear")
    ious, valid = rng.random(count).astype(np.float32), np.arange(count) < 12
    size = np.array(SIZES[0], np.int32)
    np.savez(folder / "proposals.npz", a=np.asarray(blobs, np.float32), b=ious, c=valid, d=size)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.environ.get("NTT_EXPORT_PATH", "")
    # Another interpreter, with another JAX, reads what this one wrote (docs/export.md).
    python = os.environ.get("NTT_EXPORT_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", RUN], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, memory


def assert_equal(found, wanted, folder):
    """To the bit: every mask, box, score and label. Another JAX rounds otherwise, which scores alone may show."""
    np.testing.assert_array_equal(found["boxes"], wanted.boxes)
    same = (folder / "jax").read_text() == jax.__version__
    np.testing.assert_allclose(found["scores"], wanted.scores, rtol=0, atol=0 if same else 1e-6)
    np.testing.assert_array_equal(found["labels"], wanted.labels)
    np.testing.assert_array_equal(found["masks"], [decode_rle(rle) for rle in wanted.rles])


def test_detections_are_those_of_the_predictor(exported, models):
    folder, memory = exported
    predictor = Predictor(*models, memory.memory.prototypes, CONFIG, devices=jax.local_devices()[:1])
    wanted = list(predictor(images().values()))
    assert min(len(one) for one in wanted) > 0
    for name, one in zip(images(), wanted, strict=True):
        assert_equal(np.load(folder / f"{name}.npz"), one, folder)


def test_the_number_of_classes_is_free(exported):
    """Classes that stand there twice win nothing: of equal ones the first is taken."""
    folder, _ = exported
    three, five = np.load(folder / "image0.npz"), np.load(folder / "five.npz")
    for name in ("boxes", "labels", "masks"):
        np.testing.assert_array_equal(five[name], three[name])
    np.testing.assert_allclose(five["scores"], three["scores"], atol=1e-6)


def assert_as_detect(matched, patches, proposals, memory: Memory, config=CONFIG):
    """What "match" gave for these proposals, against `ntt_jax.detect`."""
    logits, ious, valid, (height, width) = proposals
    wanted = ntt_jax.detect(
        patches,
        logits,
        ious,
        memory.prototypes,
        height=int(height),
        width=int(width),
        config=config,
        valid=valid,
        negatives=memory.negatives,
    )
    assert matched["valid"].sum() > 0
    for name in ("boxes", "labels", "valid"):
        np.testing.assert_array_equal(matched[name], getattr(wanted, name))
    np.testing.assert_allclose(matched["scores"], wanted.scores, atol=1e-6)


def test_encoders_and_matching_alone(exported, models):
    folder, memory = exported
    encoded = np.load(folder / "encoded.npz")
    features, patches = jax.jit(encode_images)(*models, np.load(folder / "resized.npy")[None])
    np.testing.assert_allclose(encoded["embedding"], features.embedding[0], atol=1e-5)
    np.testing.assert_allclose(encoded["patches"], patches[0], atol=1e-5)
    for index in (0, 1):
        np.testing.assert_allclose(encoded[f"high_res{index}"], features.high_res[index][0], atol=1e-5)
    proposals = np.load(folder / "proposals.npz").values()
    assert_as_detect(np.load(folder / "matched.npz"), encoded["patches"], list(proposals), memory.memory)


RULES = {
    "negatives": {},
    "CSLS": {"hubness": "csls"},
    "all classes": {"classes_per_mask": -1, "nms_iou_threshold": 1.0, "merge": "diffusion"},
}


@pytest.mark.parametrize("name", RULES)
def test_matching_with_negatives_and_other_rules(exported, models, name):
    folder, _ = exported
    patches, proposals = np.load(folder / "encoded.npz")["patches"], list(np.load(folder / "proposals.npz").values())
    memory = bank(True).memory
    config = dataclasses.replace(CONFIG, **RULES[name])
    count = None if config.classes_per_mask == 1 else 3
    made = programs(*models, config, negatives=True, class_count=count)["match"]
    program = export.deserialize(bytearray(serialize(made, "cpu", "highest")))
    classes = {"prototypes": memory.prototypes, "negatives": memory.negatives}
    assert_as_detect(program.call(classes, patches, *proposals), patches, proposals, memory, config)


def test_the_folder(exported):
    folder, memory = exported
    info = json.loads((folder / "export.json").read_text())
    assert info["class_names"] == ["a", "b", "c"] and info["platforms"] == ["cpu", "cuda"]
    written = {path.name for path in folder.glob("*.jax")}
    assert written == {f"{name}.{on}.jax" for name in ("detect", "encode", "match", "draw") for on in ("cpu", "cuda")}
    classes = safetensors.numpy.load_file(folder / "classes.safetensors")
    np.testing.assert_array_equal(classes["prototypes"], memory.memory.prototypes)
    assert "import ntt_jax" not in (folder / "load.py").read_text()


def test_programs_for_gpus_are_traced_for_gpus(exported):
    """The decoder takes 4 points at a time on a CPU and all 16 on a GPU: 8 tokens of 32 channels each."""
    chunks = {"cpu": "tensor<4x4x8x32xf32>", "cuda": "tensor<1x16x8x32xf32>"}
    for platform, own in chunks.items():
        program = export.deserialize(bytearray((exported[0] / f"detect.{platform}.jax").read_bytes()))
        assert program.platforms == (platform,)
        text = program.mlir_module()
        assert [chunk for chunk in chunks.values() if chunk in text] == [own]


def test_what_cannot_be_exported(tmp_path, models):
    sam2, dinov2 = models
    with pytest.raises(InputError, match="expected a Sam2"):
        export_folder(tmp_path, dinov2, sam2, bank(False), CONFIG)
    with pytest.raises(InputError, match="platforms: expected cpu and cuda"):
        export_folder(tmp_path, sam2, dinov2, bank(False), CONFIG, platforms=("tpu",))
    with pytest.raises(InputError, match="cannot be written"):
        export_folder(tmp_path / "missing", sam2, dinov2, bank(False), CONFIG)
