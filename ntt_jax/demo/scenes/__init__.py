"""Made scenes with exact instance masks, for the embedded demo, its training and the end-to-end tests."""

from ntt_jax.demo.scenes.classes import NOVEL_SPLITS, ObjectClass, base_classes, novel_classes
from ntt_jax.demo.scenes.render import Variation
from ntt_jax.demo.scenes.scene import Scene, SceneConfig, make_scene

__all__ = [
    "NOVEL_SPLITS",
    "ObjectClass",
    "Scene",
    "SceneConfig",
    "Variation",
    "base_classes",
    "make_scene",
    "novel_classes",
]
