"""autotune measures on a real GPU: through PyTorch where it is, through TensorRT where that is."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.engines.backends import child
from sparseflow_trt.engines.backends.child import shared_child
from sparseflow_trt.engines.machine.gpu_state import clock_reader, l2_bytes
from sparseflow_trt.engines.machine.hardware import NO_GPU, find_gpus, installed_driver
from sparseflow_trt.engines.measuring import time_torch
from sparseflow_trt.engines.measuring.builders import Builders
from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.measurers import InTurn, identify, make_measurers
from sparseflow_trt.engines.measuring.medians import Effort
from sparseflow_trt.engines.tensorrt.api import version_of
from sparseflow_trt.engines.torch_kernels import cusparselt
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.presets import Product
from sparseflow_trt.policies.tactics import TOOK_DENSE
from sparseflow_trt.pytorch.torch_pattern import prune_rows
from sparseflow_trt.tuning import Space, autotune

NEEDS_TENSORRT = False  # but for the last two tests
QUICK = Effort(seconds=0.5)


needs_torch = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def measurer() -> time_torch.TorchMeasurer:
    """Measures through PyTorch, as CUDA graphs."""
    return time_torch.TorchMeasurer(QUICK)


@pytest.mark.skipif(not find_gpus(), reason=NO_GPU)
def test_the_driver_tells_cache_and_clocks() -> None:
    assert 1 << 20 <= l2_bytes() <= 1 << 30
    assert 8 <= find_gpus()[0].multiprocessors <= 512
    state = clock_reader()()
    assert state is not None
    assert 100 < state.sm_mhz <= state.max_mhz < 5000
    assert installed_driver()[0].isdigit()


@needs_torch
def test_a_large_product_is_faster_sparse_and_not_more_than_twice(measurer: time_torch.TorchMeasurer) -> None:
    answer = measurer.measure(Request(Curve("torch", "FP16", 14336, 4096, "gate_up"), 1024))
    assert 1.0 < answer.pair.speedup < 2.0
    assert answer.how == time_torch.GRAPHS
    assert answer.clock is not None
    for point in (answer.pair.dense, answer.pair.sparse):
        assert point.low_us is not None
        assert point.high_us is not None
        assert point.high_us - point.low_us < 0.1 * point.us
    # 120 GFLOP: no GPU does that in 10 µs, and none with sparse tensor cores needs 10 ms
    assert 10 < answer.pair.sparse.us < 10_000
    assert answer.pair.sparse.tactic.startswith("algorithm ")


@needs_torch
@pytest.mark.parametrize(("m", "dtype"), [(1, "FP16"), (13, "BF16"), (256, "BF16")])
def test_other_types_and_rows_that_are_padded(measurer: time_torch.TorchMeasurer, m: int, dtype: Any) -> None:
    pair = measurer.measure(Request(Curve("torch", dtype, 1024, 768, "other"), m)).pair
    assert 0.2 < pair.speedup < 3
    assert ("rows padded" in pair.sparse.tactic) is bool(m % 8)


@needs_torch
def test_queued_calls_give_the_times_that_graphs_give(measurer: time_torch.TorchMeasurer) -> None:
    request = Request(Curve("torch", "FP16", 4096, 4096, "o"), 512)
    queued = time_torch.TorchMeasurer(QUICK, how=time_torch.QUEUED).measure(request).pair
    graphs = measurer.measure(request).pair
    assert queued.dense.us == pytest.approx(graphs.dense.us, rel=0.15)
    assert queued.sparse.us == pytest.approx(graphs.sparse.us, rel=0.15)


@needs_torch
def test_a_wrong_product_is_never_a_point(
    measurer: time_torch.TorchMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cusparselt, "pack", lambda weight: torch_pack(prune_rows(-weight)))
    with pytest.raises(PolicyError, match=r"product is wrong at 512→512, M=64, FP16, torch"):
        measurer.measure(Request(Curve("torch", "FP16", 512, 512, "other"), 64))


torch_pack = cusparselt.pack


@needs_torch
def test_a_run_from_end_to_end(measurer: time_torch.TorchMeasurer, tmp_path: Path) -> None:
    space = Space((Product("gate_up", 3072, 768), Product("down", 768, 3072)), ("FP16", "BF16"), (16, 2048))
    tuned = autotune(space, InTurn([measurer], identify), tmp_path / "p.json")
    assert tuned.left.points == 0
    assert {p.dtype for p in tuned.policy.points} == {"FP16", "BF16"}
    assert "readings under load" in tuned.policy.clocks
    assert set(tuned.policy.libraries) >= {"torch", "cuda", "cusparselt"}
    again = autotune(space, InTurn([measurer], identify), tmp_path / "p.json")
    assert again.measured_now == 0
    assert again.policy.points == tuned.policy.points


no_tensorrt = pytest.mark.skipif(
    version_of("tensorrt") is None or not find_gpus(), reason="TensorRT or a GPU is missing"
)


@no_tensorrt
def test_several_builders_measure_all_that_one_would(tmp_path: Path) -> None:
    space = Space((Product("gate_up", 512, 256), Product("down", 256, 512)), ("FP16",), (16, 1024))
    make = functools.partial(make_measurers, ("tensorrt",), QUICK)
    with shared_child(), Builders(make, identify, 3) as crew:
        tuned = autotune(space, crew, tmp_path / "p.json")
    assert tuned.left.points == 0
    assert {(p.n, p.m) for p in tuned.policy.points} >= {(n, m) for n in (512, 256) for m in (16, 1024)}
    assert not child._building


@no_tensorrt
def test_a_product_as_tensorrt_engines() -> None:
    from sparseflow_trt.engines.measuring.time_tensorrt import TensorRtMeasurer

    measurer = TensorRtMeasurer(QUICK)
    answers = [
        measurer.measure(Request(Curve("tensorrt", "FP16", 512, 256, "gate_up"), m)) for m in (16, 1024)
    ]
    for answer in answers:
        assert answer.pair.dense.tactic
        assert answer.pair.sparse.tactic
        if TOOK_DENSE in answer.pair.sparse.tactic:
            assert answer.pair.speedup == pytest.approx(1, abs=0.1)
            assert answer.counted.speedup == 1
        else:
            assert 0.5 < answer.pair.speedup < 3
    for small, large in itertools.pairwise(answers):
        assert 0.5 < small.pair.dense.us < 2 * large.pair.dense.us < 10_000
