"""The whole road on real photographs against Meta's PyTorch modules run the same way, with the recipe's weights."""

import json
import pathlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))

from torch_reference import TorchPass  # noqa: E402

from ntt_jax.cli import main  # noqa: E402
from ntt_jax.config import DINOV2_CONFIGS, SAM2_CONFIGS, DetectConfig  # noqa: E402
from ntt_jax.images.reading import read_image  # noqa: E402
from ntt_jax.images.rle import decode_rle  # noqa: E402
from ntt_jax.memory.bank import load_memory  # noqa: E402
from weight_port import convert  # noqa: E402

SAM2, DINOV2 = SAM2_CONFIGS["sam2_hiera_tiny"], DINOV2_CONFIGS["dinov2_vits14"]
POINTS = 8  # per side: torch decodes one point in 50 ms


@pytest.mark.large
@pytest.mark.parametrize("shots", [1, 2])
def test_run_on_photos_equals_torch(coco_open, tmp_path, shots):
    """`ntt-jax run` on photos, references and targets apart: every detection is torch's, in order."""
    images = json.loads((coco_open / "annotations_val.json").read_text())
    chosen = {image["id"] for image in images["images"][:4]}
    images["images"] = [image for image in images["images"] if image["id"] in chosen]
    images["annotations"] = [a for a in images["annotations"] if a["image_id"] in chosen]
    (tmp_path / "targets.json").write_text(json.dumps(images))

    engine = TorchPass(SAM2, DINOV2, DetectConfig(points_per_side=POINTS), "cpu")
    torch.save({"model": engine.state_dicts[0]}, tmp_path / "sam2.pt")
    torch.save(engine.state_dicts[1], tmp_path / "dinov2.pth")
    for name in ("sam2.pt", "dinov2.pth"):
        convert(tmp_path / name, tmp_path / f"{name}.safetensors")

    out = tmp_path / "run"
    arguments = [
        *("run", "--sam2", tmp_path / "sam2.pt.safetensors", "--dinov2", tmp_path / "dinov2.pth.safetensors"),
        *("--reference-annotations", coco_open / "annotations_train.json", "--images", coco_open / "images"),
        *("--annotations", tmp_path / "targets.json", "--classes", "person,chair,car", "--shots", shots),
        *("--out", out, "--points-per-side", POINTS, "--compilation-cache", "none", "--devices", 1),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    assert json.loads((out / "metrics.json").read_text())["images"] == len(chosen)
    assert results

    bank = load_memory(next(out.rglob("memory.safetensors")))
    prototypes = torch.from_numpy(np.array(bank.memory.prototypes))
    for image in images["images"]:
        found = [r for r in results if r["image_id"] == image["id"]]
        (wanted,) = engine.whole([read_image(coco_open / "images" / image["file_name"])], prototypes)
        assert len(found) == len(wanted["scores"])
        np.testing.assert_allclose([r["score"] for r in found], wanted["scores"], atol=2e-5)
        for result, label, box, mask in zip(found, wanted["labels"], wanted["boxes"], wanted["masks"], strict=True):
            assert result["category_id"] == bank.category_ids[label]
            x1, y1, x2, y2 = box.tolist()
            np.testing.assert_allclose(result["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=1)
            # Masks of random weights cross 0 all over the image, and a logit within rounding of 0 flips its pixel.
            assert (decode_rle(result["segmentation"]) != mask).sum() <= 3 + 1e-5 * mask.size
