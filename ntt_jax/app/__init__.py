"""The address to call and the page: `ntt-jax serve` and `ntt-jax app` (extra `[app]`)."""
