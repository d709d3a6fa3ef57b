"""Times engines against each other: interleaved, so that a drift of the machine's speed hits all alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from sparseflow_trt.engines.running.engine_tensors import Array
from sparseflow_trt.engines.running.layer_times import LayerTime
from sparseflow_trt.engines.running.runner import Engine


@dataclass(frozen=True)
class EngineMemory:
    """What an engine takes of the GPU's memory, in bytes, besides its inputs and outputs.

    Attributes:
        context: What its execution context needs, as TensorRT says it.
        loaded: By how much the GPU's free memory shrank while it was loaded: weights, context and kernels.
            The first engine of a process brings TensorRT's libraries too, and other programs count.
    """

    context: int
    loaded: int


@dataclass(frozen=True)
class Timing:
    """GPU times of one engine on one input set, in milliseconds.

    Attributes:
        rounds: The median of each round.
        p50, p90, p99: Over all launches of all rounds.
        per_second: Runs in a second, one behind the other: 1000 / p50.
        memory: What it takes of the GPU's memory, None where that was not looked at.
        layers: Its layers' times; none where they were not asked for.
    """

    rounds: tuple[float, ...]
    p50: float
    p90: float
    p99: float
    launches: int
    per_second: float | None = None
    memory: EngineMemory | None = None
    layers: tuple[LayerTime, ...] = ()


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

    Raises:
        InputError: An engine does not take the feeds.
        BuildError: An engine fails to run, or to be recorded.
    """
    times: list[list[list[float]]] = [[] for _ in engines]
    with ExitStack() as stack:
        captured = [stack.enter_context(engine.capture(feeds)) for engine in engines]
        for _ in range(rounds + 1):
            for run, collected in zip(captured, times, strict=True):
                collected.append(run.time(launches))
    timings = (_timing(collected[1:]) for collected in times)
    return tuple(
        replace(timing, memory=EngineMemory(engine.device_memory_bytes, engine.loaded_bytes))
        for engine, timing in zip(engines, timings, strict=True)
    )


def add_layers(
    timings: Sequence[Timing], engines: Sequence[Engine], feeds: Mapping[str, Array]
) -> tuple[Timing, ...]:
    """The same timings with each engine's layers, which are timed here.

    Raises:
        InputError: As `time_interleaved`.
        BuildError: As `time_interleaved`.
    """
    return tuple(
        replace(timing, layers=engine.profile_layers(feeds))
        for timing, engine in zip(timings, engines, strict=True)
    )


def ratio(base: Timing, other: Timing) -> Ratio:
    """`base` over `other`, round by round."""
    ratios = [b / o for b, o in zip(base.rounds, other.rounds, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _timing(rounds: list[list[float]]) -> Timing:
    launches = sorted(time for launched in rounds for time in launched)
    p50 = _quantile(launches, 50)
    return Timing(
        rounds=tuple(statistics.median(launched) for launched in rounds),
        p50=p50,
        p90=_quantile(launches, 90),
        p99=_quantile(launches, 99),
        launches=len(launches),
        per_second=1000 / p50 if p50 else None,
    )


def _quantile(ordered: list[float], percent: int) -> float:
    """The smallest value that at least so many percent of the values do not exceed."""
    return ordered[math.ceil(percent * len(ordered) / 100) - 1]
