"""Pictures as arrays: reading, resizing, normalising, drawing; masks as run lengths."""
