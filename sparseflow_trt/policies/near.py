"""Which measured shapes speak for one that was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sparseflow_trt.policies.policy import Pair, Point, Policy

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


def nearest_shape(shapes: Iterable[Shape], n: int, k: int) -> Shape | None:
    """The (N, K) that speaks for a layer: the nearest, None where none is within NEAREST_OCTAVES."""
    far = {shape: _octaves(shape, (n, k)) for shape in shapes} if n and k else {}
    shape = min(far, key=lambda other: far[other], default=None)
    return shape if shape and far[shape] <= NEAREST_OCTAVES else None


def witnesses_of(
    speaks: Shape | None, n: int, k: int, points: Iterable[Point],
    pairs_of: Callable[[list[Point]], dict[int, Pair]],
) -> dict[Shape, dict[int, Pair]]:  # fmt: skip
    """The WITNESSES nearest shapes beside the one that speaks for another, whatever their kinds.

    Args:
        speaks: The (N, K) that speaks for the layer; None where none does.
        n: The layer's outputs.
        k: Its inputs.
        points: Of all shapes; not looked at where the layer's own shape speaks.
        pairs_of: The pairs of one shape's points; a shape that has none is no witness.
    """
    if speaks in (None, (n, k)):
        return {}
    by_shape: dict[Shape, list[Point]] = {}
    for point in points:
        by_shape.setdefault((point.n, point.k), []).append(point)
    far = {shape: _octaves(shape, (n, k)) for shape in by_shape if shape != speaks}
    found: dict[Shape, dict[int, Pair]] = {}
    for shape in sorted((s for s in far if far[s] <= NEAREST_OCTAVES), key=lambda s: far[s]):
        if len(found) == WITNESSES:
            break
        if pairs := pairs_of(by_shape[shape]):
            found[shape] = pairs
    return found


def _octaves(one: Shape, other: Shape) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))
