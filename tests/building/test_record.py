"""The record of an engine: what it says of the GPU that it was built on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseflow_trt.building.record import record_engine
from sparseflow_trt.engines.machine.hardware import Gpu
from sparseflow_trt.engines.protocol import BuiltEngine, EngineOptions

A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 80 << 30, 108, True, "13.0")


@pytest.mark.parametrize(
    ("device", "gpus", "count"),
    [
        ("NVIDIA A100-SXM4-80GB, compute capability 8.0, driver 13.0", (A100,), 108),
        ("NVIDIA GPUs of compute capability 8.0", (A100,), None),
        ("NVIDIA A100-SXM4-80GB, compute capability 8.0, driver 13.0", (), None),
    ],
)
def test_an_engine_says_how_many_multiprocessors_its_gpu_has(
    device: str, gpus: tuple[Gpu, ...], count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseflow_trt.building.record.find_gpus", lambda: gpus)
    engine = BuiltEngine(Path("model.engine"), (), "tensorrt", {}, device, 1.0, "", "")
    assert record_engine(engine, "", EngineOptions()).multiprocessors == count
