"""The mask decoder for a whole grid of points at once: the same numbers as the plain one, with less work."""
