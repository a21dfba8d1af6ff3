"""Which of SAM 2's four masks a prompt that leaves no doubt gets.

Mirrors `_dynamic_multimask_via_stability` of `sam2.modeling.sam.mask_decoder.MaskDecoder`.

It is the single mask, number 0, unless that is unstable: then the one of masks 1..3 that SAM 2 rates best.
"""

import jax.numpy as jnp
from jax import Array

STABILITY_OFFSET = 0.05
STABILITY_THRESHOLD = 0.98
"""`dynamic_multimask_stability_delta` and `dynamic_multimask_stability_thresh` of Meta's configurations."""


def is_stable(logits: Array) -> Array:
    """Whether the pixels of masks `[P, m, n]` above -0.05 are, but for 2 %, above 0.05: `[P]` bool."""
    inner = jnp.sum(logits > STABILITY_OFFSET, axis=(1, 2))
    outer = jnp.sum(logits > -STABILITY_OFFSET, axis=(1, 2))
    return jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0) >= STABILITY_THRESHOLD


def choose_mask(logits: Array, predicted_ious: Array, *, ambiguous: bool) -> tuple[Array, Array]:
    """One mask of each prompt: `[P, 4, m, m]`, `[P, 4]` -> `[P, m, m]`, `[P]`.

    ambiguous: take the best rated of masks 1..3 always, not only where mask 0 is unstable.
    """
    rows = jnp.arange(logits.shape[0])
    best = 1 + jnp.argmax(predicted_ious[:, 1:], axis=1)
    chosen = jnp.where(is_stable(logits[:, 0]) & (not ambiguous), 0, best)
    return logits[rows, chosen], predicted_ious[rows, chosen]
