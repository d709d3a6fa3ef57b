"""Which measured shapes speak for one that was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sparseflow_trt.policy import Library, Pair, Point, Policy, SparseKernel, pairs_by_shape

# A measured shape speaks for another of its kind while the two differ by at most this many octaves
# (doublings) in N and K together. Farther ones are left to the kind's threshold.
NEAREST_OCTAVES = 2.0

# A shape that speaks for another is held against the next nearest ones, of any kind, and wins where all of
# them do: times are stairs in N, too. Of an H200's 1810 products, each asked for by other shapes alone, 8 are
# lost so at a margin of 5 %, and 69 if the nearest of the kind speaks alone (benchmarks/ship_policy.py).
WITNESSES = 3


def points_near(policy: Policy, kind: str, n: int, k: int, dtype: str) -> list[Point]:
    """The points of a type that could speak for a layer: of its kind, or of its very shape."""
    return [p for p in policy.points if p.dtype == dtype and (p.kind == kind or (p.n, p.k) == (n, k))]


def nearest_shape(shapes: Iterable[tuple[int, int]], n: int, k: int) -> tuple[int, int] | None:
    """The (N, K) that speaks for a layer: the nearest, None where none is within NEAREST_OCTAVES."""
    far = {shape: _octaves(shape, (n, k)) for shape in shapes} if n and k else {}
    shape = min(far, key=lambda other: far[other], default=None)
    return shape if shape and far[shape] <= NEAREST_OCTAVES else None


def witnesses_of(
    policy: Policy, n: int, k: int, dtype: str, shape: tuple[int, int] | None, library: Library,
    kernel: SparseKernel,
) -> dict[tuple[int, int], dict[int, Pair]]:  # fmt: skip
    """The WITNESSES nearest shapes beside the one that speaks for another, whatever their kinds."""
    if shape in (None, (n, k)):
        return {}
    points = (p for p in policy.points if (p.dtype, p.library) == (dtype, library))
    by_shape = pairs_by_shape(points, kernel)
    far = {other: _octaves(other, (n, k)) for other in by_shape if other != shape}
    near = sorted((s for s in far if far[s] <= NEAREST_OCTAVES), key=lambda s: far[s])
    return {other: by_shape[other] for other in near[:WITNESSES]}


def _octaves(one: tuple[int, int], other: tuple[int, int]) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))
