"""DINOv3: against Hugging Face's module where it is installed, against its recorded outputs everywhere, and the slot.

Random weights: the recipe's tensor for every key of a checkpoint.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recipe import recipe
from sam2_weights import SMALL
from sam2_weights import skeleton as skeleton_sam2

import ntt_jax
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DINOV2_CONFIGS, DINOV3_CONFIGS, DetectConfig, DinoV3Config, from_dict, to_dict
from ntt_jax.errors import InputError
from ntt_jax.memory import aggregate_memory
from ntt_jax.memory.bank import MemoryBank, require_encoder
from ntt_jax.models.dinov3 import DINOv3ViTModel, patch_rotation, rotated
from ntt_jax.pipeline import check_models, segment
from ntt_jax.runs.models import read_encoder
from weight_port import convert, convert_state_dict, export_state_dict
from weight_port.port import inspect
from weight_port.rules import skeleton
from weight_port.store import Item, write_safetensors

# Heads of 12 channels: a rotation that mixes rows with columns, or pairs the wrong channels, shows.
TINY = DinoV3Config("tiny", 48, 3, 4, 80, num_register_tokens=4, patch_size=16, input_size=64)
TOLERANCE = 1e-5
RECORDED = "dinov3_tiny_3x5.npz"


def checkpoint(config: DinoV3Config, seed: int = 0) -> dict[str, np.ndarray]:
    """The recipe's tensors under Hugging Face's names."""
    rules = skeleton(config).rules.values()
    # The recipe knows the factors of LayerScale by Meta's name.
    return {r.torch_name: recipe(r.torch_name.replace("lambda1", "gamma"), r.torch_shape, seed) for r in rules}


@pytest.fixture(scope="module")
def tiny() -> DINOv3ViTModel:
    return convert_state_dict(checkpoint(TINY), TINY)


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)


@jax.jit
def stages(model, images):
    return model.forward_features(images)


def check(found: dict, expected: dict) -> None:
    """Every stage within 1e-5 of its largest number."""
    assert set(found) == set(expected)
    errors = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape
        errors[name] = float(np.abs(np.asarray(found[name]) - value).max() / np.abs(value).max())
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst} {errors[worst]:.2e}"


def oracle_stages(config: DinoV3Config, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same stages by `transformers`' module, filled with the recipe's tensors."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DINOv3ViTModel"):
        pytest.skip("this transformers has no DINOv3")
    with torch.device("meta"):
        module = transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                hidden_size=config.embed_dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads,
                intermediate_size=config.ffn_hidden_dim,
                num_register_tokens=config.num_register_tokens,
                patch_size=config.patch_size,
                rope_theta=config.rope_theta,
                attn_implementation="eager",
            )
        )
    module = module.to_empty(device="cpu")
    module.rope_embeddings = type(module.rope_embeddings)(module.config)  # its frequencies are in no checkpoint
    module.eval()  # in training it moves the places of the patches at random
    own = {key.removeprefix("model."): key for key in module.state_dict()}
    tensors = checkpoint(config)
    assert set(own) == set(tensors)
    module.load_state_dict({own[name]: torch.from_numpy(value) for name, value in tensors.items()}, strict=True)
    found: dict[str, np.ndarray] = {}

    def keep(name, args, output):
        found[name] = output.numpy().copy()

    layers = module.model.layer if hasattr(module, "model") else module.layer
    parts = [("tokens0", module.embeddings), *((f"block{i}", x) for i, x in enumerate(layers)), ("norm", module.norm)]
    for name, part in parts:
        part.register_forward_hook(lambda _, args, output, name=name: keep(name, args, output))
    with torch.no_grad():
        module(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    return found


@pytest.mark.parametrize("shape", [(2, 48, 80), (1, 64, 64), (1, 16, 128)])
def test_every_block_equals_transformers(tiny, shape):
    images = random_images(*shape)
    check(stages(tiny, images), oracle_stages(TINY, images))


@pytest.mark.parametrize(
    "name",
    ["dinov3_vits16", *(pytest.param(f"dinov3_vit{size}16", marks=pytest.mark.large) for size in "bl")],
)
def test_published_sizes_equal_transformers(name):
    """At 6 x 4 patches; the small one in every run."""
    config = DINOV3_CONFIGS[name]
    images = random_images(1, 96, 64)
    check(stages(convert_state_dict(checkpoint(config), config), images), oracle_stages(config, images))


def test_recorded_outputs_of_transformers(tiny, recorded):
    """Without transformers: what it gave for the tiny model (`python tests/models/test_dinov3.py` recorded it)."""
    with np.load(recorded(RECORDED)) as file:
        check(stages(tiny, random_images(1, 48, 80)), dict(file))


def test_patches_are_the_result(tiny):
    images = random_images(2, 48, 80)
    patches = jax.jit(lambda m, x: m(x))(tiny, images)
    assert patches.shape == (2, 3, 5, 48) and patches.dtype == jnp.float32
    np.testing.assert_array_equal(patches.reshape(2, 15, 48), stages(tiny, images)["norm"][:, 5:])


def test_rotations_keep_lengths_and_depend_on_differences_of_places():
    """The product of two rotated vectors depends on where their patches lie to each other, not on where they are."""
    cos, sin = patch_rotation(4, 4, TINY, still=1)
    assert cos.shape == sin.shape == (17, 6)
    np.testing.assert_array_equal(cos[0], 1)  # the token that is no patch
    np.testing.assert_array_equal(sin[0], 0)
    q, k = (
        jnp.broadcast_to(jnp.asarray(x, jnp.float32), (1, 17, 1, 12))
        for x in random_images(4, 1).reshape(1, 12).repeat(2, 0)
    )
    products = jnp.einsum("nd,md->nm", rotated(q, cos, sin)[0, :, 0], rotated(k, cos, sin)[0, :, 0])[1:, 1:]
    products = np.asarray(products).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(products[0, 0, 1, 2], products[2, 1, 3, 3], rtol=1e-5)
    np.testing.assert_allclose(np.einsum("aaaa->a", products[:, :, :, :]), products[0, 0, 0, 0], rtol=1e-5)
    assert abs(products[0, 0, 1, 2] - products[0, 0, 2, 1]) > 1e-3  # rows are not columns


def test_bfloat16_stays_close(tiny):
    images = random_images(1, 48, 80)
    half = convert_state_dict(checkpoint(TINY), TINY, dtype="bfloat16")
    assert half.layer[0].attention.q_proj.kernel.dtype == jnp.bfloat16
    assert half.layer[0].norm1.scale.dtype == half.embeddings.cls_token.dtype == jnp.float32
    a, b = (stages(model, images) for model in (half, tiny))
    assert all(value.dtype == jnp.float32 for value in a.values())
    assert np.abs(a["norm"] - b["norm"]).max() / np.abs(b["norm"]).max() < 0.03


def test_every_parameter_but_the_mask_token_gets_a_gradient(tiny):
    images = random_images(1, 32, 48)
    gradients = jax.jit(jax.grad(lambda m, x: jnp.sum(jnp.sin(m(x)))))(tiny, images)
    for path, value in nnx.to_flat_state(nnx.state(gradients)):
        assert bool(np.asarray(value[...]).any()) is (path[-1] != "mask_token"), path


@pytest.mark.parametrize("name", DINOV3_CONFIGS)
def test_published_shapes(name):
    """From shapes alone. The method's square image has 37 x 37 patches, as DINOv2's."""
    config = DINOV3_CONFIGS[name]
    assert (config.input_size, config.grid) == (592, 37)
    model = nnx.eval_shape(lambda: DINOv3ViTModel(config, rngs=nnx.Rngs(0)))
    shape = (2, config.input_size, config.input_size, 3)
    out = jax.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert out.shape == (2, 37, 37, config.embed_dim)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 50}, "multiple of 4 num_heads, 16"),
        ({"input_size": 63}, "input_size a multiple of patch_size"),
        ({"rope_theta": 0.0}, "rope_theta"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        DINOv3ViTModel(dataclasses.replace(TINY, **changes), rngs=nnx.Rngs(0))


def test_bad_images_are_refused(tiny):
    for images, message in (
        (np.zeros((1, 50, 48, 3), np.float32), "multiples of 16, found 50 x 48"),
        (np.zeros((48, 48, 3), np.float32), r"expected shape \[B, H, W, 3\]"),
        (np.zeros((1, 48, 48, 3), np.uint8), "floating-point"),
    ):
        with pytest.raises(InputError, match=f"DINOv3 images: .*{message}"):
            tiny(images)


# -- the weight tool and the slot -----------------------------------------------------------------------------------


def write_checkpoint(folder: Path, config: DinoV3Config, *, prefix: str = "", **changes) -> Path:
    """A Hugging Face folder: model.safetensors with its names, and config.json."""
    folder.mkdir()
    tensors = checkpoint(config)
    items = [
        Item(prefix + name if name.startswith("layer.") else name, v.dtype, v.shape, partial(np.copy, v))
        for name, v in tensors.items()
    ]
    write_safetensors(folder / "model.safetensors", items, {"format": "pt"})
    content = {
        "model_type": "dinov3_vit",
        "num_attention_heads": config.num_heads,
        "rope_theta": 100.0,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dinov3")
    convert(write_checkpoint(folder / "hub", TINY), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def test_a_checkpoint_of_the_hub_is_loaded(converted, tiny):
    """Heads, which no tensor shows, come from config.json; the image's side keeps 37 x 37 patches."""
    model = ntt_jax.load_dinov2(converted)
    assert model.config == dataclasses.replace(TINY, name="dinov3_custom", input_size=592)
    images = random_images(1, 48, 80)
    np.testing.assert_array_equal(
        jax.jit(lambda m, x: m(x))(model, images), stages(tiny, images)["norm"][:, 5:].reshape(1, 3, 5, 48)
    )
    for name, value in checkpoint(TINY).items():
        np.testing.assert_array_equal(export_state_dict(model)[name], value)


