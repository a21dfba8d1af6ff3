"""The target pass as programs that run without this package (docs/export.md)."""

from ntt_jax.export.folder import export_folder as export_folder

__all__ = ["export_folder"]
