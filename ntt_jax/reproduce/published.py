"""What the paper reports (arXiv 2507.02798), and the benchmarks that `ntt-jax reproduce` knows."""

from dataclasses import dataclass

from ntt_jax.hub.names import DEFAULT_DINOV2, DEFAULT_SAM2


@dataclass(frozen=True)
class Number:
    """AP of boxes and masks in percent, each with its standard deviation over ten seeds where there is one."""

    bbox: float
    segm: float
    bbox_std: float | None = None
    segm_std: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """One published table. by_shots: means over ten seeds; of_seed: single runs by (shots, seed)."""

    name: str
    classes: str
    shots: int
    by_shots: dict[int, Number]
    of_seed: dict[tuple[int, int], Number]
    sam2: str = DEFAULT_SAM2
    dinov2: str = DEFAULT_DINOV2
    images: int = 5000


_NOVEL = {
    1: Number(24.5, 22.9, 1.5, 1.6),
    2: Number(29.5, 27.5, 2.0, 1.9),
    3: Number(32.3, 30.1, 1.3, 1.3),
    5: Number(34.4, 32.1, 0.8, 0.7),
    10: Number(35.9, 33.4, 0.5, 0.5),
    30: Number(37.0, 34.4, 0.2, 0.2),
}

BENCHMARKS: dict[str, Benchmark] = {
    "coco-30shot": Benchmark("coco-30shot", "novel", 30, _NOVEL, {(30, 33): Number(36.8, 34.2)}),
    **{f"coco20i-{fold}": Benchmark(f"coco20i-{fold}", f"coco20i-{fold}", 1, {}, {}) for fold in range(4)},
}
"""By name. Of COCO-20i no number of this method is on record here: its rows say only what is found."""


@dataclass(frozen=True)
class ByHand:
    """A published mean over several runs, on data that has no address which may be fetched from without a person.

    shots: of the published lists of references. measure: what is averaged, of boxes. by_shots: the means at each number
    of shots; overall: over all runs. sources: where the data is to be had. images: of a run's targets, 0 where unknown.
    """

    name: str
    shots: tuple[int, ...]
    measure: str
    by_shots: dict[int, float]
    overall: float | None
    sources: str
    sam2: str = DEFAULT_SAM2
    dinov2: str = DEFAULT_DINOV2
    images: int = 0


BY_HAND = {
    "voc": ByHand(
        "voc",
        (1, 2, 3, 5, 10),
        "AP50",
        {},
        71.2,
        "PASCAL VOC's archives from http://host.robots.ox.ac.uk/pascal/VOC/, its reference lists (vocsplit) from the "
        "TFA project (github.com/ucbdrive/few-shot-object-detection)",
    ),
    "cd-fsod": ByHand(
        "cd-fsod",
        (1, 5, 10),
        "AP",
        {1: 18.0, 5: 22.4, 10: 21.4},
        None,
        "its six data sets are linked from github.com/lovelyqian/CDFSOD-benchmark",
    ),
}
