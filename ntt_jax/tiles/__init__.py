"""Large images in overlapping tiles, merged into the detections of one image."""
