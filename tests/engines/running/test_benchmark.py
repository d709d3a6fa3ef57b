"""Timing on a simulated GPU whose engines take as long as they are told, and the arithmetic of times."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.engines.running.benchmark import (
    EngineMemory,
    Ratio,
    Timing,
    _quantile,
    _timing,
    add_layers,
    ratio,
    time_interleaved,
)
from sparseflow_trt.engines.running.layer_times import LayerTime, layer_times, make_recorder
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import load_flavour

TIMES = st.floats(0.001, 1000)
FEEDS = {"x": np.ones((2, 2), np.float32)}


def test_engines_are_timed_in_turn(load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[float] = []
    with load(ms=2.0) as one, load(ms=3.0) as other:
        for engine in (one, other):
            time = engine.cuda.time

            def noted(stream: int, work: Callable[[], None], times: int, time: object = time) -> list[float]:
                took: list[float] = time(stream, work, times)  # type: ignore[operator]
                order.append(took[0])
                return took

            monkeypatch.setattr(engine.cuda, "time", noted)
        timings = time_interleaved((one, other), FEEDS, rounds=2, launches=4)
    assert order == [2, 3] * 3
    assert [(t.p50, t.p90, t.p99, t.launches, t.rounds, t.per_second) for t in timings] == [
        (2, 2, 2, 8, (2, 2), 500),
        (3, 3, 3, 8, (3, 3), 1000 / 3),
    ]
    assert ratio(timings[1], timings[0]) == Ratio(1.5, 1.5, 1.5)
    memory = timings[0].memory
    assert memory == EngineMemory(context=4096, loaded=0)


def test_layers_are_added_when_asked_for(load: Callable[..., Engine]) -> None:
    with load() as engine:
        (timing,) = time_interleaved((engine,), FEEDS, rounds=1, launches=1)
        assert timing.layers == ()
        (timing,) = add_layers((timing,), (engine,), FEEDS)
    assert timing.layers == (LayerTime("first", 1, 0.25), LayerTime("second", 3, 0.75))
    assert timing.p50 == 2


@given(st.lists(TIMES, min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = _quantile(sorted(values), percent)
    assert found in values
    assert 100 * sum(v <= found for v in values) >= percent * len(values)
    assert 100 * sum(v < found for v in values) < percent * len(values)


@given(st.lists(st.lists(TIMES, min_size=1, max_size=20), min_size=1, max_size=10))
def test_percentiles_are_in_order_and_over_all_launches(rounds: list[list[float]]) -> None:
    timing = _timing(rounds)
    assert timing.p50 <= timing.p90 <= timing.p99 <= max(map(max, rounds))
    assert timing.launches == sum(map(len, rounds))
    assert timing.rounds == tuple(map(statistics.median, rounds))
    assert timing.per_second == 1000 / timing.p50


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=20))
def test_the_ratio_lies_within_its_spread(pairs: list[tuple[float, float]]) -> None:
    base, other = (
        Timing(rounds, 1, 1, 1, 1) for rounds in (tuple(b for b, _ in pairs), tuple(o for _, o in pairs))
    )
    found = ratio(base, other)
    assert found.low <= found.median <= found.high
    assert {found.low, found.high} <= {b / o for b, o in pairs}
    assert ratio(base, base) == Ratio(1, 1, 1)


NAMES = st.sampled_from("abcd")


@given(st.lists(st.dictionaries(NAMES, st.floats(0, 10), min_size=1), min_size=1, max_size=9))
def test_layer_times_are_medians_and_shares_of_their_sum(runs: list[dict[str, float]]) -> None:
    layers = layer_times(runs)
    assert {layer.name for layer in layers} == {name for run in runs for name in run}
    for layer in layers:
        assert layer.ms == statistics.median(run.get(layer.name, 0.0) for run in runs)
    total = sum(layer.ms for layer in layers)
    assert sum(layer.share for layer in layers) == pytest.approx(1 if total else 0)


def test_no_runs_have_no_layers() -> None:
    assert layer_times([]) == ()


def test_the_bindings_take_the_recorder_and_a_loops_rounds_add_up() -> None:
    runs: list[dict[str, float]] = [{}]
    recorder = make_recorder(load_flavour("tensorrt-rtx").module, runs)
    for name, ms in (("body", 1.0), ("end", 0.5), ("body", 2.0)):
        recorder.report_layer_time(name, ms)
    runs.append({})
    recorder.report_layer_time("body", 5.0)
    assert runs == [{"body": 3.0, "end": 0.5}, {"body": 5.0}]
