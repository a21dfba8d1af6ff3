"""The weight tool against the classes whose checkpoints it reads: Meta's and Hugging Face's."""

import argparse
import functools
import json
import logging

import jax
import ml_dtypes
import numpy as np
import pytest
from recipe import recipe
from weight_checkpoints import DINOV2_GIVEN, SAM2_GIVEN, TINY_DINOV2, TINY_SAM2

import weight_port
from ntt_jax.config import DINOV2_CONFIGS, SAM2_CONFIGS, DinoV2Config, Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.loading import load_dinov2, load_sam2
from weight_port import port
from weight_port.files import InputFile
from weight_port.source import open_source
from weight_port.tensor import tensor_of
from weight_port.torch_file import TorchFile, torch_to_numpy
from weight_port.torch_write import write_torch

torch = pytest.importorskip("torch")
oracle_sam2 = pytest.importorskip("oracle_sam2")
vision_transformer = pytest.importorskip("dinov2.models.vision_transformer")


@pytest.fixture(autouse=True)
def quiet():
    """transformers reports every optional package that is missing."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def meta_sam2(config: Sam2Config, version: str):
    """Meta's whole `SAM2Base`, video part included, with the numbers of its yaml files."""
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base

    d, new = config.d_model, version == "2.1"
    rope = functools.partial(RoPEAttention, embedding_dim=d, num_heads=1, downsample_rate=1, feat_sizes=[16, 16])
    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=rope(rope_k_repeat=True, kv_in_dim=64),
        d_model=d,
        dim_feedforward=2048,
        dropout=0.1,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=rope(),
    )
    model = SAM2Base(
        image_encoder=oracle_sam2.ImagePath(config, seed=None).image_encoder,
        memory_attention=MemoryAttention(d_model=d, pos_enc_at_input=True, layer=layer, num_layers=4),
        memory_encoder=MemoryEncoder(
            in_dim=d,
            out_dim=64,
            mask_downsampler=MaskDownSampler(embed_dim=d, kernel_size=3, stride=2, padding=1),
            fuser=Fuser(CXBlock(dim=d), num_layers=2),
            position_encoding=PositionEmbeddingSine(64),
        ),
        image_size=config.image_size,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=new,
        proj_tpos_enc_in_obj_ptrs=new,
        no_obj_embed_spatial=new,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_multimask_token_for_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
    )
    return model.eval()


def meta_dinov2(config: DinoV2Config):
    model = vision_transformer.DinoVisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        init_values=1.0,
        ffn_layer="swiglufused" if config.ffn_layer == "swiglu" else "mlp",
        block_chunks=0,
        block_fn=functools.partial(vision_transformer.Block, attn_class=vision_transformer.MemEffAttention),
    )
    return model.eval()


def recipe_state(model) -> dict:
    return {name: torch.from_numpy(recipe(name, tensor.shape)) for name, tensor in model.state_dict().items()}


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def round_trip(tmp_path, state, wrap, given=None):
    """Save, convert, export, read again: the same bits. Returns the path of the converted file."""
    torch.save({"model": state} if wrap else state, tmp_path / "original.pt")
    port.convert(tmp_path / "original.pt", tmp_path / "ours.safetensors", given=given)
    port.export(tmp_path / "ours.safetensors", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == ["model"] if wrap else "model" not in back
    assert_same(back["model"] if wrap else back, state)
    return tmp_path / "ours.safetensors"


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_sam2_round_trip_and_outputs(tmp_path, version):
    """Small sizes: bit for bit back into Meta's class, strict; ours computes what Meta's computes from the file."""
    torch_model = meta_sam2(TINY_SAM2, version)
    state = recipe_state(torch_model)
    ours = load_sam2(round_trip(tmp_path, state, True, SAM2_GIVEN))
    exported = torch.load(tmp_path / "back.pt", weights_only=True)["model"]
    torch_model.load_state_dict(exported, strict=True)
    if version == "2.0":
        return  # the image path is that of 2.1
    oracle = oracle_sam2.ImagePath(TINY_SAM2, seed=None)
    oracle.load_state_dict({n: t for n, t in exported.items() if n in oracle.state_dict()}, strict=True)
    images = np.random.default_rng(0).standard_normal((1, 256, 256, 3)).astype(np.float32)
    expected = oracle.encode(images)
    features = jax.jit(lambda m, x: m.encode_image(x))(ours, images)
    assert relative_error(features.embedding, expected["fpn2"]) <= 2e-5
    points = np.array([[[30.0, 200.0]], [[128.0, 40.0]]], np.float32)
    labels = np.array([[1], [0]], np.int32)
    want = oracle.decode(expected["fpn2"], [expected["high_res0"], expected["high_res1"]], points, labels)
    logits, ious = jax.jit(lambda m, f, p, c: m.decode(f, p, c))(ours, features, points, labels)
    assert relative_error(logits, want["logits"]) <= 1e-4
    assert relative_error(ious, want["predicted_ious"]) <= 1e-5


@pytest.mark.parametrize("ffn_layer", ["mlp", "swiglu"])
def test_dinov2_round_trip_and_outputs(tmp_path, ffn_layer):
    config = DinoV2Config(**{**TINY_DINOV2.__dict__, "ffn_layer": ffn_layer})
    torch_model = meta_dinov2(config)
    ours = load_dinov2(round_trip(tmp_path, recipe_state(torch_model), False, DINOV2_GIVEN))
    assert ours.config == config
    torch_model.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True), strict=True)
    images = np.random.default_rng(0).standard_normal((1, 84, 56, 3)).astype(np.float32)
    with torch.no_grad():
        want = torch_model.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))["x_norm_patchtokens"]
    found = jax.jit(lambda m, x: m(x))(ours, images)
    assert relative_error(found, want.reshape(1, 6, 4, -1)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in recipe_state(meta_dinov2(TINY_DINOV2)).items()}
    ours = load_dinov2(round_trip(tmp_path, state, False, DINOV2_GIVEN))
    assert ours.norm.scale[...].dtype == np.float32


