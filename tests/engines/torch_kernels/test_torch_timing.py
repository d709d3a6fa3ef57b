"""Calls that are queued behind a sleeping kernel, on a model of a GPU in the place of PyTorch's."""

from __future__ import annotations

import pytest

from sparseflow_trt.engines.torch_kernels.torch_timing import Queue
from sparseflow_trt.errors import PolicyError
from tests.engines.timing.modelled_gpu import Gpu, call


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

    with pytest.raises(PolicyError, match="calling them waits for the GPU"):
        Queue(gpu).times([waiting], 1)
