"""Which measured shapes speak for one that was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sparseflow_trt.policy import Pair, Point, Policy

Shape = tuple[int, int]  # (N, K)

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


def points_by_shape(points: Iterable[Point]) -> dict[Shape, list[Point]]:
    """Points by their (N, K)."""
    found: dict[Shape, list[Point]] = {}
    for point in points:
        found.setdefault((point.n, point.k), []).append(point)
    return found


def witnesses_of(
    speaks: Shape | None,
    n: int,
    k: int,
    shapes: Iterable[Shape],
    pairs_of: Callable[[Shape], dict[int, Pair]],
) -> dict[Shape, dict[int, Pair]]:
    """The WITNESSES nearest shapes beside the one that speaks for another, whatever their kinds.

    Args:
        speaks: The (N, K) that speaks for the layer; None where none does.
        n: The layer's outputs.
        k: Its inputs.
        shapes: Those that were measured.
        pairs_of: The times of one; a shape that has none is no witness.
    """
    if speaks in (None, (n, k)):
        return {}
    far = {shape: _octaves(shape, (n, k)) for shape in shapes if shape != speaks}
    found: dict[Shape, dict[int, Pair]] = {}
    for shape in sorted((s for s in far if far[s] <= NEAREST_OCTAVES), key=lambda s: far[s]):
        if len(found) == WITNESSES:
            break
        if pairs := pairs_of(shape):
            found[shape] = pairs
    return found


def _octaves(one: tuple[int, int], other: tuple[int, int]) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))
