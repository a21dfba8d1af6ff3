"""Frozen configurations: the constants of the target pass, and by the same door those of the models.

A configuration is plain data. It travels as JSON in the metadata of a converted weight file (`to_dict`, `from_dict`),
so a loader needs nothing but the path. Other sizes are made with `dataclasses.replace`.
"""

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path
from ntt_jax.model_config import DINOV2_CONFIGS as DINOV2_CONFIGS
from ntt_jax.model_config import DINOV3_CONFIGS as DINOV3_CONFIGS
from ntt_jax.model_config import SAM2_CONFIGS as SAM2_CONFIGS
from ntt_jax.model_config import DinoV2Config as DinoV2Config
from ntt_jax.model_config import DinoV3Config as DinoV3Config
from ntt_jax.model_config import EncoderConfig as EncoderConfig
from ntt_jax.model_config import HieraConfig as HieraConfig
from ntt_jax.model_config import ModelConfig as ModelConfig
from ntt_jax.model_config import Sam2Config as Sam2Config
from ntt_jax.model_config import from_dict as from_dict
from ntt_jax.model_config import kind_of as kind_of
from ntt_jax.model_config import to_dict as to_dict

MAX_METHOD_BYTES = 2**20


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
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or not (self._contains(value) or value in self.also):
            found = describe(value) if type(value) is int else f"{value!r:.40}"
            raise InputError(f"{name}: expected {self}, found {found}")
        number: Any = value
        return self.kind(number)

    def _contains(self, value: Any) -> bool:
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer beyond any float
            finite = False
        return finite and self.low <= value <= self.high and not (self.open_low and value == self.low)


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


def constant(default: Any, limits: Limits | Choices | Several) -> Any:
    """A field of a `Checked` dataclass."""
    return field(default=default, metadata={"limits": limits})


class Checked:
    """A frozen dataclass whose fields (`constant`) are checked when one is made; an `InputError` names the field."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    _WHAT: ClassVar[str] = ""  # before the name in a message

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = self.limits(one.name).check(f"{self._WHAT}{one.name}", getattr(self, one.name))
            object.__setattr__(self, one.name, value)

    @classmethod
    def limits(cls, name: str) -> Any:
        """Which values a field may have: `Limits`, `Choices` or `Several`."""
        return cls.__dataclass_fields__[name].metadata["limits"]


@dataclass(frozen=True)
class DetectConfig(Checked):
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

    points_per_side: int = constant(32, Limits(int, 1, 256))
    pred_iou_threshold: float = constant(0.4, Limits(float, 0, 1))
    nms_iou_threshold: float = constant(0.5, Limits(float, 0, 1))
    max_candidates: int = constant(800, Limits(int, 1, 2**20))
    max_detections: int = constant(100, Limits(int, 1, 2**20))
    classes_per_mask: int = constant(1, Limits(int, 1, 2**16, also=(-1,)))
    negative_sigma: float = constant(0.8, Limits(float, 0, open_low=True))
    iou_power: float = constant(0.0, Limits(float, 0, 100))
    softmax_temperature: float = constant(0.0, Limits(float, 0))
    hubness: str = constant("none", Choices(("none", "centre", "csls")))
    csls_neighbours: int = constant(10, Limits(int, 1, 2**16))
    order_area_power: float = constant(0.0, Limits(float, -10, 10))
    order_similarity_power: float = constant(0.0, Limits(float, -10, 10))
    stability_threshold: float = constant(0.0, Limits(float, 0, 1))
    stability_power: float = constant(0.0, Limits(float, 0, 100))
    stability_offset: float = constant(0.7, Limits(float, 0))
    merge: str = constant("cosine", Choices(("cosine", "plain", "diffusion", "none")))
    diffusion_alpha: float = constant(0.3, Limits(float, 0, 0.999))
    diffusion_power: float = constant(0.5, Limits(float, 0, 100))
    diffusion_transition: str = constant("overlaps", Choices(("overlaps", "normalised")))
    class_thresholds: tuple[float, ...] = constant((), Several(Limits(float, 0)))
    proposals: str = constant("none", Choices(("none", "replace", "join")))
    proposal_threshold: float = constant(0.01, Limits(float, -1e9, 1e9))
    max_proposals: int = constant(100, Limits(int, 1, 2**14))
    proposal_mask: str = constant("single", Choices(("single", "best")))
    proposal_order: str = constant("objectness", Choices(("objectness", "predicted_iou")))
    report_boxes: str = constant("mask", Choices(("mask", "proposal")))
    refine: str = constant("none", Choices(("none", "box", "mask", "mask_and_box")))
    extra_points: int = constant(0, Limits(int, 0, 64))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_detections > self.max_candidates:
            raise InputError(
                f"max_detections: expected at most max_candidates, {self.max_candidates}, found {self.max_detections}"
            )

    @classmethod
    def from_dict(cls, data: Any) -> "DetectConfig":
        """A configuration of JSON data: constants by name, the published ones where none is given.

        Raises `InputError` for an unknown name or a value that may not be. `dataclasses.asdict` is the way back.
        """
        known = [one.name for one in dataclasses.fields(cls)]
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
        data = parse_json(read_bytes(path, max_bytes=MAX_METHOD_BYTES, what="method"), path, what="method", strict=True)
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{show_path(path)}: {error}") from None

    def changes(self) -> dict[str, Any]:
        """The constants that are not the published ones, as JSON-ready data; `from_dict` is the way back."""
        default = dataclasses.asdict(DetectConfig())
        changed = {name: value for name, value in dataclasses.asdict(self).items() if value != default[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    def taking_boxes(self) -> "DetectConfig":
        """This one with boxes as prompts: in place of the points, unless it says "join"."""
        return dataclasses.replace(self, proposals="replace") if self.proposals == "none" else self

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
