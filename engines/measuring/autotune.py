"""The search for crossovers: which M to measure next of each product, given what was measured so far.

It keeps nothing in mind but the measurements, so that a run that was killed goes on from its journal, and
no M is ever measured twice.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparseflow_trt.engines.machine.gpu_state import ClockState
from sparseflow_trt.engines.measuring.medians import Median
from sparseflow_trt.policies.between import wins_between
from sparseflow_trt.policies.policy import Dtype, Kernel, Library, Pair, Point, SparseKernel
from sparseflow_trt.policies.presets import Product

# A crossover is found when the two measured M around it are no farther apart than this, or no M that is
# worth measuring lies between them: kernels work on tiles, and above 8 only multiples of 8 are tried.
RESOLUTION = 0.05
_STEP = 8

# Two neighbouring M at both of which sparse wins may hide one where it does not (`between`). Where a lookup
# would not take sparse between them and they are this far apart, half-way is measured, too.
_WIDE = 1.8

KERNELS: tuple[SparseKernel, ...] = ("sparse", "plugin")

TOOK_DENSE = "(a dense tactic"  # in a sparse point's tactic: of all that it was allowed TensorRT took that


@dataclass(frozen=True)
class Curve:
    """One product over all M, dense and by one kernel. Two kinds with the same N and K have one curve."""

    library: Library
    dtype: Dtype
    n: int
    k: int
    kind: str = field(compare=False)
    kernel: SparseKernel = "sparse"

    def __str__(self) -> str:
        return f"{self.k}→{self.n}, {self.dtype}, {self.whose}"

    @property
    def whose(self) -> str:
        """Whose kernel is held against dense, in words."""
        return "the plugin" if self.kernel == "plugin" else self.library


@dataclass(frozen=True)
class Request:
    """One product at one M, to be measured dense and by its curve's kernel."""

    curve: Curve
    m: int

    def __str__(self) -> str:
        curve = self.curve
        return f"{curve.k}→{curve.n}, M={self.m}, {curve.dtype}, {curve.whose}"


@dataclass(frozen=True)
class Measured:
    """A request's answer.

    Attributes:
        request: What was measured.
        pair: The two points, as they were timed.
        seconds: How long it took.
        how: How kernels were timed, in two words.
        clock: The state of the GPU's clocks under that load, None where nothing tells it.
    """

    request: Request
    pair: Pair
    seconds: float
    how: str = ""
    clock: ClockState | None = None

    @property
    def counted(self) -> Pair:
        """The pair as it counts: where TensorRT took a dense tactic, one engine was timed twice.

        Both points have the mean of the two times then, and an interval that holds both intervals: what the
        two differ by is no gain. On an H200 that was up to 6 % where the power cap held the clocks back.
        """
        return _of_one_engine(self.pair) if TOOK_DENSE in self.pair.sparse.tactic else self.pair


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


class Workers(Protocol):
    """Those that measure, `count` at a time."""

    count: int

    def submit(self, request: Request) -> None:
        """Gives one of them work; there are never more than `count` requests under way."""
        ...

    def next_measured(self) -> Measured:
        """Waits for the answer to one of the requests under way.

        Where that is an error, the others are still under way.
        """
        ...


def curves_of(
    products: Iterable[Product],
    dtypes: Iterable[Dtype],
    libraries: Iterable[Library],
    plugin: bool = False,
) -> tuple[Curve, ...]:
    """A curve for each library, dtype and shape; a shape that comes twice has the kind that came first.

    With `plugin` there is one of the plugin for each of TensorRT, behind that.
    """
    known = tuple(products)
    curves = (
        Curve(library, dtype, p.n, p.k, p.kind, kernel)
        for library in libraries
        for kernel in (KERNELS if plugin and library == "tensorrt" else KERNELS[:1])
        for dtype in dtypes
        for p in known
    )
    return tuple(dict.fromkeys(curves))


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


def pair_of(request: Request, medians: Sequence[Median], tactics: tuple[str, str]) -> Pair:
    """The two points of a request, from medians in microseconds and what ran, each dense first."""
    curve = request.curve
    kernels: tuple[Kernel, Kernel] = ("dense", curve.kernel)
    dense, sparse = (
        Point(
            kind=curve.kind,
            n=curve.n,
            k=curve.k,
            m=request.m,
            dtype=curve.dtype,
            library=curve.library,
            kernel=kernel,
            us=round(median.value, 3),
            low_us=round(median.low, 3),
            high_us=round(median.high, 3),
            runs=median.runs,
            tactic=tactic,
        )
        for kernel, median, tactic in zip(kernels, medians, tactics, strict=True)
    )
    return Pair(dense, sparse)


def _of_one_engine(pair: Pair) -> Pair:
    """A pair whose two points are of one engine, with what both say of it."""
    points = (pair.dense, pair.sparse)
    bounds = [(p.low_us or p.us, p.high_us or p.us) for p in points]
    time = {
        "us": round(sum(p.us for p in points) / 2, 3),
        "low_us": min(low for low, _ in bounds),
        "high_us": max(high for _, high in bounds),
    }
    return Pair(*(p.model_copy(update=time) for p in points))


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
