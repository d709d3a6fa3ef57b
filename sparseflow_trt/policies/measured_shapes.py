"""What a policy measured, a row for each shape and kernel: over which M, and at which M sparse wins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from sparseflow_trt.model.kinds import KINDS
from sparseflow_trt.policies.lookup import taken_where_measured
from sparseflow_trt.policies.policy import Dtype, Library, Pair, Point, Policy, SparseKernel, pairs_by_m


@dataclass(frozen=True)
class MeasuredShape:
    """One shape in one type, by one library's kernels.

    Attributes:
        kinds: Of the layers it was measured for.
        n: Their outputs.
        k: Their inputs.
        library: Whose kernels.
        dtype: The type of the product.
        kernel: What was held against dense; None where dense alone was measured.
        sizes: The M that were measured dense and by that kernel (or dense alone), ascending.
        wins: The M from and to which a lookup takes the kernel, of all M from the smallest to the largest
            that was measured, those between among them (`lookup.sparse_ranges`).
        won: At how many of the measured M it does.
        best: The pair with the largest speedup; None where dense alone was measured.
    """

    kinds: tuple[str, ...]
    n: int
    k: int
    library: Library
    dtype: Dtype
    kernel: SparseKernel | None
    sizes: tuple[int, ...]
    wins: tuple[tuple[int, int], ...]
    won: int
    best: Pair | None


def measured_shapes(policy: Policy, points: Iterable[Point]) -> tuple[MeasuredShape, ...]:
    """A row for each shape, library, type and sparse kernel of some of a policy's points.

    They are in the order of the kinds, then of N, K, library and type.

    Args:
        policy: Whose lookup says where sparse wins.
        points: Those of its points that are asked for.
    """
    groups: dict[tuple[int, int, Library, Dtype], list[Point]] = {}
    for point in points:
        groups.setdefault((point.n, point.k, point.library, point.dtype), []).append(point)
    found = [row for members in groups.values() for row in _rows(policy, members)]
    return tuple(
        sorted(found, key=lambda row: (KINDS.index(row.kinds[0]), row.n, row.k, row.library, row.dtype))
    )


def _rows(policy: Policy, points: list[Point]) -> Iterable[MeasuredShape]:
    one = points[0]
    kinds = tuple(sorted({p.kind for p in points}, key=KINDS.index))
    shape = (kinds, one.n, one.k, one.library, one.dtype)
    paired: set[int] = set()
    for kernel in get_args(SparseKernel):
        pairs = pairs_by_m(points, kernel)
        if pairs:
            wins = tuple(taken_where_measured(policy, kinds[0], pairs, kernel))
            won = sum(low <= m <= high for m in pairs for low, high in wins)
            best = max(pairs.values(), key=lambda pair: pair.speedup)
            yield MeasuredShape(*shape, kernel, tuple(pairs), wins, won, best)
            paired |= pairs.keys()
    if alone := sorted({p.m for p in points if p.kernel == "dense"} - paired):
        yield MeasuredShape(*shape, None, tuple(alone), (), 0, None)
