"""What detections are worth: by COCO's rules (`coco`), and those of LVIS, VOC and COCO-20i (`protocols`)."""

from ntt_jax.evaluation.coco import (
    KINDS,
    SCORERS,
    GroundTruth,
    assemble_metrics,
    evaluate_detections,
    prepare_ground_truth,
)

__all__ = ["KINDS", "SCORERS", "GroundTruth", "assemble_metrics", "evaluate_detections", "prepare_ground_truth"]
