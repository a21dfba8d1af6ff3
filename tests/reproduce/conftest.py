from hub_fixtures import checkpoints, hub

__all__ = ["checkpoints", "hub"]
