"""What the doctor finds on this machine."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from sparseflow_trt.engines import doctor
from sparseflow_trt.engines.machine.cuda_libraries import find_libraries
from sparseflow_trt.engines.machine.hardware import Gpu, find_gpus


def test_examines_this_machine_and_leaves_nothing_out() -> None:
    found = doctor.examine()

    findings = {finding.name: finding for finding in found.findings}
    packages = {"TensorRT", "TensorRT-RTX", "ONNX Runtime", "torch", "polygraphy"}
    assert packages | {"cudart", "cublasLt", "cusparseLt"} < set(findings)
    assert found.python == sys.version.split()[0]
    assert findings["TensorRT-RTX"].status in ("ok", "limited")
    assert findings["TensorRT-RTX"].version == importlib.metadata.version("tensorrt_rtx_cu13_bindings")
    assert "CPU" in findings["ONNX Runtime"].says
    assert all(finding.says.endswith(".") for finding in found.findings)
    assert all(finding.install for finding in found.findings if finding.status == "missing")
    assert json.loads(json.dumps(found.to_json()))["findings"][0]["name"] in ("GPU", "CUDA driver")


@pytest.mark.skipif(bool(find_gpus()), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_can_build_and_not_run() -> None:
    findings = {finding.name: finding for finding in doctor.examine().findings}

    assert findings["GPU"].status == "missing"
    assert "no NVIDIA GPU" in findings["TensorRT-RTX"].says


def test_an_old_gpu_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Gpu("a Turing", "7.5", 16 << 30, 40, sparse_tensor_cores=False, driver_version="12.4")
    monkeypatch.setattr(doctor, "find_gpus", lambda: (old,))

    driver, gpu, *others = doctor.examine().findings

    assert driver.version == "12.4"
    assert (gpu.status, "no sparse tensor cores" in gpu.says) == ("limited", True)
    assert "has compute capability 7.5" in next(f.says for f in others if f.name == "TensorRT-RTX")


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("", "limited", "It loads; it builds on a GPU, and"),
        ("import os; os.kill(os.getpid(), 11)", "limited", "crashes when it is loaded (signal 11)"),
        ("raise ImportError('libnvinfer.so')", "limited", "does not load: ImportError: libnvinfer.so."),
    ],
)
def test_a_tensorrt_is_tried_in_a_process_that_may_crash(
    code: str, status: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text(code)
    info = tmp_path / "tensorrt-10.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.13.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)

    finding = next(finding for finding in doctor.examine().findings if finding.name == "TensorRT")

    assert (finding.status, finding.version) == (status, "10.13.0")
    assert says in finding.says


def test_a_library_that_is_missing_has_its_pip_line() -> None:
    for library in find_libraries():
        assert bool(library.file) == bool(library.version)
        assert library.install.startswith("pip install nvidia-")
