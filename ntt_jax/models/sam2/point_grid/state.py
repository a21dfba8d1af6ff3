"""What the steps of `GridDecoder` hand on, in the notation of the module `grid`."""

from typing import NamedTuple

from jax import Array


class Tokens(NamedTuple):
    """What phase 1 leaves of a chunk of P points for phase 2."""

    queries: Array  # [P, T, C] after layer 1
    tokens: Array  # [P, T, C] prompt tokens, the queries' positional part
    values: tuple[Array, Array]  # [P, T, H, d], `_differences` of each layer's image-to-token values
    attention0: Array  # [blocks, P, J, n], A, and that of layer 1, in the compute dtype: what F (`_rows`) consists of
    attention1: Array
    variance1: Array  # [blocks, P, n], 1 / r1^2
    variance2: Array  # [blocks, P, n], 1 / r2^2


class SquaredNorm(NamedTuple):
    """|r1 (X + e0) + e1 + d + F^T D|^2 - |r1 X|^2 of a chunk of points, by its parts.

    F^T (quadratic F) + 2 F . (linear + r1 linear_r1 + what X gives), for each half of F,
    + r1^2 (constant_r1_r1 + 2 X . e0) + r1 (constant_r1 + 2 X . (d + e1)) + constant.
    """

    quadratic0: Array  # [P, J, 2 J]; of the two mixed quarters, which are equal, this one is twice as large ...
    quadratic1: Array  # [P, J, J], ... and the other is left out
    linear0: Array  # [P, J, 1]
    linear1: Array
    linear0_r1: Array
    linear1_r1: Array
    constant_r1_r1: Array  # [P, 1]
    constant_r1: Array
    constant: Array


class FinalQuery(NamedTuple):
    """One token of each point as a query of the final attention."""

    query: Array  # [P, H, d]
    small: Array  # [P, H, 2 J], against F
    constant_r1: Array  # [P, H, 1], against e0, to be scaled by r1
    constant: Array  # [P, H, 1], against e1 + d


class Upscaling(NamedTuple):
    """What the upscaling of Q points takes beside the image: `GridDecoder.upscaling`."""

    rows: Array  # [Q, 4 C / 4, 2 J], against F
    e0: Array  # [Q, 4 C / 4, 1], to be scaled by r1
    e1: Array  # [Q, 4 C / 4, 1], with d
    kernel2: Array  # [Q, 4, 4 C / 8, C / 4], the second transposed convolution
    bias2: Array  # [4 C / 8, 1]
