"""Feature pyramid on the trunk's maps. Mirrors `sam2.modeling.backbones.image_encoder`.

The sine position encodings that Meta's neck returns beside the maps feed the video memory only, so they are not made:
the mask decoder takes its dense position encoding from the prompt encoder.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ntt_jax.config import Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.models.layers import Conv
from ntt_jax.models.sam2.hieradet import Hiera

SCALP = 1  # coarsest levels dropped after they have flowed down


def upsample_nearest(x: Array) -> Array:
    """Every pixel twice along both sides: `[B, H, W, C] -> [B, 2H, 2W, C]`."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class FpnNeck(nnx.Module):
    """One 1 x 1 convolution per level; the levels of `fpn_top_down_levels` add the next coarser one."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dims = config.hiera.stage_dims
        if unknown := [level for level in config.fpn_top_down_levels if level >= len(dims)]:
            raise InputError(f"configuration.fpn_top_down_levels: level {unknown[0]} is none of 0 to {len(dims) - 1}")
        self.fpn_top_down_levels = config.fpn_top_down_levels
        # Coarsest level first, as in Meta's: level i is convs[n - i].
        self.convs = nnx.List(
            [nnx.Dict(conv=Conv(dim, config.d_model, 1, dtype=dtype, rngs=rngs)) for dim in dims[::-1]]
        )

    def __call__(self, maps: list[Array]) -> list[Array]:
        """Trunk maps, finest first, `[B, H/4, W/4, C], ...` -> as many maps `[B, H/4, W/4, d_model], ...`."""
        last = len(maps) - 1
        outputs: list[Array] = []
        for level in range(last, -1, -1):
            x = self.convs[last - level].conv(maps[level])
            if level in self.fpn_top_down_levels and outputs:
                x = x + upsample_nearest(outputs[-1])
            outputs.append(x)
        return outputs[::-1]


class ImageEncoder(nnx.Module):
    """Trunk and neck: `[B, H, W, 3]` -> maps of strides 4, 8 and 16, `d_model` channels."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.trunk = Hiera(config.hiera, dtype=dtype, rngs=rngs)
        self.neck = FpnNeck(config, dtype=dtype, rngs=rngs)

    def forward_features(self, images: Array) -> dict[str, Array]:
        """The trunk's intermediates (`Hiera.forward_features`) and "fpn0" ... "fpn3", finest first."""
        features = self.trunk.forward_features(images)
        maps = [features[f"stage{index}"] for index in range(len(self.trunk.config.stages))]
        return features | {f"fpn{level}": x for level, x in enumerate(self.neck(maps))}

    def __call__(self, images: Array) -> list[Array]:
        """`[B, H, W, 3]`, ImageNet-normalised -> `[B, H/4, W/4, D], [B, H/8, W/8, D], [B, H/16, W/16, D]`."""
        return self.neck(self.trunk(images))[:-SCALP]
