"""The shipped checkpoints in Meta's own classes: they load strictly, and give the same outputs there."""

import json
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.config import from_dict
from ntt_jax.demo import demo
from ntt_jax.demo.scenes import make_scene, novel_classes
from ntt_jax.images.preprocess import encoder_input, resize_for_sam, sam_input
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.models.sam2.point_grid.decode_grid import grid_points

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
pytest.importorskip("dinov2")
ImagePath = pytest.importorskip("oracle_sam2").ImagePath

ASSETS = resources.files("ntt_jax") / "assets"
SIDE = json.loads((ASSETS / f"{demo.SAM2_NAME}.json").read_text())["image_size"]


def relative_error(found, expected) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def read(name):
    config = from_dict(json.loads((ASSETS / f"{name}.json").read_text()))
    with resources.as_file(ASSETS / f"{name}.pt") as path:
        return config, torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def images():
    scenes = [make_scene([9, i], novel_classes(i)) for i in range(2)]
    return jnp.asarray(np.stack([resize_for_sam(scene.image, SIDE) for scene in scenes]))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return demo.convert_checkpoints(tmp_path_factory.mktemp("weights"))


def test_sam2(images, converted):
    config, checkpoint = read(demo.SAM2_NAME)
    oracle = ImagePath(config, seed=None)
    assert all(tensor.dtype == torch.float16 for tensor in checkpoint["model"].values())
    state = {k: v.float() for k, v in checkpoint["model"].items()}
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert missing == ["no_mem_embed"] and not unexpected  # the image path alone was trained
    expected = oracle.encode(np.asarray(sam_input(images)))
    ours = load_sam2(converted[0])
    features = jax.jit(lambda model, x: model.encode_image(sam_input(x)))(ours, images)
    assert relative_error(features.embedding, expected["fpn2"]) < 2e-5
    points = grid_points(SIDE, 4)[:, None]
    labels = np.ones(points.shape[:2], np.int32)
    for i in range(len(images)):
        one = features[i : i + 1]
        answer = oracle.decode(one.embedding, one.high_res, points, labels)
        logits, ious = jax.jit(lambda model, *x: model.decode(*x))(ours, one, jnp.asarray(points), jnp.asarray(labels))
        assert relative_error(logits, answer["logits"]) < 1e-4
        assert np.abs(np.asarray(ious) - answer["predicted_ious"]).max() < 1e-5
        assert np.mean((np.asarray(logits) > 0) != (answer["logits"] > 0)) <= 1e-5


def test_dinov2(images, converted):
    from dinov2.models.vision_transformer import DinoVisionTransformer

    config, checkpoint = read(demo.DINOV2_NAME)
    oracle = DinoVisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        init_values=1.0,
        block_chunks=0,
    ).eval()
    oracle.load_state_dict({k: v.float() for k, v in checkpoint.items()}, strict=True)
    inputs = encoder_input(images, config.input_size)
    with torch.no_grad():
        tokens = oracle.forward_features(torch.from_numpy(np.asarray(inputs).transpose(0, 3, 1, 2).copy()))
    expected = tokens["x_norm_patchtokens"].numpy().reshape(len(images), config.grid, config.grid, -1)
    assert relative_error(jax.jit(lambda model, x: model(x))(load_dinov2(converted[1]), inputs), expected) < 1e-5


def test_size():
    total = sum(len((ASSETS / f"{name}.pt").read_bytes()) for name in (demo.SAM2_NAME, demo.DINOV2_NAME))
    assert total < 8_000_000
