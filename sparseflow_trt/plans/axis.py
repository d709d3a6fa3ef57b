"""One axis of a profile: what M layers have along it, and where a user's traffic lies on it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseflow_trt._listing import did_you_mean
from sparseflow_trt.errors import ShapeError
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.shapes import Dims, Profile, dims_at
from sparseflow_trt.plans.traffic import Traffic

# Sizes of an axis with their weights; sizes grow.
Weighted = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Axis:
    """A named dimension with a range, from 1 on (at 0 nothing is computed), and the others at their opt."""

    name: str
    low: int
    opt: int
    high: int
    others: dict[str, int]

    def m(self, expression: SymbolicM, size: int) -> int | None:
        """A product's M where the axis has this size, or None where it is not known."""
        m = expression.evaluate({**self.others, self.name: size})
        return None if m is None else max(m, 1)

    def first_size(self, expression: SymbolicM, m: int) -> int:
        """The smallest size from which on M is at least `m`; one more than the largest where none is."""
        sizes = range(self.low, self.high + 1)
        return self.low + bisect_left(sizes, m, key=lambda size: self.m(expression, size) or 1)


def axis_of(profile: Profile, name: str, input_dims: dict[str, Dims]) -> Axis:
    """The axis of that name as a profile ranges it.

    Raises:
        ShapeError: The model's inputs have no such axis.
    """
    low, opt, high = (dims_at(input_dims, profile, point) for point in ("min", "opt", "max"))
    if name not in opt:
        known = ", ".join(sorted(opt)) or "none"
        hint = did_you_mean(name, opt, "Name one of these.")
        raise ShapeError(f"axis '{name}' is not in the model, which has: {known}.", hint)
    return Axis(name, max(low[name], 1), opt[name], high[name], opt)


def main_m(axis: Axis, work: Mapping[SymbolicM, float]) -> SymbolicM:
    """The M that most of the work has, of those that depend on the axis.

    Args:
        axis: The axis.
        work: For each M that there is, how much is multiplied for each of its rows.

    Raises:
        ShapeError: No M is known to depend on the axis.
    """
    ends = {m: (axis.m(m, axis.low), axis.m(m, axis.high)) for m in work}
    able = [m for m, (low, high) in ends.items() if low is not None and low != high]
    if not able:
        known = ", ".join(sorted({str(m) for m in work})) or "none"
        raise ShapeError(
            f"no layer's M is known to depend on axis '{axis.name}'.",
            f"Name an axis of the layers' M, which are: {known}.",
        )
    return max(able, key=lambda m: (work[m], str(m)))


def place_traffic(
    axis: Axis, main: SymbolicM, traffic: Traffic, profile: Profile, input_dims: dict[str, Dims]
) -> tuple[Weighted, float]:
    """Where on the axis a traffic's M lie, with the other axes at their opt.

    An M that only other sizes of those axes make lies at the axis's nearer end.

    Args:
        axis: The axis.
        main: What M the traffic speaks of.
        traffic: How often which M comes.
        profile: The whole range.
        input_dims: Each input's dimensions, by name.

    Returns:
        Sizes with weights, and the share of the traffic that no shape of the profile holds.

    Raises:
        ShapeError: No shape of the profile holds any of it.
    """
    least, most = (main.evaluate(dims_at(input_dims, profile, point)) or 1 for point in ("min", "max"))
    placed: dict[int, float] = {}
    for m, weight in traffic.sizes:
        if least <= m <= most:
            size = min(axis.first_size(main, m), axis.high)
            placed[size] = placed.get(size, 0.0) + weight
    if not placed:
        raise ShapeError(
            f"no M of the traffic lies between {least} and {most}, the range that the shapes allow.",
            "Give the axes ranges that cover the traffic.",
        )
    return sorted(placed.items()), max(0.0, 1 - sum(placed.values()) / traffic.total)


def opt_size(axis: Axis, low: int, high: int, traffic: Weighted) -> int:
    """The opt of a part of the axis: its traffic's median, else the axis's opt, else the geometric mean."""
    inside = [(size, weight) for size, weight in traffic if low <= size <= high]
    if inside:
        return median_size(inside)
    return axis.opt if low <= axis.opt <= high else round(math.sqrt(low * high))


def median_size(weighted: Weighted) -> int:
    """The smallest size that at least half of the weight does not exceed."""
    half, below = sum(weight for _, weight in weighted) / 2, 0.0
    for size, weight in weighted:
        below += weight
        if below >= half:
            return size
    return weighted[-1][0]
