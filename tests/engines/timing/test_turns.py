"""Pieces of work that take turns, on a model of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparseflow_trt.engines.measuring.medians import median_of
from sparseflow_trt.engines.timing.turns import times_in_turn
from tests.engines.timing.modelled_gpu import Gpu, call


def test_work_is_timed_in_turn_and_the_lead_in_is_not(gpu: Gpu) -> None:
    works = [call(gpu, 500, 10), call(gpu, 300, 10)]
    read = []
    taken = times_in_turn(
        lambda: gpu.cuda.Event(enable_timing=True),
        works,
        4,
        call(gpu, 1000, 10),
        lambda: read.append(gpu.free > gpu.host),
    )
    assert taken.ms == [pytest.approx([0.5] * 4), pytest.approx([0.3] * 4)]
    assert taken.host_seconds == pytest.approx(80e-6)
    assert (taken.ahead, read) == (True, [True])


def test_slow_calls_show_the_hosts_time_where_nothing_is_queued_ahead(gpu: Gpu) -> None:
    taken = times_in_turn(lambda: gpu.cuda.Event(enable_timing=True), [call(gpu, 20, 800)], 5, lambda: None)
    assert not taken.ahead
    assert taken.ms[0][1] == pytest.approx(0.8, rel=0.05)


def falls(done: float) -> float:
    """A GPU that gets a fifth slower from the first product to the last."""
    return 1 + 0.2 * done


def throttles(done: float) -> float:
    """One that is a fifth slower from a third of the run on."""
    return 1.2 if done > 1 / 3 else 1.0


@pytest.mark.parametrize("slowness", [falls, throttles])
def test_a_drift_of_the_machines_speed_leaves_a_ratio_as_it_is(
    gpu: Gpu, slowness: Callable[[float], float]
) -> None:
    samples = 60
    whole = samples * 800e-6

    def work(us: float) -> Callable[[], None]:
        return lambda: gpu.run(us * 1e-6 * slowness(min(gpu.free / whole, 1)))

    def speedup(*rounds: list[Callable[[], None]]) -> float:
        gpu.free = gpu.host = 0
        taken = [
            times_in_turn(lambda: gpu.cuda.Event(enable_timing=True), works, samples, lambda: None).ms
            for works in rounds
        ]
        dense, sparse = (median_of(ms) for of_round in taken for ms in of_round)
        return dense.value / sparse.value

    dense, sparse = work(500), work(300)
    assert speedup([dense, sparse]) == pytest.approx(5 / 3, rel=0.005)
    assert speedup([dense], [sparse]) < 5 / 3 * 0.95, "one after the other, the drift is in it"
