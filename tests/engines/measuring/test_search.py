"""The search finds every crossover that its grid shows, measures nothing twice, and goes on where it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request
from sparseflow_trt.engines.measuring.measurers import InTurn
from sparseflow_trt.engines.measuring.search import (
    RESOLUTION,
    find_crossovers,
    find_doubtful,
    middle,
    next_requests,
    search,
    what_is_left,
)
from sparseflow_trt.policies.between import WAVE, wins_between
from sparseflow_trt.policies.policy import Dtype, Library, Pair, Point
from sparseflow_trt.policies.tactics import TOOK_DENSE

CURVE = Curve("torch", "FP16", 14336, 4096, "gate_up")
GRID = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MARGIN = 0.02

grids = st.sets(st.integers(1, 20000), min_size=1, max_size=12).map(sorted)


def pair(request: Request, speedup: float, dense_us: float = 10.0) -> Pair:
    """A dense point and a sparse one."""
    curve = request.curve
    dense = Point(
        kind=curve.kind, n=curve.n, k=curve.k, m=request.m, dtype=curve.dtype, library=curve.library,
        kernel="dense", us=dense_us,
    )  # fmt: skip
    return Pair(dense, dense.model_copy(update={"kernel": "sparse", "us": dense_us / speedup}))


class Fake:
    """Measures by a function of the request, and remembers what it was asked."""

    library: Library = "torch"

    def __init__(
        self, speedup: Callable[[Request], float], dense_us: Callable[[int], float] = lambda m: 10.0
    ) -> None:
        self.speedup, self.dense_us = speedup, dense_us
        self.asked: list[Request] = []

    def versions(self) -> dict[str, str]:
        return {}

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        return ""

    def measure(self, request: Request) -> Measured:
        self.asked.append(request)
        return Measured(request, pair(request, self.speedup(request), self.dense_us(request.m)), 0.0)


def run(
    fake: Fake,
    grid: tuple[int, ...] = GRID,
    known: dict[Request, Pair] | None = None,
    curves: tuple[Curve, ...] = (CURVE,),
    most: int = 10**6,
) -> dict[Request, Pair]:
    def go_on() -> bool:
        return len(fake.asked) < most

    crew = InTurn([fake], lambda measurers, dtypes: (_ for _ in ()).throw(AssertionError))
    return search(curves, grid, known or {}, crew, MARGIN, WAVE, lambda answer: None, go_on)


def is_exact(low: int, high: int) -> bool:
    """Whether no M worth measuring lies between two, or they are 5 % apart: counted out one by one."""
    worth = [m for m in range(low + 1, high) if m <= 8 or m % 8 == 0]
    return high <= low * (1 + RESOLUTION) or not worth


@given(st.integers(1, 20000), st.booleans(), grids)
@example(9, True, [8, 16])
@example(3, True, [1, 16])
def test_the_crossover_of_a_monotone_function_is_found_within_5_percent(
    threshold: int, above: bool, grid: list[int]
) -> None:
    fake = Fake(lambda request: 1.5 if (request.m >= threshold) == above else 0.9)
    known = run(fake, tuple(grid))
    found = find_crossovers([CURVE], known, MARGIN)
    assert len(set(fake.asked)) == len(fake.asked)
    if not grid[0] < threshold <= grid[-1]:
        assert (found, len(known)) == ((), len(grid))
        return
    (crossover,) = found
    assert crossover.low < threshold <= crossover.high
    assert crossover.wins_above is above
    assert is_exact(crossover.low, crossover.high)
    assert not crossover.is_open


@given(st.lists(st.booleans(), min_size=len(GRID), max_size=len(GRID)))
def test_each_crossover_that_the_grid_shows_is_followed(wins: list[bool]) -> None:
    by_m = dict(zip(GRID, wins, strict=True))
    fake = Fake(lambda request: 1.5 if by_m[max(m for m in GRID if m <= request.m)] else 1.0)
    known = run(fake)
    found = find_crossovers([CURVE], known, MARGIN)
    assert len(found) == sum(a != b for a, b in itertools.pairwise(wins))
    assert all(is_exact(c.low, c.high) for c in found)
    assert len(set(fake.asked)) == len(fake.asked)


@given(st.integers(1, 20000), st.integers(0, 40))
def test_a_run_that_was_killed_goes_on_to_the_same_result(threshold: int, killed_after: int) -> None:
    def speedup(request: Request) -> float:
        return 1.5 if request.m >= threshold else 0.9

    whole = Fake(speedup)
    expected = run(whole)
    killed = Fake(speedup)
    known = run(killed, most=killed_after)
    resumed = Fake(speedup)
    assert run(resumed, known=known) == expected
    assert killed.asked + resumed.asked == whole.asked


@given(st.integers(1, 20000), st.integers(0, 20))
def test_what_is_left_is_about_what_follows(threshold: int, after: int) -> None:
    def speedup(request: Request) -> float:
        return 1.5 if request.m >= threshold else 0.9

    some = run(Fake(speedup), most=after)
    left = what_is_left([CURVE], GRID, some, MARGIN, WAVE)
    rest = Fake(speedup)
    run(rest, known=some)
    complete = all(Request(CURVE, m) in some for m in GRID)
    unseen = 1 if complete else 6  # a step of 8; halvings of a crossover that the grid does not show yet
    assert len(rest.asked) <= left.points + unseen
    assert (left.points == 0) == (complete and not rest.asked)


@given(st.integers(1, 20000), st.integers(1, 20000))
def test_the_middle_lies_between_on_a_multiple_of_8(low: int, high: int) -> None:
    found = middle(low, high)
    if found is None:
        assert is_exact(low, high)
    else:
        assert low < found < high
        assert found <= 8 or found % 8 == 0
        assert not is_exact(low, high)


@given(st.floats(1.03, 2.0), st.floats(1.03, 2.0), st.integers(2, len(GRID) - 2))
def test_what_a_lookup_would_not_take_between_two_wins_is_measured_half_way(
    low: float, high: float, at: int
) -> None:
    ends = GRID[at : at + 2]
    dip = sum(ends) // 2
    speedups = dict(zip(ends, (low, high), strict=True))
    fake = Fake(lambda request: 0.9 if request.m == dip else speedups.get(request.m, 2.0), dense_us=float)
    known = run(fake)
    before, after = (known[Request(CURVE, m)] for m in ends)
    assert (Request(CURVE, dip) in known) is not wins_between(before, after, MARGIN, WAVE)
    assert len(set(fake.asked)) == len(fake.asked)


def test_times_that_do_not_rise_and_near_neighbours_are_not_doubted() -> None:
    assert {r.m for r in run(Fake(lambda request: 1.03))} == set(GRID)
    near = {Request(CURVE, m): pair(Request(CURVE, m), 1.1, m) for m in (128, 192, 256)}
    assert find_doubtful([CURVE], near, MARGIN, WAVE) == ()
    apart = {request: p for request, p in near.items() if request.m != 192}
    assert find_doubtful([CURVE], apart, MARGIN, WAVE) == (Request(CURVE, 192),)
    assert find_doubtful([CURVE], apart, MARGIN, 0) == ()
    assert what_is_left([CURVE], (128, 256), apart, MARGIN, WAVE).points == 1
    large = {request: pair(request, 2.0, request.m) for request in apart}
    assert find_doubtful([CURVE], large, MARGIN, WAVE) == ()


def test_the_grid_of_all_curves_comes_before_any_crossover() -> None:
    other = Curve("torch", "FP16", 4096, 14336, "down")
    measured = {Request(CURVE, m): pair(Request(CURVE, m), 1.5 if m > 100 else 0.9) for m in GRID}
    wanted = next_requests([CURVE, other], GRID, measured, MARGIN, WAVE)
    assert wanted[:-1] == [Request(other, m) for m in GRID]
    assert wanted[-1] == Request(CURVE, 88)


def test_earlier_points_off_the_grid_narrow_a_crossover() -> None:
    fake = Fake(lambda request: 1.5 if request.m >= 100 else 0.9)
    off_grid = {Request(CURVE, m): pair(Request(CURVE, m), s) for m, s in ((96, 0.9), (104, 1.5))}
    known = run(fake, known=off_grid)
    assert {r.m for r in fake.asked} == set(GRID)
    (crossover,) = find_crossovers([CURVE], known, MARGIN)
    assert (crossover.low, crossover.high) == (96, 104)


def test_no_crossover_is_looked_for_in_noise_of_one_engine() -> None:
    class OneEngine(Fake):
        def measure(self, request: Request) -> Measured:
            raw = super().measure(request).pair
            sparse = raw.sparse.model_copy(update={"tactic": f"gemm {TOOK_DENSE})"})
            return Measured(request, Pair(raw.dense, sparse), 0.0)

    noise = OneEngine(lambda request: 1.05 if request.m >= 100 else 0.95)
    known = run(noise)
    assert {r.m for r in noise.asked} == set(GRID)
    assert {each.speedup for each in known.values()} == {1}


def test_no_more_requests_are_under_way_than_there_are_workers() -> None:
    class Three:
        count = 3

        def __init__(self) -> None:
            self.waiting: list[Request] = []
            self.most = 0

        def submit(self, request: Request) -> None:
            assert request not in self.waiting
            self.waiting.append(request)
            self.most = max(self.most, len(self.waiting))
            assert self.most <= 3

        def next_measured(self) -> Measured:
            request = self.waiting.pop()  # answers come in another order than requests
            return Measured(request, pair(request, 1.5 if request.m >= 100 else 0.9), 0.0)

    workers = Three()
    known = search([CURVE], GRID, {}, workers, MARGIN, WAVE, lambda answer: None)
    assert workers.most == 3
    assert known == run(Fake(lambda request: 1.5 if request.m >= 100 else 0.9))
    assert math.isclose(known[Request(CURVE, 512)].speedup, 1.5)
