"""Models by name: what a name means, where its weights come from, and the cache of what was converted."""

from ntt_jax.hub.names import DEFAULT_DINOV2, DEFAULT_SAM2, PUBLISHED, Published, Repository, parse
from ntt_jax.hub.resolve import resolve

__all__ = ["DEFAULT_DINOV2", "DEFAULT_SAM2", "PUBLISHED", "Published", "Repository", "parse", "resolve"]