def test_names_of_transformers_5_are_read(tmp_path):
    """In memory the names of its layers begin with "model."."""
    _, weights = inspect(write_checkpoint(tmp_path / "a", TINY, prefix="model."))
    assert weights.config == dataclasses.replace(TINY, name="dinov3_custom", input_size=592)


def test_published_sizes_are_recognised():
    for config in DINOV3_CONFIGS.values():
        shapes = {r.torch_name: np.broadcast_to(np.float32(0), r.torch_shape) for r in skeleton(config).rules.values()}
        assert convert_config(shapes) == config


def convert_config(tensors):
    from weight_port.port import check_tensors

    return check_tensors(tensors, "checkpoint").config


def test_other_variants_are_refused(tmp_path):
    with pytest.raises(InputError, match="layer_norm_eps is 1e-06"):
        inspect(write_checkpoint(tmp_path / "epsilon", TINY, layer_norm_eps=1e-6))
    gated = checkpoint(TINY) | {"layer.0.mlp.gate_proj.weight": np.zeros((80, 48), np.float32)}
    with pytest.raises(InputError, match=r"gated feed-forward layers .* are supported"):
        convert_config(gated)


def test_memories_of_two_encoders_do_not_mix(converted):
    config, sha256, weights = read_encoder(converted)
    features = jnp.asarray(random_images(1, 2, 37 * 37 * 16).reshape(1, 2, 37 * 37, 48))
    memory = aggregate_memory(features, jnp.ones((1, 2, 37 * 37)))
    bank = MemoryBank(memory, ("bird",), (1,), config, {"encoder_sha256": sha256})
    require_encoder(bank, config, sha256)
    with pytest.raises(
        InputError, match=r"made with dinov3_custom \(model dinov3\), the encoder given is dinov2_vits14"
    ):
        require_encoder(bank, DINOV2_CONFIGS["dinov2_vits14"])
    with pytest.raises(InputError, match="another checkpoint of dinov3_custom"):
        require_encoder(bank, config, "0" * 64, weights)


