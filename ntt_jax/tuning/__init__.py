"""Proposals recorded once, then any rules scored on them: `ntt-jax tune` (docs/tune.md)."""