def test_published_tiny_sam2(tmp_path):
    """The real key set and shapes, recognised without help."""
    name = "sam2.1_hiera_tiny"
    torch_model = meta_sam2(SAM2_CONFIGS[name], "2.1")
    path = round_trip(tmp_path, recipe_state(torch_model), True)
    assert port.read_converted(path).config == SAM2_CONFIGS[name]
    torch_model.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True)["model"], strict=True)


def test_published_small_dinov2(tmp_path):
    path = round_trip(tmp_path, recipe_state(meta_dinov2(DINOV2_CONFIGS["dinov2_vits14"])), False)
    assert port.read_converted(path).config == DINOV2_CONFIGS["dinov2_vits14"]


@pytest.mark.large
@pytest.mark.parametrize("name", [name for name in SAM2_CONFIGS if name != "sam2.1_hiera_tiny"])
def test_published_large_sam2(tmp_path, name):
    torch_model = meta_sam2(SAM2_CONFIGS[name], "2.1" if "2.1" in name else "2.0")
    path = round_trip(tmp_path, recipe_state(torch_model), True)
    assert load_sam2(path).config == SAM2_CONFIGS[name]


@pytest.mark.large
@pytest.mark.parametrize("name", ["dinov2_vitb14", "dinov2_vitl14"])
def test_published_large_dinov2(tmp_path, name):
    path = round_trip(tmp_path, recipe_state(meta_dinov2(DINOV2_CONFIGS[name])), False)
    assert load_dinov2(path).config == DINOV2_CONFIGS[name]


def test_recorded_key_sets_are_met(golden):
    """Keys and shapes of four checkpoints as the research code saw them."""
    for file, model in [("shapes_sam2_hiera_t", "sam2_hiera_tiny"), ("shapes_sam2_hiera_l", "sam2_hiera_large")] + [
        (f"shapes_dinov2_vit_{size}", f"dinov2_vit{size[0]}14") for size in ("small", "large")
    ]:
        shapes = json.loads((golden / f"{file}.json").read_text())
        tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        assert port.check_tensors(tensors, file).config.name == model


def test_torch_tensors_in_memory():
    torch_model = meta_dinov2(TINY_DINOV2)
    torch_model.load_state_dict(recipe_state(torch_model))
    ours = weight_port.convert_state_dict(torch_model.state_dict(), TINY_DINOV2)
    found = weight_port.export_state_dict(ours)
    torch_model.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()}, strict=True)
    assert set(found) == set(torch_model.state_dict())


def test_what_lies_beside_the_model_is_named_and_left_out(tmp_path):
    state = recipe_state(meta_dinov2(TINY_DINOV2))
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"model": state, "epoch": 3, "optimizer": optimizer}, tmp_path / "training.pt")
    assert open_source(tmp_path / "training.pt").beside == ["epoch", "optimizer"]


