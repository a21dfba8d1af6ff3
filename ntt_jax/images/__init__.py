"""Pictures as arrays: reading, resizing, normalising, drawing; masks as run lengths."""

from ntt_jax.images.reading import open_image_size, read_image, read_index_image

__all__ = ["open_image_size", "read_image", "read_index_image"]
