"""Average precision by the rules of LVIS.

LVIS is annotated in a federated way: of each image it is known which categories are there, which are certainly absent
(`neg_category_ids`), and for which only some instances are marked (`not_exhaustive_category_ids`); of all others
nothing is known. So a detection of a category that is neither there nor known to be absent does not count at all, and
one that matches nothing does not count where the category is not marked exhaustively. Of an image the 300 highest
scoring detections are judged. AP, AP50, AP75, APs, APm, APl and AR as COCO's; APr, APc, APf are over the rare, common
and frequent categories of the training set. Source: Gupta et al., LVIS, CVPR 2019, and the rules of its `lvis` package.
"""

from typing import Any

import numpy as np

from ntt_jax.datasets.lvis import FREQUENCIES
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation.average_precision import IOU_THRESHOLDS, defined_mean
from ntt_jax.evaluation.ground_truth import GroundTruth
from ntt_jax.evaluation.hotcoco_scorer import HotcocoScorer

DETECTIONS_PER_IMAGE = 300
"""hotcoco's own, as LVIS says."""


class LvisScorer:
    """LVIS's numbers of boxes and masks. Images are taken one by one and only outcomes are kept."""

    def __init__(self, ground_truth: GroundTruth):
        if ground_truth.federated is None:
            raise InputError("evaluation: LVIS's rules need LVIS's annotation file")
        self._frequency = np.array([ground_truth.federated.frequency[c.id] for c in ground_truth.categories])
        self._kinds = ground_truth.kinds
        self._streamed = HotcocoScorer(ground_truth)

    def add(self, image_id: int, record: HostDetections) -> None:
        """Judge the detections of one image."""
        self._streamed.add(image_id, record)

    def results(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers by kind, and by class and kind (`evaluate.Scorer`)."""
        frequency, curves = self._frequency, self._streamed.curves()
        tables: dict[str, Any] = {}
        rows: list[dict[str, Any]] = [{"frequency": str(value)} for value in frequency]
        for kind in self._kinds:
            # [T, R, K, areas, 1] and [T, K, areas, 1], -1 without any object -> [areas, T, K, R], [areas, T, K]
            precision, recall = (np.where(array < 0, np.nan, array)[..., 0] for array in curves[kind][:2])
            precision, recall = precision.transpose(3, 0, 2, 1), recall.transpose(2, 0, 1)
            at = {name: int(np.argmin(abs(IOU_THRESHOLDS - value))) for name, value in (("AP50", 0.5), ("AP75", 0.75))}
            tables[kind] = {
                "AP": defined_mean(precision[0]),
                **{name: defined_mean(precision[0, t]) for name, t in at.items()},
                **{name: defined_mean(precision[a]) for a, name in ((1, "APs"), (2, "APm"), (3, "APl"))},
                **{f"AP{letter}": defined_mean(precision[0][:, frequency == letter]) for letter in FREQUENCIES},
                f"AR{DETECTIONS_PER_IMAGE}": defined_mean(recall[0]),
                **{name: defined_mean(recall[a]) for a, name in ((1, "ARs"), (2, "ARm"), (3, "ARl"))},
            }
            for k, row in enumerate(rows):
                row[kind] = {
                    "AP": defined_mean(precision[0, :, k]),
                    **{name: defined_mean(precision[0, t, k]) for name, t in at.items()},
                }
        return tables, rows
