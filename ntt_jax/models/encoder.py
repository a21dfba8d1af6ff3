"""The encoder slot: what gives the method its patch features.

An encoder is a module with a `config` (of `embed_dim`, `patch_size`, `input_size` and `grid`), which turns normalised
images `[B, H, W, 3]` into patch features `[B, H / patch_size, W / patch_size, embed_dim]` in float32, and whose
`forward_features` names its stages. CONTRIBUTING.md says what adding one takes.
"""

from ntt_jax.config import DinoV2Config, DinoV3Config, EncoderConfig
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.dinov3 import DINOv3ViTModel

Encoder = DinoVisionTransformer | DINOv3ViTModel
"""A loaded encoder; `isinstance` takes it."""

_MODULES: dict[type, type[DinoVisionTransformer] | type[DINOv3ViTModel]] = {
    DinoV2Config: DinoVisionTransformer,
    DinoV3Config: DINOv3ViTModel,
}


def encoder_class(config: EncoderConfig) -> type[DinoVisionTransformer] | type[DINOv3ViTModel]:
    """The class of the module that a configuration describes."""
    return _MODULES[type(config)]
