"""The frozen models: SAM 2 and the encoders DINOv2 and DINOv3, module by module as in the original packages."""
