"""Splits an optimization profile along one axis where layers change between sparse and dense.

TensorRT takes one kernel a layer and profile: the one that is best at the profile's opt. At another size
the other kernel may be faster. A cut at a crossover saves that time and costs a profile: build time, and
device memory for its context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.axis import Axis, Weighted, axis_of, main_m, opt_size, place_traffic
from sparseflow_trt.plans.crossovers import LayerShape, Losses, find_crossovers, measure_losses
from sparseflow_trt.plans.shapes import POINTS, Dims, Profile, ShapeRange, dims_at, terms
from sparseflow_trt.plans.traffic import Traffic
from sparseflow_trt.policies.policy import Policy

MOST_PARTS = 4
_MOST_TOLD = 8  # sizes that a reason names one by one
LEAST_GAIN = 0.005  # of the products' time, by each cut


@dataclass(frozen=True)
class Split:
    """How a profile is to be split.

    Attributes:
        axis: A named dimension of the model's inputs.
        traffic: How often which M comes: M of the layers that most of the arithmetic is in.
    """

    axis: str
    traffic: Traffic | None = None


def split_profile(
    profile: Profile,
    split: Split,
    input_dims: dict[str, Dims],
    products: Mapping[LayerShape, int],
    policy: Policy | None,
) -> tuple[tuple[Profile, ...], str]:
    """Splits a profile into parts, so that one kernel a layer and part loses little.

    There are at most MOST_PARTS parts, without gap or overlap, and each cut gains LEAST_GAIN at least: of
    all such splits it is the one that loses least. Without traffic every octave of the axis counts alike.
    Other axes stay as they are, and count at their opt.

    Each part's opt is the median of its traffic; without any, the given opt in the part that holds it, and
    the geometric mean of its ends in the others.

    Args:
        profile: The whole range.
        split: Along which axis.
        input_dims: Each input's dimensions, by name.
        products: The model's weighted layers, with how many there are of each.
        policy: Where sparse wins; with None nothing is cut.

    Returns:
        The profiles, and why they were cut there, or were not, in words.

    Raises:
        ShapeError: The model has no such axis, no layer's M depends on it, or no shape of the profile
            holds any M of the traffic.
    """
    axis = axis_of(profile, split.axis, input_dims)
    if axis.low == axis.high:
        unused = ", so the traffic was not used" if split.traffic else ""
        return (profile,), f"axis '{axis.name}' is not split: it has the one size {axis.low}{unused}"
    work: dict[SymbolicM, float] = {}
    for product, count in products.items():
        work[product.m] = work.get(product.m, 0.0) + product.n * product.k * count
    main = main_m(axis, work)
    traffic: Weighted = ()
    weighed = "every octave counts alike"
    if split.traffic:
        traffic, outside = place_traffic(axis, main, split.traffic, profile, input_dims)
        weighed = "weighed by the traffic"
        if outside:
            weighed += f", of which {outside:.1%} is left out: no shape of the profile holds it"
    cuts, why = _find_cuts(axis, products, policy, traffic)
    low = dims_at(input_dims, profile, "min")[axis.name]  # 0 where it may be empty
    parts = tuple(
        _part(
            profile,
            axis.name,
            input_dims,
            (low, axis.opt, axis.high),
            (begin, opt_size(axis, max(begin, axis.low), after - 1, traffic), after - 1),
        )
        for begin, after in pairwise([low, *cuts, axis.high + 1])
    )
    if not cuts:
        parts = tuple(part.model_copy(update={"name": profile.name}) for part in parts)
    return parts, f"axis '{axis.name}' {why} ({weighed})"


def choose_cuts(
    segments: int, loss: Callable[[int, int], float], price: float, most: int = MOST_PARTS
) -> tuple[int, ...]:
    """Cuts a row of segments into runs so that the runs' losses and the cuts' prices are least together.

    Exact, by dynamic programming. Of equals the one with fewer cuts is taken.

    Args:
        segments: How many segments there are.
        loss: Of one run, from its first segment to its last, both included.
        price: Of one cut.
        most: The most runs.

    Returns:
        The segments that runs begin at, without the first.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(loss(0, last), ()) for last in range(segments)]
    chosen = best[-1]
    for _ in range(1, min(most, segments)):
        # best[last]: the least cost of the segments up to `last` in one run more than before
        following: list[tuple[float, tuple[int, ...]]] = [(math.inf, ())] * segments
        for last in range(1, segments):
            for cut in range(1, last + 1):
                before, cuts = best[cut - 1]
                cost = before + price + loss(cut, last)
                if cost < following[last][0]:
                    following[last] = cost, (*cuts, cut)
        best = following
        if best[-1][0] < chosen[0] * (1 - 1e-9):  # more than rounding
            chosen = best[-1]
    return chosen[1]


