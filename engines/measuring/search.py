"""The search for crossovers: which M to measure next of each product, given what was measured so far.

It keeps nothing in mind but the measurements, so that a run that was killed goes on from its journal, and
no M is ever measured twice.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request, Workers
from sparseflow_trt.policies.between import wins_between
from sparseflow_trt.policies.policy import Pair

# A crossover is found when the two measured M around it are no farther apart than this, or no M that is
# worth measuring lies between them: kernels work on tiles, and above 8 only multiples of 8 are tried.
RESOLUTION = 0.05
_STEP = 8

# Two neighbouring M at both of which sparse wins may hide one where it does not (`between`). Where a lookup
# would not take sparse between them and they are this far apart, half-way is measured, too.
_WIDE = 1.8


@dataclass(frozen=True)
class Crossover:
    """Two neighbouring measured M of a curve, sparse winning at one of them alone."""

    curve: Curve
    low: int
    high: int
    wins_above: bool

    @property
    def is_open(self) -> bool:
        """Whether it can be told more exactly."""
        return middle(self.low, self.high) is not None


def middle(low: int, high: int) -> int | None:
    """The M to measure between two: near their geometric mean, a multiple of 8 above 8; None if none is."""
    if high <= low * (1 + RESOLUTION):
        return None
    mean = math.sqrt(low * high)
    around = (math.floor(mean), math.ceil(mean))
    if mean > _STEP:
        around = (math.floor(mean / _STEP) * _STEP, math.ceil(mean / _STEP) * _STEP)
    inside = [m for m in around if low < m < high]
    return min(inside, key=lambda m: abs(math.log(m / mean)), default=None)


def find_crossovers(
    curves: Iterable[Curve], measured: Mapping[Request, Pair], margin: float
) -> tuple[Crossover, ...]:
    """Where sparse begins or ceases to win by the margin, between the measured M of each curve."""
    found = []
    for curve, low, high in _neighbours(curves, measured):
        before, after = (measured[Request(curve, m)].wins(margin) for m in (low, high))
        if before != after:
            found.append(Crossover(curve, low, high, after))
    return tuple(found)


def find_doubtful(
    curves: Iterable[Curve], measured: Mapping[Request, Pair], margin: float, wave: int
) -> tuple[Request, ...]:
    """The M half-way between far neighbours at both of which sparse wins, and between which it may not."""
    found = []
    for curve, low, high in _neighbours(curves, measured):
        half = (low + high) // 2 // _STEP * _STEP
        if high >= _WIDE * low and low < half:
            before, after = (measured[Request(curve, m)] for m in (low, high))
            both_win = before.wins(margin) and after.wins(margin)
            if both_win and not wins_between(before, after, margin, wave):
                found.append(Request(curve, half))
    return tuple(found)


def _neighbours(
    curves: Iterable[Curve], measured: Mapping[Request, Pair]
) -> Iterator[tuple[Curve, int, int]]:
    """Each two M of a curve between which none is measured."""
    sizes: dict[Curve, list[int]] = {}
    for request in measured:
        sizes.setdefault(request.curve, []).append(request.m)
    for curve in curves:
        for low, high in itertools.pairwise(sorted(sizes.get(curve, ()))):
            yield curve, low, high


def incomplete_curves(
    curves: Iterable[Curve], grid: Iterable[int], measured: Container[Request]
) -> set[Curve]:
    """Those of which some M of the grid is not measured."""
    sizes = tuple(grid)
    return {curve for curve in curves if any(Request(curve, m) not in measured for m in sizes)}


def next_requests(
    curves: Sequence[Curve], grid: Sequence[int], measured: Mapping[Request, Pair], margin: float, wave: int
) -> list[Request]:
    """What is still to be measured, as far as it is known yet: the grid, where it is in doubt, crossovers.

    A curve is looked into once its grid is complete.
    """
    missing = [r for curve in curves for m in grid if (r := Request(curve, m)) not in measured]
    incomplete = incomplete_curves(curves, grid, measured)
    complete = [curve for curve in curves if curve not in incomplete]
    halves = (
        (crossover.curve, middle(crossover.low, crossover.high))
        for crossover in find_crossovers(complete, measured, margin)
    )
    doubtful = find_doubtful(complete, measured, margin, wave)
    return [*missing, *doubtful, *(Request(curve, m) for curve, m in halves if m is not None)]


@dataclass(frozen=True)
class Left:
    """What is left of a search: about how many points, and how many of the crossovers seen are open."""

    points: int
    crossovers: int


def what_is_left(
    curves: Sequence[Curve], grid: Sequence[int], measured: Mapping[Request, Pair], margin: float, wave: int
) -> Left:
    """How much there is still to measure, for the crossovers that are seen so far.

    Steps of 8 can make one point more of each crossover than halves would.
    """
    missing = sum(Request(curve, m) not in measured for curve in curves for m in grid)
    missing += len(find_doubtful(curves, measured, margin, wave))
    still = [c for c in find_crossovers(curves, measured, margin) if c.is_open]
    halvings = sum(math.ceil(math.log2(math.log(c.high / c.low) / math.log1p(RESOLUTION))) for c in still)
    return Left(missing + halvings, len(still))


def search(
    curves: Sequence[Curve],
    grid: Sequence[int],
    measured: Mapping[Request, Pair],
    workers: Workers,
    margin: float,
    wave: int,
    on_measured: Callable[[Measured], None],
    go_on: Callable[[], bool] = lambda: True,
) -> dict[Request, Pair]:
    """Measures the grid of every curve, and on into each crossover until it is found.

    Args:
        curves: What to measure.
        grid: The M that every curve is measured at.
        measured: What is known already.
        workers: Those that measure.
        margin: The share by which sparse has to be faster to win.
        wave: Elements of y that count as computed at once (`between.wave_of`).
        on_measured: Called with each answer as it comes; before an error is raised, too, with those that
            other workers were about to give.
        go_on: Asked before each request; once it says no, only what is under way is waited for.

    Returns:
        All that is known at the end.
    """
    known = dict(measured)
    under_way: set[Request] = set()
    while True:
        open_requests = [r for r in next_requests(curves, grid, known, margin, wave) if r not in under_way]
        for request in open_requests[: workers.count - len(under_way)]:
            if not go_on():
                break
            workers.submit(request)
            under_way.add(request)
        if not under_way:
            return known
        try:
            answer = workers.next_measured()
        except Exception:
            for other in _rest(workers, len(under_way) - 1):
                on_measured(other)
            raise
        under_way.remove(answer.request)
        known[answer.request] = answer.counted
        on_measured(answer)


def _rest(workers: Workers, count: int) -> Iterator[Measured]:
    """The last answers of a run that ends with an error. Further errors are left: the next run meets them."""
    for _ in range(count):
        with contextlib.suppress(Exception):
            yield workers.next_measured()
