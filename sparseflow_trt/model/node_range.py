"""What one run of a model shows of each node: the range of its output, and what a narrower type costs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-14  # of full precision: what is below is subnormal, and loses bits
FILL = 1e30  # what is as large is no measured quantity but a mask's fill: -3.4e38, or infinity

# One row for each node. Sums of squares are in units of the square of the output's largest value, since FP32
# has no room for the square of 1e20.
COLUMNS = (
    "size", "beyond", "largest", "above", "tiny", "squares",
    "fp16_squares", "bf16_squares", "k", "sum_bound",
)  # fmt: skip


@dataclass(frozen=True)
class NodeRange:
    """One node's first floating-point output over all runs, and its error in narrower types.

    Attributes:
        size: Elements of the output in the largest run.
        largest: The largest magnitude, mask fills (1e30 and more) left out.
        fills: How many elements are fills, infinite or NaN.
        above: How many of the others are beyond FP16's largest number.
        tiny: The share of the output's elements that are not zero and subnormal in FP16.
        fp16_error: The relative L2 error of the output where this node alone reads and writes FP16 and
            computes in FP32; infinite where it becomes infinite or NaN; None where it was not measured.
        bf16_error: The same for BF16.
        k: How many terms the sums of a product have; 1 for what is no product.
        sum_bound: The largest sum of a product's terms' magnitudes: no partial sum is beyond it in any
            order. 0 for what is no product.
    """

    size: int
    largest: float
    fills: int
    above: int
    tiny: float
    fp16_error: float | None
    bf16_error: float | None
    k: int
    sum_bound: float

    @property
    def overflows(self) -> bool:
        """Whether FP16 cannot hold the output."""
        return self.above > 0

    @property
    def work(self) -> float:
        """M·N·K of a product; of anything else, its output's elements."""
        return float(self.size) * self.k


def range_from_row(row: Sequence[float], measured: bool) -> NodeRange:
    """The range that one row of COLUMNS says; `measured` is whether the node ran in narrower types, too."""
    c = dict(zip(COLUMNS, (float(x) for x in row), strict=True))
    return NodeRange(
        size=int(c["size"]),
        largest=c["largest"],
        fills=int(c["beyond"]),
        above=int(c["above"]),
        tiny=c["tiny"] / c["size"] if c["size"] else 0.0,
        fp16_error=_error(c["fp16_squares"], c["squares"]) if measured else None,
        bf16_error=_error(c["bf16_squares"], c["squares"]) if measured else None,
        k=max(int(c["k"]), 1),
        sum_bound=c["sum_bound"],
    )


def joined(ranges: Sequence[NodeRange]) -> NodeRange:
    """One node's range over several runs: the worst of each."""
    return NodeRange(
        size=max(r.size for r in ranges),
        largest=max(r.largest for r in ranges),
        fills=max(r.fills for r in ranges),
        above=max(r.above for r in ranges),
        tiny=max(r.tiny for r in ranges),
        fp16_error=_worst([r.fp16_error for r in ranges]),
        bf16_error=_worst([r.bf16_error for r in ranges]),
        k=max(r.k for r in ranges),
        sum_bound=max(r.sum_bound for r in ranges),
    )


def fp16_sum_error(k: int) -> float:
    """What adding up K terms of random signs one by one in FP16 is off by, relative to the sum.

    Each of the K additions rounds a partial sum of k terms, whose root mean square is √k of a term's, by
    u/√3 with u = 2^-11 (its largest relative rounding); the squares add up to u²K²/6 of a term's, and
    the sum itself is √K of a term's. (The argument is that of Higham and Mary, A New Approach to
    Probabilistic Rounding Error Analysis, 2019.) Kernels that add up in parts lose less.
    """
    return 2.0**-11 * math.sqrt(k / 6)


def _error(squares: float, own: float) -> float:
    if not math.isfinite(squares):
        return math.inf
    return math.sqrt(squares / own) if own > 0 else math.sqrt(squares)


def _worst(errors: list[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return max(known) if known else None
