"""Deliberate faults, one at a time, in the chain that the demo runs: each must show in the 5-shot AP.

No fault has a switch in the product: weights are spoiled, or functions replaced, here. The stated drops are about half
of what was measured (docs/small_models.md has the numbers), so that a change of scenes or of rounding does not matter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntt_jax import builder, demo, detection, pipeline
from ntt_jax.coco import select_classes
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.match import object_features, similarities
from ntt_jax.resize import resize_images
from ntt_jax.sampling import sample_references

pytest.importorskip("torch")  # reads the shipped checkpoints
SCENES = 24
SHOTS = 5


@dataclasses.dataclass
class Chain:
    """What the faults are put into."""

    benchmark: demo.Benchmark
    sam2: object
    dinov2: object
    prototypes: np.ndarray
    predictor: pipeline.Predictor
    ap: float
    first: pipeline.HostDetections | None = None

    def memory(self) -> np.ndarray:
        classes = select_classes(self.benchmark.references, "all")
        references = sample_references(self.benchmark.references, classes, SHOTS, 0)
        encoder = builder.ReferenceEncoder(self.dinov2, batch_size=8)
        folder = self.benchmark.folder / "references"
        return np.asarray(builder.build_memory(encoder, self.benchmark.references, folder, references).prototypes)

    def compiled(self, sam2=None) -> pipeline.Predictor:
        return pipeline.Predictor(
            sam2 or self.sam2, self.dinov2, self.prototypes, demo.SMALL_DETECT, batch_size=4, canvas=640
        )

    def measure(self, predictor: pipeline.Predictor) -> float:
        return demo.evaluate(self.benchmark, predictor)[0]["segm"]["AP"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    sam2_path, dinov2_path = demo.convert_checkpoints(folder / "weights")
    sam2, dinov2 = load_sam2(sam2_path), load_dinov2(dinov2_path)
    chain = Chain(demo.make_benchmark(folder, 0, SCENES), sam2, dinov2, np.zeros(0), None, 0.0)
    chain.prototypes = chain.memory()
    chain.predictor = chain.compiled()
    chain.ap = chain.measure(chain.predictor)
    (chain.first,) = list(chain.predictor([next(chain.benchmark.target_images())]))
    print(f"\nno fault: segm AP {chain.ap:.4f}")
    return chain


@pytest.fixture
def patch(monkeypatch):
    """`monkeypatch` for functions that are compiled into the target pass."""
    pipeline._detect_batch.clear_cache()
    yield monkeypatch
    monkeypatch.undo()
    pipeline._detect_batch.clear_cache()


def drop(chain, predictor, fault):
    lost = chain.ap - chain.measure(predictor)
    print(f"\n{fault}: segm AP falls by {lost:.4f}")
    return lost


def test_no_fault(chain):
    """The tight band: the same scenes and weights give this number on any machine, up to masks' rounding."""
    assert chain.ap == pytest.approx(EXPECTED, abs=0.01)


EXPECTED = 0.3576


# Two faults that the present weights do not show; strict, so that better weights make these marks go.
UNSEEN = "the shipped DINOv2 mixes an object's features into the patches around it, the SAM 2 its masks' fine detail"


@pytest.mark.xfail(strict=True, reason=UNSEEN)
def test_shifted_reference_masks(chain, monkeypatch):
    def shifted(mask, grid):
        cells = real(mask, grid)
        down, right = (max(1, (np.ptp(np.flatnonzero(cells.any(axis=k))) + 1) // 2) for k in (1, 0))
        moved = np.zeros_like(cells)
        moved[down:, right:] = cells[:-down, :-right]
        return moved

    real = builder.mask_to_grid
    monkeypatch.setattr(builder, "mask_to_grid", shifted)
    assert drop(chain, chain.predictor.with_prototypes(chain.memory()), "reference masks shifted") > 0.02


def test_shuffled_prototypes(chain):
    shuffled = chain.prototypes[np.roll(np.arange(len(chain.prototypes)), 1)]
    assert drop(chain, chain.predictor.with_prototypes(shuffled), "prototypes shuffled") > 0.2


@pytest.mark.xfail(strict=True, reason=UNSEEN)
def test_unflipped_transposed_convolutions(chain):
    sam2 = nnx.clone(chain.sam2)
    for layer in (0, 3):
        convolution = sam2.sam_mask_decoder.output_upscaling[layer]
        convolution.kernel = nnx.Param(convolution.kernel[...][::-1, ::-1])
    assert drop(chain, chain.compiled(sam2), "transposed convolutions unflipped") > 0.02


def test_nms_by_similarity(chain, patch):
    def by_similarity(features, candidates, logits, predicted_ious, prototypes, **sizes):
        objects, _ = object_features(candidates.weights, features)
        return real(
            features, candidates, logits, jnp.max(similarities(objects, prototypes), axis=1), prototypes, **sizes
        )

    real = pipeline.merge_candidates
    patch.setattr(pipeline, "merge_candidates", by_similarity)
    assert drop(chain, chain.compiled(), "NMS ordered by similarity") > 0.03


def test_no_soft_merge(chain, patch):
    patch.setattr(detection, "soft_merge", lambda scores, *_: scores)
    assert drop(chain, chain.compiled(), "soft merge off") > 0.04


def test_no_normalisation(chain, patch):
    def raw(images, size):
        return resize_images(images.astype(jnp.float32) / 255.0, (size, size), "bicubic")

    patch.setattr(pipeline, "encoder_input", raw)
    assert drop(chain, chain.compiled(), "encoder input without normalisation") > 0.15


def test_tanh_gelu(chain, patch):
    """Small, as it should be: 5e-4 in an activation. Asserted is only that the detections change and AP hardly does."""
    # The exact GELU is 0.5 y (1 + erf(y / sqrt(2))); this makes it 0.5 y (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))).
    patch.setattr(jax.lax, "erf", lambda z: jnp.tanh(2 / np.sqrt(np.pi) * (z + 0.08943 * z**3)))
    predictor = chain.compiled()
    (near,), exact = list(predictor([next(chain.benchmark.target_images())])), chain.first
    assert len(exact.scores) != len(near.scores) or np.abs(exact.scores - near.scores).max() > 1e-5
    assert abs(drop(chain, predictor, "tanh GELU")) < 0.02
