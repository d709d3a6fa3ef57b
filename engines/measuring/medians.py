"""Medians with confidence intervals, of timings that are repeated until the intervals are narrow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_ONE_IN = 20  # intervals may miss the median: 95 %
_FEWEST = 6  # of fewer samples not even the extremes hold the median with 95 %


@dataclass(frozen=True)
class Median:
    """The median of `runs` samples, and the 95 % confidence interval of the population's median.

    Attributes:
        value: The median, in the samples' unit.
        low: Where the interval begins.
        high: Where it ends.
        runs: How many samples there were.
    """

    value: float
    low: float
    high: float
    runs: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width, as a share of the median."""
        return (self.high - self.low) / 2 / self.value


@dataclass(frozen=True)
class Effort:
    """How long one product is timed.

    Attributes:
        half_width: The intervals are narrow enough at this half-width, as a share of the median.
        batch: Samples of each kernel in one go, after each of which the intervals are looked at.
        most: The most samples of each kernel.
        seconds: The longest time that samples are taken for.
        warm_up: Seconds of samples that do not count, before.
    """

    half_width: float = 0.01
    batch: int = 10
    most: int = 200
    seconds: float = 1.0
    warm_up: float = 0.03


def median_of(samples: Sequence[float]) -> Median:
    """The median with its distribution-free interval, whose ends are two of the samples.

    Of n independent samples the number below the population's median is binomial (n, 1/2), so that the
    interval from the l-th smallest to the l-th largest sample holds it with probability
    1 - 2·P(Bin(n, 1/2) < l), whatever the distribution; l is the largest for which that is at least 95 %.
    (H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., Wiley 2003, section 7.1.)

    Raises:
        ValueError: There are fewer than six samples, of which no such interval can be made.
    """
    n = len(samples)
    if n < _FEWEST:
        raise ValueError(f"{n} samples have no 95 % interval of their median")
    ordered = sorted(samples)
    outside, below = 0, 0  # of 2^n outcomes, those with fewer than `outside` samples below the median
    while 2 * _ONE_IN * (below + math.comb(n, outside)) <= 2**n:
        below += math.comb(n, outside)
        outside += 1
    return Median(statistics.median(ordered), ordered[outside - 1], ordered[n - outside], n)


def sample_until_narrow(
    sample: Callable[[int], Sequence[Sequence[float]]], effort: Effort, clock: Callable[[], float]
) -> tuple[Median, ...]:
    """Takes samples of several kernels until the interval of each is narrow, or a limit of `effort` is met.

    Args:
        sample: Takes that many samples of each kernel, in turn, and gives each kernel's.
        effort: When it is enough.
        clock: Seconds, as time.perf_counter gives them.

    Returns:
        A median for each kernel.
    """
    begun = clock()
    while clock() - begun < effort.warm_up:
        sample(effort.batch)
    begun = clock()
    collected = [list(samples) for samples in sample(max(effort.batch, _FEWEST))]
    while True:
        medians = tuple(median_of(samples) for samples in collected)
        if all(m.half_width <= effort.half_width for m in medians):
            return medians
        if len(collected[0]) >= effort.most or clock() - begun >= effort.seconds:
            return medians
        for samples, more in zip(collected, sample(effort.batch), strict=True):
            samples.extend(more)
