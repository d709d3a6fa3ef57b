"""Which backend is chosen."""

from __future__ import annotations

import importlib.metadata

import pytest

from sparseflow_trt.engines.backends import tensorrt_backend
from sparseflow_trt.engines.backends.choose import BackendName, backend_for
from sparseflow_trt.engines.machine.hardware import Gpu
from sparseflow_trt.errors import EXIT_NOT_INSTALLED, NotInstalledError


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Distributions put here are as if they were not installed."""
    hidden: set[str] = set()
    version = importlib.metadata.version

    def visible(name: str) -> str:
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", visible)
    return hidden


@pytest.mark.parametrize("name", ["tensorrt-rtx", "onnxruntime"])
def test_a_backend_that_is_asked_for_is_taken(name: BackendName) -> None:
    backend, why = backend_for(name)

    assert backend.name == name
    assert why == f"The backend is {name}: it was asked for."


def test_only_tensorrt_builds_for_the_gpu_that_it_builds_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H200", "9.0", 1 << 37, 132, sparse_tensor_cores=True, driver_version="13.0")
    monkeypatch.setattr(tensorrt_backend, "find_gpus", lambda: (gpu,))
    monkeypatch.setattr(tensorrt_backend, "driver_of", lambda gpu: "580.1")
    built_for = tensorrt_backend.TensorRtBackend().device()
    assert built_for == "NVIDIA H200, compute capability 9.0, driver 580.1"
    assert backend_for("onnxruntime")[0].device() == "any CPU"
    assert backend_for("tensorrt-rtx")[0].device().startswith("NVIDIA GPUs of compute capability")


def test_auto_prefers_tensorrt_rtx() -> None:
    backend, why = backend_for("auto")

    assert backend.name == "tensorrt-rtx"
    assert "with or without a GPU" in why


def test_auto_falls_back_on_onnxruntime(hide: set[str]) -> None:
    hide.add("tensorrt_rtx_cu13_libs")

    backend, why = backend_for("auto")

    assert backend.name == "onnxruntime"
    assert "no TensorRT" in why


def test_with_nothing_installed_both_ways_out_are_named(hide: set[str]) -> None:
    hide |= {"tensorrt_rtx_cu13_libs", "onnxruntime", "onnxruntime-gpu"}

    with pytest.raises(NotInstalledError) as caught:
        backend_for("auto")

    assert "tensorrt_rtx_cu13_libs>=1.7" in caught.value.hint
    assert "onnxruntime>=1.23" in caught.value.hint


def test_a_missing_backend_that_is_asked_for_is_not_replaced(hide: set[str]) -> None:
    hide.add("tensorrt_rtx_cu13_bindings")

    with pytest.raises(NotInstalledError, match="TensorRT-RTX is not installed"):
        backend_for("tensorrt-rtx")


def test_tensorrt_without_a_gpu_or_a_wheel_is_refused(hide: set[str]) -> None:
    hide |= {"tensorrt", "tensorrt-cu12", "tensorrt-cu13"}
    with pytest.raises(NotInstalledError, match="TensorRT is not installed") as caught:
        backend_for("tensorrt")

    assert caught.value.exit_code == EXIT_NOT_INSTALLED
