"""Where along an axis layers change between sparse and dense, and what one choice for a range loses."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.axis import Axis, Weighted, median_size
from sparseflow_trt.policies.expected import Expected
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import known_of, sparse_ranges
from sparseflow_trt.policies.measurements import Measurements
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.policies.tactics import times_as_long

_CELLS_AN_OCTAVE = 8

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerShape:
    """A weighted layer as far as its time goes; layers that are equal in this are counted.

    Attributes:
        dtype: What the policy calls its precision, such as "FP16".
        choosable: Whether the policy decides on it; others are dense whatever M is.
    """

    kind: str
    n: int
    k: int
    m: SymbolicM
    dtype: str
    choosable: bool

    @property
    def gemm(self) -> Gemm:
        """Its product, whatever its M."""
        return Gemm(self.kind, self.n, self.k, self.dtype)


@dataclass(frozen=True)
class _Row:
    """One product along the axis.

    Attributes:
        dense, sparse: Its weighted times at each sample.
        begins, wins: From which M on it is sparse or not.
    """

    m: SymbolicM
    dense: Times
    sparse: Times
    begins: tuple[int, ...]
    wins: tuple[bool, ...]

    def is_sparse(self, m: int) -> bool:
        """Whether the policy takes sparse at M."""
        return bool(self.begins) and self.wins[max(bisect_right(self.begins, m) - 1, 0)]


@dataclass(frozen=True)
class Losses:
    """What is lost where a product has one kernel for a range of the axis.

    Attributes:
        total: The products' time over the whole axis, each with its best kernel everywhere. The unit is
            microseconds times weight with traffic; without, octaves of the axis.
        timed: Whether the policy has times of any of the products; else thresholds and its margin stand in.
    """

    axis: Axis
    sizes: tuple[int, ...]
    total: float
    timed: bool
    _rows: tuple[_Row, ...]

    def of(self, low: int, high: int, opt: int) -> float:
        """What is lost from `low` to `high` by the kernels that win at `opt`, in the unit of `total`."""
        inside = slice(bisect_left(self.sizes, low), bisect_right(self.sizes, high))
        lost = 0.0
        for row in self._rows:
            taken = row.sparse if row.is_sparse(self.axis.m(row.m, opt) or 1) else row.dense
            best = np.minimum(row.dense, row.sparse)
            lost += float((taken[inside] - best[inside]).sum())
        return lost


def find_crossovers(
    axis: Axis, products: Mapping[LayerShape, int], policy: Policy
) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The sizes of the axis from which a product changes between sparse and dense, with the kinds that do."""
    found: dict[int, set[str]] = {}
    for product in products:
        for begin, _, _ in _ranges(axis, product, policy)[1:]:
            size = axis.first_size(product.m, begin)
            if axis.low < size <= axis.high:
                found.setdefault(size, set()).add(product.kind)
    return tuple((size, tuple(sorted(kinds))) for size, kinds in sorted(found.items()))


def measure_losses(
    axis: Axis,
    products: Mapping[LayerShape, int],
    policy: Policy,
    edges: Sequence[int],
    traffic: Weighted = (),
) -> Losses:
    """Weighs what a choice loses at sizes that stand for all of the axis.

    Args:
        axis: The axis.
        products: Layers, with how many there are of each; one whose M is not known is left out.
        policy: The times.
        edges: Sizes at which ranges may begin; no sample stands for sizes on both sides of one.
        traffic: Sizes with weights. Without any every octave counts alike, and at each size what is lost
            counts as a share of the time there: else small sizes, where a run is short, would not count.
    """
    able = {product: count for product, count in products.items() if axis.m(product.m, axis.low)}
    samples = _samples(axis, edges, traffic)
    rows = []
    timed = False
    for product, count in able.items():
        ms = [axis.m(product.m, size) or 1 for size, _ in samples]
        asked = known_of(policy, product.gemm)
        timed |= asked.own.shape is not None
        rate = _fastest_rate(asked.own)
        pairs = [_expected(asked, product.choosable, m, rate) for m in ms]
        dense, sparse = (np.array(times) * count for times in zip(*pairs, strict=True))
        ranges = _ranges(axis, product, policy)
        begins, wins = tuple(r[0] for r in ranges), tuple(r[2] for r in ranges)
        rows.append(_Row(product.m, dense, sparse, begins, wins))
    weights = np.array([weight for _, weight in samples])
    best = np.array([np.minimum(row.dense, row.sparse) for row in rows]).sum(axis=0)
    if not traffic:
        weights = weights / best
    return Losses(
        axis,
        tuple(size for size, _ in samples),
        float((weights * best).sum()),
        timed,
        tuple(_Row(r.m, r.dense * weights, r.sparse * weights, r.begins, r.wins) for r in rows),
    )


def _ranges(axis: Axis, product: LayerShape, policy: Policy) -> tuple[tuple[int, int, bool], ...]:
    low, high = axis.m(product.m, axis.low), axis.m(product.m, axis.high)
    if not product.choosable or low is None or high is None:
        return ()
    return sparse_ranges(policy, product.gemm, min(low, high), max(low, high))


def _samples(axis: Axis, edges: Sequence[int], traffic: Weighted) -> Weighted:
    count = math.ceil(math.log2(axis.high / axis.low) * _CELLS_AN_OCTAVE) + 2
    grid = {round(size) for size in np.geomspace(axis.low, axis.high, count)}
    cells = list(pairwise([*sorted(grid.union(edges)), axis.high + 1]))
    if not traffic:
        return [(round(math.sqrt(first * (after - 1))), math.log2(after / first)) for first, after in cells]
    samples = []
    for first, after in cells:
        inside = [(size, weight) for size, weight in traffic if first <= size < after]
        if inside:
            samples.append((median_size(inside), sum(weight for _, weight in inside)))
    return samples


def _expected(known: Known, choosable: bool, m: int, rate: float) -> tuple[float, float]:
    """Dense and sparse microseconds of a product at M.

    Where no measured time speaks for M, its arithmetic counts at the fastest measured rate, and the kernel
    that the policy takes is the faster one by the policy's margin; so it is where sparse is not sure to win.
    One profile has one tactic: where TensorRT took a dense one, sparse counts with a sparse tactic's time.
    """
    times, verdict = known.expect(m), known.judge(m)
    dense = times.dense_us if times else rate * known.gemm.n * known.gemm.k * m
    if not choosable:
        return dense, math.inf
    margin = 1 + known.own.policy.margin
    if times and verdict.speedup is not None and not times.doubt:
        return dense, max(times.sparse_us, dense * (_times_as_long(times, m, margin) or 0))
    return dense, dense * margin ** (-1 if verdict.sparse else 1)


def _times_as_long(times: Expected, m: int, otherwise: float) -> float | None:
    """How many times as long as dense a sparse tactic takes at M, by the point that is nearest to it."""
    sparse = (p for p in times.points if p.kernel == "sparse")
    nearest = min(sparse, key=lambda p: abs(math.log(p.m / m)), default=None)
    return times_as_long(nearest, otherwise) if nearest else None


def _fastest_rate(known: Measurements) -> float:
    whose = (known.library, known.gemm.dtype, "dense")
    points = (p for p in known.policy.points if (p.library, p.dtype, p.kernel) == whose)
    return min((p.us / (p.n * p.k * p.m) for p in points), default=1.0)
