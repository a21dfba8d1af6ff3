"""What detections are worth: by COCO's rules (`coco`), and those of LVIS, VOC and COCO-20i (`protocols`)."""

from ntt_jax.evaluation.coco import SCORERS, assemble_metrics, evaluate_detections
from ntt_jax.evaluation.ground_truth import KINDS, GroundTruth, prepare_ground_truth

__all__ = ["KINDS", "SCORERS", "GroundTruth", "assemble_metrics", "evaluate_detections", "prepare_ground_truth"]
