"""Masks from boxes and points against Meta's modules put together as its `SAM2ImagePredictor` does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sam2_weights

from ntt_jax.compiled.prompt_masker import Prompt, PromptMasker
from ntt_jax.models.sam2.box_prompts import decode_masks
from ntt_jax.models.sam2.sam2_base import ImageFeatures
from weight_port import convert_state_dict

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
ImagePath = pytest.importorskip("oracle_sam2").ImagePath

CONFIG = sam2_weights.SMALL


@torch.no_grad()
def theirs(oracle, no_mem_embed, image, prompt: Prompt):
    """Meta's steps for one prompt: resize, encode, `no_mem_embed`, corners before points, decode, to full size."""
    height, width = image.shape[:2]
    size = CONFIG.image_size
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pixels = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    levels = oracle.image_encoder(pixels)["backbone_fpn"]
    decoder = oracle.sam_mask_decoder
    high_res = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])]
    embedding = levels[2] + torch.from_numpy(no_mem_embed).view(1, -1, 1, 1)

    points, labels = list(prompt.points), list(prompt.labels or ())
    if prompt.box is not None:
        x, y, w, h = prompt.box
        points, labels = [(x, y), (x + w, y + h), *points], [2, 3, *labels]
    coordinates = torch.tensor([points], dtype=torch.float) / torch.tensor([width, height]) * size
    sparse, dense = oracle.sam_prompt_encoder((coordinates, torch.tensor([labels])), None, None)
    decoder.dynamic_multimask_via_stability = True
    decoder.dynamic_multimask_stability_delta, decoder.dynamic_multimask_stability_thresh = 0.05, 0.98
    several = prompt.box is None and len(prompt.points) == 1
    logits, ious, _, _ = decoder(
        image_embeddings=embedding,
        image_pe=oracle.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
        repeat_image=False,
        high_res_features=high_res,
    )
    best = int(ious[0].argmax())
    full = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return full[0, best].numpy(), float(ious[0, best])


def test_equals_metas_predictor():
    oracle = ImagePath(CONFIG, 0)
    rng = np.random.default_rng(2)
    no_mem_embed = rng.standard_normal(CONFIG.d_model).astype(np.float32)
    state = {**oracle.state_dict(), "no_mem_embed": torch.from_numpy(no_mem_embed).view(1, 1, -1)}
    model = convert_state_dict(state, CONFIG)
    height, width = 190, 310  # masks of 64 x 64 here: smaller images would show that nothing is antialiased
    y, x = np.mgrid[:height, :width]
    image = (127 + 60 * np.sin(x / 9 + y / 17) + rng.normal(0, 20, (height, width)))[..., None].repeat(3, axis=2)
    image = (image * [1, 0.8, 0.6]).clip(0, 255).astype(np.uint8)
    prompts = [
        Prompt((20, 30, 110, 90.5)),
        Prompt(points=((150, 70),)),
        Prompt((5, 5, 300, 180), ((60, 60), (200, 100)), (1, 0)),
        Prompt((200, 100, 60, 60)),
    ]
    masks, ious = PromptMasker(model)(image, prompts)
    assert masks.shape == (len(prompts), height, width)
    for mask, iou, prompt in zip(masks, ious, prompts, strict=True):
        logits, expected = theirs(oracle, no_mem_embed, image, prompt)
        # float32 through the whole model: a pixel may only differ where the logit is next to 0.
        assert abs(iou - expected) < 1e-4
        assert 0.001 < mask.mean() < 0.999
        assert not np.any((mask != (logits > 0)) & (np.abs(logits) > 1e-3 * np.abs(logits).max()))
        assert np.mean(mask != (logits > 0)) < 1e-3


@pytest.mark.parametrize("with_box", [True, pytest.param(False, marks=pytest.mark.large)])
@torch.no_grad()
def test_mask_prompts_equal_metas_predictor(with_box):
    """An earlier mask's logits as the prompt (`mask_input`), with a box and without, on one image's features."""
    oracle = ImagePath(CONFIG, 0)
    model = convert_state_dict(oracle.state_dict(), CONFIG)
    rng = np.random.default_rng(4)
    side, dim = CONFIG.embedding_size, CONFIG.d_model
    shapes = ((side, dim), (4 * side, dim // 8), (2 * side, dim // 4))
    image = [rng.standard_normal((1, size, size, channels)).astype(np.float32) for size, channels in shapes]
    embedding, *high_res = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in image)
    decoder = oracle.sam_mask_decoder
    earlier = rng.normal(0, 5, (3, CONFIG.mask_size, CONFIG.mask_size)).astype(np.float32)
    boxes = np.array([[20, 30, 150, 160], [0, 0, 255, 255], [90, 5, 130, 200]], np.float32)
    points = None
    if with_box:  # corners as points, which a padding point joins, as `_predict` does
        points = torch.from_numpy(boxes).reshape(-1, 2, 2), torch.tensor([[2, 3]] * 3)
    sparse, dense = oracle.sam_prompt_encoder(points, None, torch.from_numpy(earlier)[:, None])
    decoder.dynamic_multimask_via_stability = True
    decoder.dynamic_multimask_stability_delta, decoder.dynamic_multimask_stability_thresh = 0.05, 0.98
    wanted, rated, _, _ = decoder(
        image_embeddings=embedding,
        image_pe=oracle.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        repeat_image=True,
        high_res_features=high_res,
    )
    with jax.default_matmul_precision("highest"):
        features = ImageFeatures(jnp.asarray(image[0]), (jnp.asarray(image[1]), jnp.asarray(image[2])))
        logits, ious = jax.jit(decode_masks)(model, features, earlier, np.ones(3, bool), boxes if with_box else None)
    np.testing.assert_allclose(ious, rated[:, 0].numpy(), atol=1e-5)
    assert np.abs(np.asarray(logits) - wanted[:, 0].numpy()).max() < 1e-4 * np.abs(wanted.numpy()).max()
