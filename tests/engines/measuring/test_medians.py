"""The interval of a median holds it as often as it says, and samples are taken until it is narrow."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.engines.measuring.medians import Effort, median_of, sample_until_narrow


# n, and which of the ordered samples bound the interval, counted from 1 (David and Nagaraja; also Hahn and
# Meeker, Statistical Intervals, table A.17)
@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (50, 18, 33), (100, 40, 61)],
)
def test_the_interval_ends_at_the_tabled_order_statistics(n: int, low: int, high: int) -> None:
    samples = [float(i) for i in range(1, n + 1)]
    random.Random(n).shuffle(samples)
    median = median_of(samples)
    assert (median.low, median.high, median.runs) == (low, high, n)
    assert median.value == (n + 1) / 2


@given(st.integers(6, 300))
def test_one_sample_further_in_the_interval_would_not_cover_enough(n: int) -> None:
    median = median_of([float(i) for i in range(n)])
    rank = int(median.low) + 1

    def coverage(rank: int) -> float:
        return 1 - float(2 * sum(math.comb(n, i) for i in range(rank)) / 2**n)

    assert median.high == n - rank
    assert coverage(rank) >= 0.95 > coverage(rank + 1)


def test_the_interval_holds_the_median_of_a_skewed_distribution_95_times_of_100() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(2000):
        median = median_of([draw.expovariate(1.0) for _ in range(21)])
        hits += median.low <= math.log(2) <= median.high
    assert hits / 2000 >= 0.94


@given(st.lists(st.floats(1e-3, 1e6), min_size=6, max_size=40))
def test_the_median_lies_in_its_interval(samples: list[float]) -> None:
    median = median_of(samples)
    assert median.low <= median.value <= median.high
    assert median.value == statistics.median(samples)


def test_too_few_samples_have_no_interval() -> None:
    with pytest.raises(ValueError, match="5 samples"):
        median_of([1.0] * 5)


class Machine:
    """A clock, and kernels whose samples take their time on it."""

    def __init__(self, *draw: Callable[[], float]) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self.draw = draw

    def clock(self) -> float:
        return self.now

    def sample(self, count: int) -> Sequence[Sequence[float]]:
        self.asked.append(count)
        taken = [[draw() for _ in range(count)] for draw in self.draw]
        self.now += sum(map(sum, taken))
        return taken


def test_steady_kernels_are_sampled_once_after_the_warm_up() -> None:
    machine = Machine(lambda: 0.001, lambda: 0.002)
    dense, sparse = sample_until_narrow(machine.sample, Effort(warm_up=0.05), machine.clock)
    assert (dense.value, sparse.value, dense.runs) == (0.001, 0.002, 10)
    assert machine.asked == [10, 10, 10]  # 0.03 s each: two of them warm up


def test_noise_of_one_kernel_is_averaged_out_for_both() -> None:
    noise = random.Random(0)
    machine = Machine(lambda: 0.001, lambda: 0.001 * noise.gauss(1, 0.03))
    dense, sparse = sample_until_narrow(machine.sample, Effort(most=1000, seconds=10), machine.clock)
    assert sparse.half_width <= 0.01 < median_of([0.001 * noise.gauss(1, 0.03) for _ in range(10)]).half_width
    assert dense.runs == sparse.runs > 20


@pytest.mark.parametrize(
    ("effort", "runs"),
    [(Effort(most=40), 40), (Effort(most=10**9, seconds=0.095), 30), (Effort(batch=1, most=1), 6)],
)
def test_a_limit_ends_what_stays_wide(effort: Effort, runs: int) -> None:
    turn = iter(range(10**6))
    machine = Machine(lambda: 0.001 if next(turn) % 2 else 0.005, lambda: 0.0005)
    wide, _ = sample_until_narrow(machine.sample, effort, machine.clock)
    assert (wide.runs, wide.half_width > 0.01) == (runs, True)
