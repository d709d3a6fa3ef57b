"""Which measured shapes speak for one that was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sparseflow_trt._same import Same
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.policy import Library, Pair, Point, Policy, SparseKernel, pairs_by_m, points_of

Shape = tuple[int, int]  # (N, K)

# A measured shape speaks for another of its kind while the two differ by at most this many octaves
# (doublings) in N and K together. Farther ones are left to the kind's threshold.
NEAREST_OCTAVES = 2.0

# A shape that speaks for another is held against the next nearest ones, of any kind, and wins where all of
# them do: times are stairs in N, too. Of an H200's 1810 products, each asked for by other shapes alone, 8 are
# lost so at a margin of 5 %, and 69 if the nearest of the kind speaks alone (benchmarks/ship_policy.py).
WITNESSES = 3


def points_near(policy: Policy, gemm: Gemm, library: Library) -> list[Point]:
    """The points of a library and a type that could speak for a layer: of its kind, or of its very shape."""
    points = points_of(Same(policy.points)).get((library, gemm.dtype), ())
    return [p for p in points if p.kind == gemm.kind or (p.n, p.k) == gemm.shape]


def nearest_shape(shapes: Iterable[Shape], gemm: Gemm) -> Shape | None:
    """The (N, K) that speaks for a layer: the nearest, None where none is within NEAREST_OCTAVES."""
    far = {shape: _octaves(shape, gemm.shape) for shape in shapes} if gemm.n and gemm.k else {}
    shape = min(far, key=lambda other: far[other], default=None)
    return shape if shape and far[shape] <= NEAREST_OCTAVES else None


def witnesses_of(
    speaks: Shape | None, gemm: Gemm, points: Iterable[Point], kernel: SparseKernel
) -> dict[Shape, dict[int, Pair]]:
    """The pairs of the WITNESSES nearest shapes beside the one that speaks for another, whatever their kinds.

    Args:
        speaks: The (N, K) that speaks for the layer; None where none does.
        gemm: The layer's product.
        points: Of all shapes; not looked at where the layer's own shape speaks.
        kernel: Held against dense; a shape that has no such pairs is no witness.
    """
    if speaks in (None, gemm.shape):
        return {}
    by_shape: dict[Shape, list[Point]] = {}
    for point in points:
        by_shape.setdefault((point.n, point.k), []).append(point)
    far = {shape: _octaves(shape, gemm.shape) for shape in by_shape if shape != speaks}
    found: dict[Shape, dict[int, Pair]] = {}
    for shape in sorted((s for s in far if far[s] <= NEAREST_OCTAVES), key=lambda s: far[s]):
        if len(found) == WITNESSES:
            break
        if pairs := pairs_by_m(by_shape[shape], kernel):
            found[shape] = pairs
    return found


def _octaves(one: Shape, other: Shape) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))
