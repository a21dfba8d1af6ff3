"""Frozen configurations: the two models in every published size, and the constants of the target pass.

A configuration is plain data. It travels as JSON in the metadata of a converted weight file (`to_dict`, `from_dict`),
so a loader needs nothing but the path. Other sizes are made with `dataclasses.replace`.
"""

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, parse_json, read_bytes, show_path

MAX_METHOD_BYTES = 2**20


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


@dataclass(frozen=True)
class Limits:
    """Which numbers a constant may be: whole ones or any, `low` to `high`, both included, and those of `also`.

    `open_low`: `low` itself is not allowed.
    """

    kind: type[int] | type[float]
    low: float
    high: float = math.inf
    open_low: bool = False
    also: tuple[float, ...] = ()

    def __str__(self) -> str:
        number = "a whole number" if self.kind is int else "a number"
        low = f"above {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        span = low if self.high == math.inf else f"from {self.low:g} to {self.high:g}"
        return " or ".join([f"{number} {span}", *(f"{value:g}" for value in self.also)])

    def check(self, name: str, value: Any) -> int | float:
        """The value as a Python number. Raises `InputError` that names the constant, what was expected and found."""
        # NumPy's numbers are registered here too; bool is, and is refused.
        kind = numbers.Integral if self.kind is int else numbers.Real
        fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not (self._contains(value) or value in self.also):
            raise InputError(f"{name}: expected {self}, found {value!r:.40}")
        number: Any = value
        return self.kind(number)

    def _contains(self, value: Any) -> bool:
        return self.low <= value <= self.high and not (self.open_low and value == self.low)


@dataclass(frozen=True)
class Choices:
    """Which words a constant may be."""

    values: tuple[str, ...]
    kind: type[str] = str

    def __str__(self) -> str:
        return " or ".join(map(repr, self.values))

    def check(self, name: str, value: Any) -> str:
        """The value. Raises `InputError` for any other."""
        if not isinstance(value, str) or value not in self.values:
            raise InputError(f"{name}: expected {self}, found {value!r:.40}")
        return value


@dataclass(frozen=True)
class Several:
    """Any number of values, each with these limits."""

    each: Limits

    def __str__(self) -> str:
        return f"a list, each {self.each}"

    def check(self, name: str, value: Any) -> tuple[int | float, ...]:
        """The values as a tuple. Raises `InputError` if there is one that may not be."""
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise InputError(f"{name}: expected {self}, found {value!r:.40}")
        return tuple(self.each.check(f"{name}[{index}]", one) for index, one in enumerate(value))


def _constant(default: Any, limits: Limits | Choices | Several) -> Any:
    return field(default=default, metadata={"limits": limits})


