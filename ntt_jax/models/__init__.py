"""The two frozen models: SAM 2 and DINOv2, module by module as in the original packages."""
