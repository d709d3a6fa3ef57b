"""Times engines against each other: interleaved, so that a drift of the machine's speed hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseflow_trt.engines.runner import Array, Engine


@dataclass(frozen=True)
class Timing:
    """GPU times of one engine on one input set, in milliseconds.

    Attributes:
        rounds: The median of each round.
        p50, p90, p99: Over all launches of all rounds.
    """

    rounds: tuple[float, ...]
    p50: float
    p90: float
    p99: float
    launches: int


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second engine is: the median of the rounds' ratios, and their extremes."""

    median: float
    low: float
    high: float


def time_interleaved(
    engines: Sequence[Engine], feeds: Mapping[str, Array], rounds: int = 15, launches: int = 20
) -> tuple[Timing, ...]:
    """Times each engine `launches` times a round, the engines in turn, after one round that does not count.

    Args:
        engines: Loaded engines that take the same feeds.
        feeds: Host arrays by input name.
        rounds: How many rounds count.
        launches: CUDA graph replays a round and engine.
    """
    times: list[list[list[float]]] = [[] for _ in engines]
    for _ in range(rounds + 1):
        for engine, collected in zip(engines, times, strict=True):
            collected.append(engine.time(feeds, launches))
    return tuple(_timing(collected[1:]) for collected in times)


def ratio(base: Timing, other: Timing) -> Ratio:
    """`base` over `other`, round by round."""
    ratios = [b / o for b, o in zip(base.rounds, other.rounds, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _timing(rounds: list[list[float]]) -> Timing:
    launches = sorted(time for launched in rounds for time in launched)
    return Timing(
        rounds=tuple(statistics.median(launched) for launched in rounds),
        p50=_quantile(launches, 0.50),
        p90=_quantile(launches, 0.90),
        p99=_quantile(launches, 0.99),
        launches=len(launches),
    )


def _quantile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