def _find_cuts(
    axis: Axis, products: Mapping[LayerShape, int], policy: Policy | None, traffic: Weighted
) -> tuple[tuple[int, ...], str]:
    """The sizes that parts begin at, without the first, and why."""
    if not policy:
        return (), "is not split: without a policy no layer changes between sparse and dense along it"
    crossovers = dict(find_crossovers(axis, products, policy))
    if not crossovers:
        return (), "is not split: no layer changes between sparse and dense along it"
    starts = [axis.low, *crossovers]
    ends = [*(start - 1 for start in crossovers), axis.high]
    losses = measure_losses(axis, products, policy, starts, traffic)

    def loss(first: int, last: int) -> float:
        return _lost(losses, starts[first], ends[last], traffic)

    cuts = tuple(starts[cut] for cut in choose_cuts(len(starts), loss, LEAST_GAIN * losses.total))
    whole = loss(0, len(starts) - 1) / losses.total
    assumed = "" if losses.timed else " (assumed: the policy has thresholds for these products, and no times)"
    if not cuts:
        said = _list_kinds({size: crossovers[size] for size in crossovers})
        return (), (
            f"is not split: layers change at {said}, where one profile loses {whole:.2%} of the products' "
            f"time and a cut gains less than {LEAST_GAIN:.1%}{assumed}"
        )
    bounds = [axis.low, *cuts, axis.high + 1]
    left = sum(_lost(losses, low, after - 1, traffic) for low, after in pairwise(bounds)) / losses.total
    said = _list_kinds({size: crossovers[size] for size in cuts})
    return cuts, (
        f"is split where layers change, at {said}: one profile would lose {whole:.2%} of the products' "
        f"time, these lose {left:.2%}{assumed}"
    )


def _lost(losses: Losses, low: int, high: int, traffic: Weighted) -> float:
    return losses.of(low, high, opt_size(losses.axis, low, high, traffic))


def _list_kinds(changes: Mapping[int, tuple[str, ...]]) -> str:
    if len(changes) > _MOST_TOLD:
        kinds = dict.fromkeys(kind for kinds in changes.values() for kind in kinds)
        return f"{len(changes)} sizes from {min(changes)} to {max(changes)} ({', '.join(kinds)})"
    return ", ".join(f"{size} ({', '.join(kinds)})" for size, kinds in changes.items())


def _part(
    profile: Profile,
    axis: str,
    input_dims: dict[str, Dims],
    whole: tuple[int, int, int],
    sizes: tuple[int, int, int],
) -> Profile:
    """The profile with an axis of other sizes at min, opt and max; `whole` are those that it has there."""
    inputs = {}
    for name, given in profile.inputs.items():
        low, opt, high = (
            tuple(
                # a sum of axes ("past + seq") moves with this one of its terms
                old + size - was if isinstance(dim, str) and axis in terms(dim) else old
                for dim, old in zip(input_dims[name], given.at(point), strict=True)
            )
            for point, size, was in zip(POINTS, sizes, whole, strict=True)
        )
        inputs[name] = ShapeRange(min=low, opt=opt, max=high)
    return Profile(name=f"{axis}-{sizes[0]}-{sizes[2]}", inputs=inputs)