@dataclass(frozen=True)
class DetectConfig:
    """Constants of the target pass (METHOD stage 3). The defaults are the published ones.

    points_per_side: prompts per image side; 32 gives 1024 candidates.
    pred_iou_threshold: candidates with a predicted IoU at or below it are dropped.
    nms_iou_threshold: a row is suppressed by a better one of its class when their boxes' IoU is above it; 1: no NMS.
    max_candidates: rows kept after NMS. max_detections: rows kept at the end.
    classes_per_mask: rows per candidate: 1 keeps the best class, n the n best, -1 all (upstream's `cls_num_per_mask`).
    negative_sigma: how gently negative references lower a score, above 0 (`match.similarities`); idle without them.

    Rules that the paper does not have, all off by default (`detection.rules` has the formulas and sources):
    iou_power: a score is multiplied by the predicted IoU to this power; 0: not.
    softmax_temperature: a score is multiplied by the class's softmax at this temperature; 0: not.
    hubness: against classes that are near everything: "centre" (subtract the mean object) or "csls", with
    csls_neighbours.
    order_area_power, order_similarity_power: NMS and merge go by predicted IoU * area^a * similarity^b.
    stability_threshold: candidates less stable are dropped; stability_power: a score is multiplied by the stability to
    this power; both at +-stability_offset around the mask's edge.
    merge: "cosine" (published), "plain" (without the cosine), "diffusion" or "none". diffusion_alpha, diffusion_power:
    of graph diffusion; diffusion_transition: "overlaps" or "normalised".
    class_thresholds: by class index, the score below which a detection is left out.

    Prompts and masks that the paper does not have, off by default (docs/proposals.md):
    proposals: "replace": boxes from elsewhere are SAM 2's prompts, and no points; "join": both; "none": points alone.
    proposal_threshold: boxes with a lower objectness are left out; max_proposals: boxes of an image at most, the best.
    proposal_mask: a box gets the "single" mask, as with Meta's predictor, or the "best" of three.
    proposal_order: NMS and merge go by a box's "objectness" or by its mask's "predicted_iou".
    report_boxes: the box of a detection is that of its "mask" or, where a box made it, that "proposal".
    refine: detections are decoded once more, prompted by their "box", their "mask" or "mask_and_box"; "none": not.
    extra_points: points beside the grid where patches look most like a prototype, at most so many.

    Raises `InputError`, naming the constant, for a value that is no number of its kind or outside its `limits`.
    """

    points_per_side: int = _constant(32, Limits(int, 1, 256))
    pred_iou_threshold: float = _constant(0.4, Limits(float, 0, 1))
    nms_iou_threshold: float = _constant(0.5, Limits(float, 0, 1))
    max_candidates: int = _constant(800, Limits(int, 1, 2**20))
    max_detections: int = _constant(100, Limits(int, 1, 2**20))
    classes_per_mask: int = _constant(1, Limits(int, 1, 2**16, also=(-1,)))
    negative_sigma: float = _constant(0.8, Limits(float, 0, open_low=True))
    iou_power: float = _constant(0.0, Limits(float, 0, 100))
    softmax_temperature: float = _constant(0.0, Limits(float, 0))
    hubness: str = _constant("none", Choices(("none", "centre", "csls")))
    csls_neighbours: int = _constant(10, Limits(int, 1, 2**16))
    order_area_power: float = _constant(0.0, Limits(float, -10, 10))
    order_similarity_power: float = _constant(0.0, Limits(float, -10, 10))
    stability_threshold: float = _constant(0.0, Limits(float, 0, 1))
    stability_power: float = _constant(0.0, Limits(float, 0, 100))
    stability_offset: float = _constant(0.7, Limits(float, 0))
    merge: str = _constant("cosine", Choices(("cosine", "plain", "diffusion", "none")))
    diffusion_alpha: float = _constant(0.3, Limits(float, 0, 0.999))
    diffusion_power: float = _constant(0.5, Limits(float, 0, 100))
    diffusion_transition: str = _constant("overlaps", Choices(("overlaps", "normalised")))
    class_thresholds: tuple[float, ...] = _constant((), Several(Limits(float, 0)))
    proposals: str = _constant("none", Choices(("none", "replace", "join")))
    proposal_threshold: float = _constant(0.01, Limits(float, -1e9, 1e9))
    max_proposals: int = _constant(100, Limits(int, 1, 2**14))
    proposal_mask: str = _constant("single", Choices(("single", "best")))
    proposal_order: str = _constant("objectness", Choices(("objectness", "predicted_iou")))
    report_boxes: str = _constant("mask", Choices(("mask", "proposal")))
    refine: str = _constant("none", Choices(("none", "box", "mask", "mask_and_box")))
    extra_points: int = _constant(0, Limits(int, 0, 64))

    def __post_init__(self) -> None:
        for constant in dataclasses.fields(self):
            value = self.limits(constant.name).check(constant.name, getattr(self, constant.name))
            object.__setattr__(self, constant.name, value)
        if self.max_detections > self.max_candidates:
            raise InputError(
                f"max_detections: expected at most max_candidates, {self.max_candidates}, found {self.max_detections}"
            )

    @classmethod
    def from_dict(cls, data: Any) -> "DetectConfig":
        """A configuration of JSON data: constants by name, the published ones where none is given.

        Raises `InputError` for an unknown name or a value that may not be. `dataclasses.asdict` is the way back.
        """
        known = [constant.name for constant in dataclasses.fields(cls)]
        if not isinstance(data, dict):
            raise InputError(f"configuration: expected a JSON object, found {type(data).__name__}")
        if unknown := sorted(str(name) for name in data if name not in known):
            raise InputError(f"configuration: unknown constant {unknown[0]!r:.40}; known: {', '.join(known)}")
        return cls(**data)

    @classmethod
    def from_file(cls, path: PathLike) -> "DetectConfig":
        """The configuration in a JSON file as `from_dict` takes it, such as method.json of `ntt-jax tune`.

        Raises `InputError`, naming the file, as `from_dict` does or if it cannot be read.
        """
        data = parse_json(read_bytes(path, max_bytes=MAX_METHOD_BYTES, what="method"), path, what="method")
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{show_path(path)}: {error}") from None

    def changes(self) -> dict[str, Any]:
        """The constants that are not the published ones, as JSON-ready data; `from_dict` is the way back."""
        default = dataclasses.asdict(DetectConfig())
        changed = {name: value for name, value in dataclasses.asdict(self).items() if value != default[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    def require_plain_points(self, what: str) -> None:
        """Raise `InputError`, starting with `what`, if a constant asks for more than the grid of points, decoded once:
        what was proposed then depends on the memory or on boxes, and not on the image alone."""
        default = DetectConfig()
        for name in ("proposals", "refine", "extra_points"):
            if (value := getattr(self, name)) != getattr(default, name):
                raise InputError(
                    f"{what}: {name}={value} is not supported here, only in evaluate, run, segment and Segmenter; "
                    f"leave {name} out"
                )

    @classmethod
    def limits(cls, name: str) -> Any:
        """Which values a constant may have: `Limits`, `Choices` or `Several`."""
        return cls.__dataclass_fields__[name].metadata["limits"]


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


def to_dict(config: DinoV2Config | Sam2Config) -> dict[str, Any]:
    """The configuration as JSON-ready data; `"model"` says which class it is."""
    kind = "dinov2" if isinstance(config, DinoV2Config) else "sam2"
    return {"model": kind, **dataclasses.asdict(config)}


def from_dict(data: dict[str, Any]) -> DinoV2Config | Sam2Config:
    """Inverse of `to_dict`. Raises `InputError` on unknown models, unknown or missing keys and wrong types."""
    if not isinstance(data, dict):
        raise InputError(f"configuration: expected a JSON object, found {type(data).__name__}")
    kind = data.get("model")
    if kind not in ("dinov2", "sam2"):
        raise InputError(f'configuration: "model" must be "dinov2" or "sam2", found {kind!r}')
    fields = {k: v for k, v in data.items() if k != "model"}
    if kind == "sam2":
        fields["hiera"] = _build(HieraConfig, fields.get("hiera"), "configuration.hiera")
        return _build(Sam2Config, fields, "configuration")
    return _build(DinoV2Config, fields, "configuration")


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


DEFAULT_THRESHOLD = 0.5
"""The score from which on a detection is drawn and written, unless somebody says otherwise."""

DTYPES = ("float32", "tensorfloat32", "bfloat16")
"""Names of the arithmetic that a run may use, the exact one first."""


def arithmetic(name: str) -> tuple[str, str]:
    """What one of `DTYPES` means: the `dtype` of the loaders, and the `matmul_precision` of what runs the models.

    "tensorfloat32" is float32 whose matrix products are rounded to 10 bits of mantissa where the GPU can do so.
    """
    return ("float32", name) if name == "tensorfloat32" else (name, "highest")


COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_cpu_prefer_vector_width": 512}
"""`compiler_options` of `jax.jit` for programs that hold a model.

On GPUs XLA compiles and times many Triton kernels for every product of another shape, which takes minutes for these
models; cuBLAS has nothing to compile. On CPUs it uses half of AVX-512's width unless told otherwise; elsewhere the
wider one is divided.
"""