def test_the_method_takes_it_by_its_own_patches(tiny):
    """References through the compiled encoder, and the target pass by its shapes: 4 x 4 patches of 16 pixels."""
    encoder = ReferenceEncoder(tiny, batch_size=4)
    crops, masks = random_images(3, 64, 64), np.ones((3, 4, 4), np.float32)
    means = encoder(list(crops), list(masks))
    expected = stages(tiny, crops)["norm"][:, 5:].mean(axis=1)
    np.testing.assert_allclose(means, expected, atol=1e-5)
    found = jax.eval_shape(
        lambda *arrays: segment(*arrays, DetectConfig(points_per_side=4)),
        skeleton_sam2(SMALL),
        tiny,
        jnp.asarray(means),
        jax.ShapeDtypeStruct((100, 150, 3), jnp.uint8),
    )
    assert found.masks.shape[1:] == (100, 150)
    with pytest.raises(InputError, match="expected a DinoVisionTransformer or DINOv3ViTModel, found Sam2"):
        check_models(skeleton_sam2(SMALL), skeleton_sam2(SMALL))


if __name__ == "__main__":  # records what transformers gives for the tiny model
    path = Path(__file__).parents[1] / "golden" / "recorded" / RECORDED
    np.savez_compressed(path, **oracle_stages(TINY, random_images(1, 48, 80)))
    print(path, path.stat().st_size, "bytes")