def test_objects_beside_the_model_are_named_and_never_built(tmp_path):
    """What trainers put beside the weights, in every protocol of pickle: the tensors are the plain file's."""
    state = recipe_state(meta_dinov2(TINY_DINOV2))
    beside = {"args": argparse.Namespace(lr=1e-4), "best": np.float64(0.3), "seen": {1, 2}, "table": {(1, 2): 3}}
    for protocol in range(2, 6):
        torch.save({"model": state, **beside}, tmp_path / "training.pt", pickle_protocol=protocol)
        source = open_source(tmp_path / "training.pt")
        assert [name.split(" ")[0] for name in source.beside] == list(beside)
        assert source.beside[0] == "args (argparse.Namespace)"
        for name, tensor in state.items():
            np.testing.assert_array_equal(source.tensors[name], tensor.numpy())


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path):
    """Types, strides, offsets, empty and scalar tensors, shared storages, parameters with state."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    parameter = torch.nn.Parameter(base.clone())
    parameter.note = "attributes are no weights"
    views = {
        "t": base.T,
        "s": base[1:3, ::2],
        "o": base[2, 3],
        "e": base[:0],
        "x": base[:1].expand(3, 6),
        "p": parameter,
    }
    kinds = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    views |= {kind: (base % 2).to(getattr(torch, kind)) for kind in kinds}
    torch.save(views, tmp_path / "views.pt")
    file = TorchFile(InputFile(tmp_path / "views.pt"))
    found = file.tensors(file.root)
    for name, tensor in views.items():
        expected = torch_to_numpy(tensor)
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape), name
        assert np.asarray(found[name]).tobytes() == np.ascontiguousarray(expected).tobytes(), name


def test_what_is_written_without_torch_torch_can_map(tmp_path):
    kinds = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_)
    arrays = {str(np.dtype(kind)): np.arange(10).astype(kind).reshape(2, 5) for kind in kinds}
    arrays |= {"scalar": np.array(3.0, np.float32), "empty": np.zeros((0, 3), np.float32)}
    write_torch(tmp_path / "ours.pt", {name: tensor_of(array) for name, array in arrays.items()}, wrap=True)
    for mapped in (False, True):
        found = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mapped)["model"]
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].data_ptr() % 64 == 0 and found[name].is_contiguous()
            assert torch_to_numpy(found[name]).tobytes() == array.tobytes() and tuple(found[name].shape) == array.shape


def test_parameters_views_and_attributes(tmp_path):
    """Parameters instead of tensors, an OrderedDict with its `_metadata`, a transposed view: all the same weights."""
    torch_model = meta_dinov2(TINY_DINOV2)
    torch_model.load_state_dict(recipe_state(torch_model))
    state = torch_model.state_dict(keep_vars=True)
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"].detach().T.contiguous().T
    torch.save(state, tmp_path / "state.pth")
    found = open_source(tmp_path / "state.pth").tensors
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())


def test_torch_files_that_are_refused(tmp_path):
    def refuses(message, value, **options):
        torch.save(value, tmp_path / "bad.pt", **options)
        with pytest.raises(InputError, match=message):
            port.convert(tmp_path / "bad.pt", tmp_path / "out", given=DINOV2_GIVEN)
        assert [p.name for p in tmp_path.iterdir()] == ["bad.pt"]

    state = recipe_state(meta_dinov2(TINY_DINOV2))
    refuses(
        "one written by torch before 1.6, expected a zip archive.*torch.save",
        state,
        _use_new_zipfile_serialization=False,
    )
    refuses("asks for", torch.nn.Linear(2, 2))
    refuses("norm.bias is float64", state | {"norm.bias": state["norm.bias"].double()})
    refuses("norm.bias is int64", state | {"norm.bias": state["norm.bias"].long()})
    refuses("its tensors would take", state | {"x": torch.zeros(1).expand(10**9)})
    refuses("pickle|asks for", state | {"x": torch.zeros(2).to_sparse()})
    refuses("1 of 16 numbers that are NaN", state | {"norm.bias": torch.tensor([float("nan")] + [0.0] * 15)})
    torch.save(state, tmp_path / "bad.pt")
    data = (tmp_path / "bad.pt").read_bytes()
    for cut in (10, len(data) // 2, len(data) - 10):
        (tmp_path / "bad.pt").write_bytes(data[:cut])
        with pytest.raises(InputError, match="damaged or truncated archive"):
            port.convert(tmp_path / "bad.pt", tmp_path / "out")


def save_huggingface(model, folder, **options):
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    model.eval().save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize(("registers", "swiglu"), [(False, False), (False, True), (True, False), (True, True)])
def test_huggingface_dinov2(tmp_path, registers, swiglu):
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        use_swiglu_ffn=swiglu,
    )
    # Several shards, and heads that only the configuration beside them states.
    model = save_huggingface(getattr(transformers, f"{kind}Model")(config), tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    source, _ = port.convert(tmp_path, tmp_path / "ours")
    assert source.form == "safetensors, Hugging Face's names"
    ours = load_dinov2(tmp_path / "ours")
    assert (ours.config.num_heads, ours.config.num_register_tokens) == (4, 4 * registers)
    images = np.random.default_rng(0).standard_normal((2, 56, 56, 3)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state[:, 1 + 4 * registers :]
    assert relative_error(jax.jit(lambda m, x: m(x))(ours, images), want.reshape(2, 4, 4, -1)) <= 1e-5


def huggingface_sam2(transformers, video: bool):
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=24,
        num_attention_heads=1,
        image_size=[256, 256],
        blocks_per_stage=[1, 2, 4, 1],
        embed_dim_per_stage=[24, 48, 96, 192],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 14, 7],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[4, 6],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[192, 96, 48, 24],
        backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
        fpn_hidden_size=96,
    )
    kind = "Sam2Video" if video else "Sam2"
    prompt = getattr(transformers, f"{kind}PromptEncoderConfig")(hidden_size=96, image_size=256)
    decoder = getattr(transformers, f"{kind}MaskDecoderConfig")(hidden_size=96)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    return getattr(transformers, f"{kind}Model")(config)


def test_huggingface_sam2(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = huggingface_sam2(transformers, video=False)
    save_huggingface(model, tmp_path)
    with pytest.raises(InputError, match="SAM 2 has one matrix for both"):  # random ones differ, trained ones never
        port.convert(tmp_path, tmp_path / "ours")
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    with torch.no_grad():
        model.no_memory_embedding.zero_()  # transformers adds it to the image embedding, the method does not
    model.save_pretrained(tmp_path)
    _, weights = port.convert(tmp_path, tmp_path / "ours")
    assert "no_mem_embed" in weights.tensors and not weights.carried and not weights.complete
    ours = load_sam2(tmp_path / "ours")
    assert ours.config.hiera.window_spec == (8, 4, 14, 7) and ours.config.image_size == 256
    images = np.random.default_rng(0).standard_normal((1, 256, 256, 3)).astype(np.float32)
    points = np.array([[[30.0, 200.0]], [[128.0, 40.0]]], np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        want = model(
            pixel_values=pixels,
            input_points=torch.from_numpy(points)[None],
            input_labels=torch.ones(1, 2, 1, dtype=torch.int64),
            multimask_output=True,
        )
    features = jax.jit(lambda m, x: m.encode_image(x))(ours, images)
    logits, ious = jax.jit(lambda m, f, p, c: m.decode(f, p, c))(ours, features, points, np.ones((2, 1), np.int32))
    assert relative_error(logits[:, 1:], want.pred_masks[0]) <= 1e-4
    assert relative_error(ious[:, 1:], want.iou_scores[0]) <= 1e-5


def test_huggingface_video_sam2_becomes_metas(tmp_path):
    """All tensors of the hub's files, which are `Sam2VideoModel`'s, find their place in Meta's class."""
    transformers = pytest.importorskip("transformers")
    model = huggingface_sam2(transformers, video=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    state = model.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")  # Hugging Face's names in PyTorch's container
    tensors = open_source(tmp_path / "pytorch_model.bin").tensors
    meta = meta_sam2(TINY_SAM2, "2.1").state_dict()
    assert set(tensors) == set(meta)
    different = {n: (tensors[n].shape, tuple(t.shape)) for n, t in meta.items() if tensors[n].shape != tuple(t.shape)}
    assert not [name for name in different if not name.startswith("memory_")]  # memory sizes follow other defaults
    fc = "mask_decoder.transformer.layers.1.mlp.proj_out.weight"
    np.testing.assert_array_equal(tensors["sam_mask_decoder.transformer.layers.1.mlp.layers.1.weight"], state[fc])
    last = state["object_pointer_proj.proj_out.bias"]
    np.testing.assert_array_equal(tensors["obj_ptr_proj.layers.2.bias"], last)


def test_fuzz_torch_files(tmp_path):
    """A real checkpoint with changed bytes, mostly in pickle and directory, is refused by our error or fits."""
    torch.save(recipe_state(meta_dinov2(TINY_DINOV2)), tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    pickle_end, directory = good.index(b"PK\x03\x04", 10), good.index(b"PK\x01\x02")
    random = np.random.default_rng(0)
    refused = 0
    for round_ in range(600):
        bad = bytearray(good)
        low, high = [(0, pickle_end), (directory, len(good)), (0, len(good))][round_ % 3]
        for position in random.integers(low, high, random.integers(1, 4)):
            bad[position] = random.integers(256)
        (tmp_path / "bad.pt").write_bytes(bad)
        try:
            port.check_tensors(open_source(tmp_path / "bad.pt").tensors, "bad.pt", given=DINOV2_GIVEN)
        except InputError as e:
            assert "\n" not in str(e)
            refused += 1
    assert refused > 300  # the archive's checksums cover the pickle; a changed weight that stays finite is no error
