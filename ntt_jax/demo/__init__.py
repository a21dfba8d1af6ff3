"""The main job on made scenes: the small models, the scenes, and how both are made."""
