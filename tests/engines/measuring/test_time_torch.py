"""The parts of timing through PyTorch that need no GPU; queues and graphs run on a model of a GPU."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.engines.measuring.curves import Curve, Request, pair_of
from sparseflow_trt.engines.measuring.medians import Median
from sparseflow_trt.engines.measuring.time_torch import relative_error, tactic_of
from sparseflow_trt.engines.timing import turns
from sparseflow_trt.engines.timing.input_sets import calls_needed, sets_needed
from sparseflow_trt.engines.timing.turns import times_in_turn
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm
from sparseflow_trt.engines.torch_kernels.torch_timing import Queue, new_event
from sparseflow_trt.errors import PolicyError

torch: Any = pytest.importorskip("torch")

L2 = 60 << 20


@given(st.integers(1, 16384), st.integers(16, 60000), st.integers(16, 30000))
def test_input_sets_exceed_the_cache_and_are_never_one(m: int, n: int, k: int) -> None:
    sets = sets_needed(m, n, k, L2)
    one = 2 * (m * k + n * k * 9 / 16 + m * n)
    assert 2 <= sets <= 256
    assert sets * one > L2 or sets == 256
    assert sets == 2 or (sets - 1) * one < 1.5 * L2


@pytest.mark.parametrize(
    ("sets", "us", "calls"), [(2, 15000.0, 2), (2, 250.0, 4), (3, 1.0, 32), (135, 3.0, 135), (2, 30.0, 32)]
)
def test_a_graph_holds_every_set_and_enough_work(sets: int, us: float, calls: int) -> None:
    assert calls_needed(sets, us) == calls


def test_points_carry_the_median_its_interval_and_the_algorithm() -> None:
    request = Request(Curve("torch", "BF16", 64, 32, "qkv"), 13)
    medians = (Median(2.0, 1.9, 2.2, 20), Median(1.00049, 0.9, 1.1, 30))
    pair = pair_of(request, medians, ("F.linear", tactic_of(request.m, Algorithm(7))))
    assert (pair.dense.kernel, pair.dense.us, pair.dense.low_us, pair.dense.high_us) == (
        "dense",
        2.0,
        1.9,
        2.2,
    )
    assert (pair.sparse.kernel, pair.sparse.us, pair.sparse.runs) == ("sparse", 1.0, 30)
    assert pair.sparse.tactic == "algorithm 7, rows padded from 13 to 16"
    assert tactic_of(16, Algorithm(7)) == "algorithm 7"
    assert (pair.sparse.kind, pair.sparse.n, pair.sparse.k, pair.sparse.m) == ("qkv", 64, 32, 13)
    assert (pair.sparse.dtype, pair.sparse.library) == ("BF16", "torch")


def test_an_error_is_seen_in_any_of_few_rows_and_a_nan_is_no_number() -> None:
    x, weight = torch.randn(20, 32), torch.randn(16, 32)
    right = torch.nn.functional.linear(x, weight)
    assert relative_error(torch, x, weight, right) < 1e-6
    padded = torch.cat([right, torch.zeros(4, 16)])
    assert relative_error(torch, x, weight, padded) < 1e-6
    for row in range(20):
        wrong = right.clone()
        wrong[row] *= 2
        assert relative_error(torch, x, weight, wrong) > 0.05
    right[3, 3] = float("nan")
    assert not relative_error(torch, x, weight, right) < 1e-2


class Gpu:
    """A model of a GPU with one stream: work begins when it is queued and what came before is done."""

    def __init__(self) -> None:
        self.host = 0.0
        self.free = 0.0  # when the GPU has done all that was queued
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self) -> None:
                gpu.free = self.at = max(gpu.free, gpu.host)

            def query(self) -> bool:
                return gpu.host >= self.at

            def synchronize(self) -> None:
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1000

        self.cuda = types.SimpleNamespace(Event=Event, _sleep=lambda cycles: self.run(cycles / 1.9e9))

    def run(self, seconds: float, host: float = 0.0) -> None:
        """Queues a kernel, after `host` seconds of the host's work."""
        self.host += host
        self.free = max(self.free, self.host) + seconds


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """The model, whose host's clock is the one that is read."""
    made = Gpu()
    monkeypatch.setattr(turns, "time", types.SimpleNamespace(perf_counter=lambda: made.host))
    return made


def call(gpu: Gpu, us: float, host_us: float) -> Callable[[], None]:
    return lambda: gpu.run(us * 1e-6, host_us * 1e-6)


def test_work_is_timed_in_turn_and_the_lead_in_is_not(gpu: Gpu) -> None:
    works = [call(gpu, 500, 10), call(gpu, 300, 10)]
    read = []
    taken = times_in_turn(
        lambda: new_event(gpu), works, 4, call(gpu, 1000, 10), lambda: read.append(gpu.free > gpu.host)
    )
    assert taken.ms == [pytest.approx([0.5] * 4), pytest.approx([0.3] * 4)]
    assert taken.host_seconds == pytest.approx(80e-6)
    assert (taken.ahead, read) == (True, [True])


def test_slow_calls_show_the_hosts_time_where_nothing_is_queued_ahead(gpu: Gpu) -> None:
    taken = times_in_turn(lambda: new_event(gpu), [call(gpu, 20, 800)], 5, lambda: None)
    assert not taken.ahead
    assert taken.ms[0][1] == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize("host_us", [5, 200, 800, 3000])
def test_a_queue_times_the_kernel_alone_however_slow_its_calls_are(gpu: Gpu, host_us: int) -> None:
    queue = Queue(gpu)
    for samples in (1, 1, 5):
        dense, sparse = queue.times([call(gpu, 30, host_us), call(gpu, 20, host_us)], 1, samples)
        assert dense == pytest.approx([0.03] * samples)
        assert sparse == pytest.approx([0.02] * samples)


def test_a_queue_does_not_sleep_much_longer_than_it_has_to(gpu: Gpu) -> None:
    queue = Queue(gpu)
    for _ in range(30):
        queue.times([call(gpu, 20, 100)], 1)
    before = gpu.host
    queue.times([call(gpu, 20, 100)], 1)
    assert gpu.host - before < 600e-6


def test_calls_that_wait_for_the_gpu_are_found_out(gpu: Gpu) -> None:
    def waiting() -> None:
        gpu.run(20e-6, 100e-6)
        gpu.host = gpu.free

    with pytest.raises(PolicyError, match="calls of them wait for the GPU"):
        Queue(gpu).times([waiting], 1)
