"""What detections are worth: `evaluate` applies the rules of the data set, of which each has a file."""

from ntt_jax.evaluation.coco import SCORERS
from ntt_jax.evaluation.evaluate import Evaluation, evaluate_detections
from ntt_jax.evaluation.ground_truth import KINDS, GroundTruth, prepare_ground_truth

__all__ = ["KINDS", "SCORERS", "Evaluation", "GroundTruth", "evaluate_detections", "prepare_ground_truth"]
