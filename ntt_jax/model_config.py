"""Configurations of the models in every published size, as plain data, and their way to JSON and back."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ntt_jax.errors import InputError

MAX_SIDE = 2048
"""Pixels along the side of what a model is given: twice SAM 2's, four times DINOv2's. No tensor shows this size, and
the memory that attention takes grows with its fourth power, so a larger one in a file is a fault or a trap."""


@dataclass(frozen=True)
class DinoV2Config:
    """DINOv2 vision transformer. Mirrors `dinov2.models.vision_transformer.DinoVisionTransformer`.

    `image_size` is the side, in pixels, for which the stored position table was made; other inputs resize the table.
    `interpolate_offset` and `interpolate_antialias` say how: (0.1, False) for the plain models, (0.0, True) for those
    with registers. `ffn_layer` is "mlp" or "swiglu" (the giant's fused gate).
    """

    name: str = "dinov2_vitl14"
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    ffn_layer: str = "mlp"
    num_register_tokens: int = 0
    patch_size: int = 14
    image_size: int = 518
    interpolate_offset: float = 0.1
    interpolate_antialias: bool = False
    # Side in pixels of the square image the method feeds this model (METHOD stage 1 and 3: 518).
    input_size: int = 518

    @property
    def ffn_hidden_dim(self) -> int:
        """Width of the hidden layer. The fused SwiGLU takes 2/3 of it, rounded up to a multiple of 8."""
        hidden = int(self.embed_dim * self.mlp_ratio)
        return (int(hidden * 2 / 3) + 7) // 8 * 8 if self.ffn_layer == "swiglu" else hidden

    @property
    def grid(self) -> int:
        """Patches along one side of the method's square input (37 for 518)."""
        return self.input_size // self.patch_size


@dataclass(frozen=True)
class DinoV3Config:
    """DINOv3 vision transformer. Mirrors `transformers`' `DINOv3ViTModel`.

    There is no position table, so any image of whole patches will do: `input_size` is the side, in pixels, of the
    square image that the method feeds this model. By default it has the method's 37 x 37 patches.
    """

    name: str = "dinov3_vitl16"
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    ffn_hidden_dim: int = 4096
    num_register_tokens: int = 4
    patch_size: int = 16
    rope_theta: float = 100.0
    input_size: int = 592

    @property
    def grid(self) -> int:
        """Patches along one side of the method's square input (37 for 592)."""
        return self.input_size // self.patch_size


EncoderConfig = DinoV2Config | DinoV3Config
"""Configuration of what gives the method its patch features."""


@dataclass(frozen=True)
class HieraConfig:
    """Hiera trunk. Mirrors `sam2.modeling.backbones.hieradet.Hiera`, whose argument names it keeps."""

    embed_dim: int = 144
    num_heads: int = 2
    stages: tuple[int, ...] = (2, 6, 36, 4)
    global_att_blocks: tuple[int, ...] = (23, 33, 43)
    window_spec: tuple[int, ...] = (8, 4, 16, 8)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (7, 7)
    q_pool: int = 3
    mlp_ratio: float = 4.0

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels after each stage, finest first (doubled at every stage)."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.stages)))


@dataclass(frozen=True)
class Sam2Config:
    """SAM 2, image path. Mirrors the `image_encoder` and `sam_*` parts of `sam2.modeling.sam2_base.SAM2Base`."""

    name: str = "sam2_hiera_large"
    hiera: HieraConfig = field(default_factory=HieraConfig)
    image_size: int = 1024
    backbone_stride: int = 16
    d_model: int = 256
    fpn_top_down_levels: tuple[int, ...] = (2, 3)
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    mask_in_chans: int = 16

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding (64 for 1024 pixels)."""
        return self.image_size // self.backbone_stride

    @property
    def mask_size(self) -> int:
        """Side of the mask logits (256 for 1024 pixels)."""
        return 4 * self.embedding_size


ModelConfig = EncoderConfig | Sam2Config
"""Configuration of any model."""


def _dinov2(name: str, **kw: Any) -> dict[str, DinoV2Config]:
    plain = DinoV2Config(name=name, **kw)
    reg = dataclasses.replace(
        plain, name=f"{name}_reg4", num_register_tokens=4, interpolate_offset=0.0, interpolate_antialias=True
    )
    return {plain.name: plain, reg.name: reg}


DINOV2_CONFIGS: dict[str, DinoV2Config] = {
    **_dinov2("dinov2_vits14", embed_dim=384, depth=12, num_heads=6),
    **_dinov2("dinov2_vitb14", embed_dim=768, depth=12, num_heads=12),
    **_dinov2("dinov2_vitl14", embed_dim=1024, depth=24, num_heads=16),
    **_dinov2("dinov2_vitg14", embed_dim=1536, depth=40, num_heads=24, ffn_layer="swiglu"),
}
"""Every published DINOv2, by name."""

DINOV3_CONFIGS: dict[str, DinoV3Config] = {
    name: DinoV3Config(name, dim, depth, heads, 4 * dim)
    for name, dim, depth, heads in (
        ("dinov3_vits16", 384, 12, 6),
        ("dinov3_vitb16", 768, 12, 12),
        ("dinov3_vitl16", 1024, 24, 16),
    )
}
"""The published DINOv3 whose feed-forward layers have no gate, by name."""

_HIERA = {
    "tiny": HieraConfig(96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7)),
    "small": HieraConfig(96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7)),
    "base_plus": HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), (14, 14)),
    "large": HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8)),
}

SAM2_CONFIGS: dict[str, Sam2Config] = {
    f"{version}_hiera_{size}": Sam2Config(name=f"{version}_hiera_{size}", hiera=hiera)
    for version in ("sam2", "sam2.1")
    for size, hiera in _HIERA.items()
}
"""Every published SAM 2, by name. 2.0 and 2.1 differ in their video part only."""


KINDS: dict[str, type[ModelConfig]] = {
    "dinov2": DinoV2Config,
    "dinov3": DinoV3Config,
    "sam2": Sam2Config,
}
"""What `"model"` says in JSON, and which class that is."""


def kind_of(config: ModelConfig) -> str:
    """ "dinov2", "dinov3" or "sam2"."""
    return next(kind for kind, cls in KINDS.items() if isinstance(config, cls))


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON-ready data; `"model"` says which class it is."""
    return {"model": kind_of(config), **dataclasses.asdict(config)}


def from_dict(data: dict[str, Any], where: str = "configuration") -> ModelConfig:
    """Inverse of `to_dict`. Raises `InputError` on unknown models, unknown or missing keys and wrong types,
    which name `where` the data is from."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(data).__name__}")
    kind = data.get("model")
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(f'"{name}"' for name in KINDS)
        raise InputError(f'{where}: "model" must be one of {known}, found {kind!r:.80}')
    fields = {k: v for k, v in data.items() if k != "model"}
    if kind == "sam2":
        fields["hiera"] = _build(HieraConfig, fields.get("hiera"), f"{where}.hiera")
    return _build(KINDS[kind], fields, where)


def _build(cls: Any, data: Any, where: str) -> Any:
    """Fill a dataclass from JSON data, checking keys and types against the defaults."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(data).__name__}")
    default = cls()
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - known):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    values = {}
    for name, value in data.items():
        want = getattr(default, name)
        if isinstance(want, tuple):
            ok = isinstance(value, (list, tuple)) and all(type(v) is int and 0 <= v <= 2**20 for v in value)
            value = tuple(value) if ok else value
        elif type(want) is float:
            ok = type(value) in (int, float) and 0 <= value <= 2**20
            value = float(value) if ok else value
        elif type(want) is int:
            ok = type(value) is int and 0 <= value <= 2**20
        else:
            ok = isinstance(value, type(want))
        if not ok:
            raise InputError(f"{where}.{name}: expected {type(want).__name__} like {want!r}, found {value!r:.80}")
        values[name] = value
    return cls(**values)
