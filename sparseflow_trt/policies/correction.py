"""How far TensorRT's kernels were from PyTorch's of the same product, at the M where both were timed.

Times differ more from library to library than they do from one M to the next: of one product TensorRT's dense
kernel takes 0.86 to 1.59 times as long as cuBLAS's, and the plugin 0.93 to 1.17 times as long as cuSPARSELt's
that it runs (an H200 in FP16, shipped/h200.json). Where few M were timed in TensorRT and many in PyTorch,
the former say how long a product takes and the latter how that goes from one M to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseflow_trt.policies.between import around, time_between
from sparseflow_trt.policies.policy import Pair, Point, dense_by_m, pairs_by_m


@dataclass(frozen=True)
class Correction:
    """Times of one shape and type in both libraries, by M, which grows.

    Attributes:
        timed: cuBLAS's and cuSPARSELt's.
        dense: TensorRT's dense kernel's, at some of these M.
        plugin: The plugin's; none where it was not timed: it counts as cuSPARSELt.
    """

    timed: Mapping[int, Pair]
    dense: Mapping[int, Point]
    plugin: Mapping[int, Point]

    def pair(self, m: int, timed: Pair) -> Pair:
        """What took so long in PyTorch at M, as TensorRT would take it."""
        return Pair(_longer(timed.dense, self._of_dense(m)), _longer(timed.sparse, self._of_sparse(m)))

    def pairs(self) -> dict[int, Pair]:
        """All that was timed in PyTorch, so."""
        return {m: self.pair(m, timed) for m, timed in self.timed.items()}

    def gain(self, m: int) -> float:
        """What a speedup of PyTorch's kernels at M is to be multiplied by."""
        return self._of_dense(m) / self._of_sparse(m)

    def behind(self, m: int) -> tuple[Point, ...]:
        """TensorRT's points that it rests on at M."""
        return tuple(points[size] for points in (self.dense, self.plugin) for size in around(list(points), m))

    def _of_dense(self, m: int) -> float:
        return _ratio(m, self.dense, {size: self.timed[size].dense for size in self.dense})

    def _of_sparse(self, m: int) -> float:
        return _ratio(m, self.plugin, {size: self.timed[size].sparse for size in self.plugin})


def correction_of(points: Sequence[Point]) -> Correction | None:
    """What the points of one shape and type say of it; None without TensorRT's dense kernel."""
    timed = pairs_by_m(p for p in points if p.library == "torch")
    there = [p for p in points if p.library == "tensorrt" and p.m in timed]
    plugin = {m: pair.sparse for m, pair in pairs_by_m(there, "plugin").items()}
    return Correction(timed, dense, plugin) if (dense := dense_by_m(there)) else None


def _ratio(m: int, theirs: Mapping[int, Point], ours: Mapping[int, Point]) -> float:
    """TensorRT's time over PyTorch's: between two M on the line log over log, beyond the ends as there."""
    beside = around(list(theirs), m)
    if not beside:
        return 1.0
    there, here = (time_between(m, [points[size] for size in beside]) for points in (theirs, ours))
    return there / here


def _longer(point: Point, ratio: float) -> Point:
    return point.model_copy(update={"us": point.us * ratio, "low_us": None, "high_us": None})
