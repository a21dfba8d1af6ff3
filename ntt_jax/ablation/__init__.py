"""Many memories in one pass over the images: shots, seeds, and each reference left out."""
