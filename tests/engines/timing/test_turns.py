"""Pieces of work that take turns, on a model of a GPU."""

from __future__ import annotations

import pytest

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
