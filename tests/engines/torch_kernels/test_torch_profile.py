"""PyTorch's profiler: which of its events are kernels, and what a module's layers multiply. No GPU.

The profile itself is of operators on the CPU here, through the same path.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from sparseflow_trt.engines.torch_kernels.torch_profile import (
    LinearProduct,
    kernel_times,
    profile_torch_model,
    record_products,
    require_gpu,
)
from sparseflow_trt.errors import NotInstalledError
from sparseflow_trt.pytorch.torch_source import TorchModel

torch = pytest.importorskip("torch")


@pytest.fixture
def model() -> TorchModel:
    """Two products and an activation."""
    layers = [("up_proj", torch.nn.Linear(512, 2048)), ("act", torch.nn.GELU())]
    layers += [("down_proj", torch.nn.Linear(2048, 512)), ("again", torch.nn.Linear(512, 512))]
    module = torch.nn.Sequential()
    for name, layer in layers:
        module.add_module(name, layer)
    return TorchModel(module.eval(), (torch.randn(4, 32, 512),), {}, "x 4×32×512")


def test_a_profile_of_operators(model: TorchModel) -> None:
    profile = profile_torch_model(model, runs=5, warm_up=1, on="cpu")
    launches = {kernel.name: kernel.launches for kernel in profile.kernels}
    assert (launches["aten::addmm"], launches["aten::gelu"]) == (3, 1)
    assert (profile.shapes, profile.runs) == ("x 4×32×512", 5)
    assert profile.wall_ms is not None
    assert profile.wall_ms > 0
    assert profile.gemm_share > 0.1  # 0.6 GFLOP against a quarter of a million GELUs
    assert profile.ms_of("elementwise") > 0


def test_a_profile_warns_of_nothing(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.10 to 2.12 warned of cleared events whenever they were not kept, in a single cycle, too."""

    of_now = torch.profiler.profile

    def of_then(**options: Any) -> Any:
        if not options.get("acc_events"):
            warnings.warn("Profiler clears events at the end of each cycle.", UserWarning, stacklevel=2)
        return of_now(**options)

    for profiler in (of_now, of_then):
        monkeypatch.setattr(torch.profiler, "profile", profiler)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            profile = profile_torch_model(model, runs=5, warm_up=1, on="cpu")
        assert {k.launches for k in profile.kernels if k.name == "aten::addmm"} == {3}


def _event(name: str, us: float, device: str = "CUDA", **more: Any) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=device),
        time_range=SimpleNamespace(elapsed_us=lambda: us),
        **more,
    )


def test_kernels_are_added_up_and_what_is_none_is_left_out() -> None:
    events = [
        _event("nvjet", 10.0, activity_type="kernel"),
        _event("nvjet", 11.0, activity_type="kernel"),
        _event("Memset (Device)", 1.0),
        _event("cudaLaunchKernel", 5.0, "CPU"),
        _event("ProfilerStep#1", 90.0, is_user_annotation=True),
        _event("Context Sync", 40.0, activity_type="cuda_sync"),
    ]
    assert kernel_times(events) == [("nvjet", 21.0, 2), ("Memset (Device)", 1.0, 1)]


def test_the_products_of_linear_layers(model: TorchModel) -> None:
    assert record_products(model) == {
        LinearProduct("gate_up", 2048, 512, 128, "FP32"): 1,
        LinearProduct("down", 512, 2048, 128, "FP32"): 1,
        LinearProduct("other", 512, 512, 128, "FP32"): 1,
    }
    assert not any(layer._forward_pre_hooks for layer in model.module.modules())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_are_no_kernels() -> None:
    with pytest.raises(NotInstalledError, match="sees no GPU"):
        require_gpu()
