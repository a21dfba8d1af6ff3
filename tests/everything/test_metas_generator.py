"""All masks of an image against Meta's `SAM2AutomaticMaskGenerator` over Meta's modules, with the small model."""

import json
import sys
import types
from importlib import resources

import numpy as np
import pytest

from ntt_jax.config import Sam2Config, from_dict
from ntt_jax.demo.scenes import SceneConfig, make_scene, novel_classes
from ntt_jax.everything import generate_masks
from ntt_jax.images.rle import decode_rle
from weight_port import convert_state_dict

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
ImagePath = pytest.importorskip("oracle_sam2").ImagePath
ASSETS = resources.files("ntt_jax") / "assets"


def nms(boxes, scores, idxs, iou_threshold):
    """`torchvision.ops.batched_nms` of one category, by its definition."""
    order = scores.sort(stable=True, descending=True)[1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive, kept = torch.ones(len(boxes), dtype=torch.bool), []
    for place, i in enumerate(order):
        if alive[i]:
            kept.append(int(i))
            for j in order[place + 1 :]:
                low, high = torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:])
                common = (high - low).clamp(min=0).prod()
                alive[j] &= not bool(common / (areas[i] + areas[j] - common) > iou_threshold)
    return torch.tensor(kept, dtype=torch.long)


class Predictor:
    """Meta's `SAM2ImagePredictor` as far as its generator uses it; the real one needs torchvision."""

    device = "cpu"

    def __init__(self, oracle, no_mem_embed, config):
        self.oracle, self.no_mem_embed, self.size = oracle, no_mem_embed, config.image_size
        self._transforms = self

    def transform_coords(self, points, normalize, orig_hw):
        return points / torch.tensor([orig_hw[1], orig_hw[0]]) * self.size

    @torch.no_grad()
    def set_image(self, image):
        self.shape = image.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        pixels = torch.nn.functional.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        levels = self.oracle.image_encoder(pixels)["backbone_fpn"]
        decoder = self.oracle.sam_mask_decoder
        self.high_res = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])]
        self.embedding = levels[2] + self.no_mem_embed.view(1, -1, 1, 1)

    @torch.no_grad()
    def _predict(self, points, labels, multimask_output, return_logits):
        sparse, dense = self.oracle.sam_prompt_encoder((points, labels), None, None)
        logits, ious, _, _ = self.oracle.sam_mask_decoder(
            image_embeddings=self.embedding,
            image_pe=self.oracle.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            repeat_image=True,
            high_res_features=self.high_res,
        )
        full = torch.nn.functional.interpolate(logits, self.shape, mode="bilinear", align_corners=False)
        return full, ious, logits

    def reset_predictor(self):
        pass


@pytest.fixture(scope="module")
def generator_of():
    """Meta's generator; torchvision, which it imports, stands in for the import alone."""
    box_area = lambda boxes: (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # noqa: E731
    transforms = types.ModuleType("torchvision.transforms")
    for name in ("Normalize", "Resize", "ToTensor"):
        setattr(transforms, name, object)
    boxes = types.ModuleType("torchvision.ops.boxes")
    vars(boxes).update(batched_nms=nms, box_area=box_area)
    stand_ins = {"torchvision.transforms": transforms, "torchvision.ops.boxes": boxes}
    stand_ins |= {name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    def make(predictor, **settings):
        model = types.SimpleNamespace(image_size=predictor.size, device="cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sam2.automatic_mask_generator.SAM2ImagePredictor", lambda model, **_: predictor)
            return SAM2AutomaticMaskGenerator(model, output_mode="binary_mask", points_per_batch=256, **settings)

    return make


@pytest.fixture(scope="module")
def models():
    config = from_dict(json.loads((ASSETS / "sam2_ntt_small.json").read_text()))
    assert isinstance(config, Sam2Config)
    with resources.as_file(ASSETS / "sam2_ntt_small.pt") as path:
        state = {name: value.float() for name, value in torch.load(path, weights_only=True)["model"].items()}
    # The small model has none of its own.
    embed = torch.from_numpy(np.random.default_rng(1).normal(0, 0.01, config.d_model).astype(np.float32))
    oracle = ImagePath(config, seed=None)
    oracle.load_state_dict(state, strict=False)
    model = convert_state_dict({**state, "no_mem_embed": embed.view(1, 1, -1)}, config)
    return model, Predictor(oracle, embed, config)


# Masks of 80 x 80 pixels, as the small model's, are less stable at their edges than those of the defaults' 256 x 256.
SETTINGS = {
    "defaults but for stability": {"points_per_side": 6, "stability_score_thresh": 0.6},
    "crops, looser": {
        "points_per_side": 6,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.6,
        "stability_score_offset": 0.5,
        "box_nms_thresh": 0.9,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "crop_nms_thresh": 0.5,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_metas_generator(models, generator_of, name):
    model, predictor = models
    scenes = [make_scene([7, i], novel_classes(0), config=SceneConfig(empty=0)) for i in range(8)]
    image = max(scenes, key=lambda scene: len(scene.masks)).image
    settings = SETTINGS[name]
    found = generate_masks(model, image, **settings).to_sam()
    expected = generator_of(predictor, **settings).generate(image)
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert one["bbox"] == other["bbox"] and one["crop_box"] == other["crop_box"]
        np.testing.assert_allclose(one["point_coords"], other["point_coords"], rtol=1e-6)
        assert abs(one["predicted_iou"] - other["predicted_iou"]) < 1e-4
        assert abs(one["stability_score"] - other["stability_score"]) < 1e-3
        # float32 through the whole model: a pixel may only differ where the logit is next to 0.
        assert np.count_nonzero(decode_rle(one["segmentation"]) != other["segmentation"]) <= 3
        assert abs(one["area"] - other["area"]) <= 3
