"""For people: fit on a few references, predict on photos."""

from ntt_jax.segmenter.segmenter import Segmenter

__all__ = ["Segmenter"]
