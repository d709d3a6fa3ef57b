"""How far TensorRT's kernels were from PyTorch's of the same product, at the M where both were timed.

Times differ more from library to library than they do from one M to the next: of one product TensorRT's dense
kernel takes 0.86 to 1.59 times as long as cuBLAS's, and the plugin 0.93 to 1.17 times as long as cuSPARSELt's
that it runs (an H200 in FP16, policies/h200.json). Where few M were timed in TensorRT and many in PyTorch,
the former say how long a product takes and the latter how that goes from one M to the next.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseflow_trt.policy import Pair, Point, dense_by_m, pairs_by_m

_Both = Mapping[int, tuple[Point, Point]]


@dataclass(frozen=True)
class Correction:
    """Points of one shape and type in both libraries, PyTorch's first, by M, which grows.

    Attributes:
        dense: cuBLAS's and TensorRT's.
        sparse: cuSPARSELt's and the plugin's; none where the plugin was not timed: it counts as cuSPARSELt.
    """

    dense: _Both
    sparse: _Both

    def pair(self, m: int, timed: Pair) -> Pair:
        """What took so long in PyTorch at M, as TensorRT would take it."""
        dense, sparse = timed.dense.us * _ratio(self.dense, m), timed.sparse.us * _ratio(self.sparse, m)
        return Pair(_taking(timed.dense, dense), _taking(timed.sparse, sparse))

    def gain(self, m: int) -> float:
        """What a speedup of PyTorch's kernels at M is to be multiplied by."""
        return _ratio(self.dense, m) / _ratio(self.sparse, m)

    def behind(self, m: int) -> tuple[Point, ...]:
        """TensorRT's points that it rests on at M."""
        return tuple(both[size][1] for both in (self.dense, self.sparse) for size in _around(both, m))


def correction_of(points: Sequence[Point]) -> Correction | None:
    """What the points of one shape and type say of it; None without TensorRT's dense kernel."""
    timed = pairs_by_m(p for p in points if p.library == "torch")
    there = [p for p in points if p.library == "tensorrt"]
    dense, plugin = dense_by_m(there), pairs_by_m(there, "plugin")
    both = {m: (pair.dense, dense[m]) for m, pair in timed.items() if m in dense}
    sparse = {m: (pair.sparse, plugin[m].sparse) for m, pair in timed.items() if m in plugin}
    return Correction(both, sparse) if both else None


def _ratio(both: _Both, m: int) -> float:
    """TensorRT's time over PyTorch's: between two M on the line log over log, beyond the ends as there."""
    around = _around(both, m)
    if not around:
        return 1.0
    first, last = (both[size][1].us / both[size][0].us for size in (around[0], around[-1]))
    apart = math.log(around[-1] / around[0])
    share = math.log(m / around[0]) / apart if apart else 0.0
    return math.exp((1 - share) * math.log(first) + share * math.log(last))


def _around(both: _Both, m: int) -> Sequence[int]:
    sizes = list(both)
    i = bisect_left(sizes, m)
    return sizes[i : i + 1] if m in both else sizes[max(i - 1, 0) : i + 1]


def _taking(point: Point, us: float) -> Point:
    return point.model_copy(update={"us": us, "low_us": None, "high_us": None})
