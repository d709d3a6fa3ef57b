"""What this machine can do: Python, GPUs, TensorRT, ONNX Runtime and CUDA's libraries, each tried."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparseflow_trt import _deps
from sparseflow_trt.engines.backends.tensorrt_rtx import why_not_here
from sparseflow_trt.engines.machine.cuda_libraries import CudaLibrary, find_libraries
from sparseflow_trt.engines.machine.hardware import NO_GPU, Gpu, find_gpus
from sparseflow_trt.engines.plugin.loading import find_plugin
from sparseflow_trt.errors import NotInstalledError

Status = Literal["ok", "limited", "missing"]

_TRY_SECONDS = 120
_OLDEST_CUSPARSELT = (0, 8, 1)  # plugins/sparse_linear/cusparselt.cpp


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: What, in words.
        status: "ok", "limited" (it is there and cannot do everything), or "missing".
        version: "" where there is none, or it is not known.
        says: One sentence for the person.
        install: What to do about it, "" where nothing is.
    """

    name: str
    status: Status
    version: str
    says: str
    install: str = ""


@dataclass(frozen=True)
class Doctor:
    """All that was found."""

    python: str
    platform: str
    gpus: tuple[Gpu, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def examine() -> Doctor:
    """Looks at this machine. What might crash is tried in a child process; nothing is changed."""
    gpus = find_gpus()
    return Doctor(
        python=platform.python_version(),
        platform=platform.platform(),
        gpus=gpus,
        findings=(
            *_gpu_findings(gpus),
            _tensorrt(gpus),
            _tensorrt_rtx(gpus),
            _plugin(),
            _onnxruntime(),
            _package("torch", "exporting PyTorch models"),
            _package("polygraphy", "comparing outputs"),
            *(_cuda_library(library) for library in find_libraries()),
        ),
    )


def _gpu_findings(gpus: tuple[Gpu, ...]) -> tuple[Finding, ...]:
    if not gpus:
        says = f"T{NO_GPU[1:]}: engines are built, not run."
        fix = "To run engines, use a machine with an NVIDIA GPU of compute capability 8.0 or later."
        return (Finding("GPU", "missing", "", says, fix),)
    driver = Finding("CUDA driver", "ok", gpus[0].driver_version, "It supports CUDA up to this version.")
    return (driver, *(_gpu(gpu) for gpu in gpus))


def _gpu(gpu: Gpu) -> Finding:
    size = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {gpu.compute_capability}"
    if gpu.sparse_tensor_cores:
        return Finding("GPU", "ok", "", f"{size}: it has sparse tensor cores.")
    return Finding("GPU", "limited", "", f"{size}: it has no sparse tensor cores, which came with 8.0.")


def _tensorrt(gpus: tuple[Gpu, ...]) -> Finding:
    version = _deps.version_of("tensorrt")
    if version is None:
        return Finding("TensorRT", "missing", "", "It is not installed.", _deps.install_line("tensorrt"))
    # TensorRT 8.6 crashes on some machines without a driver.
    if trouble := _trouble_importing("tensorrt"):
        return Finding("TensorRT", "limited", version, trouble)
    if not gpus:
        return Finding("TensorRT", "limited", version, f"It loads; it builds on a GPU, and {NO_GPU}.")
    return Finding(
        "TensorRT", "ok", version, "It builds engines here, with sparse weights where the plan says so."
    )


def _tensorrt_rtx(gpus: tuple[Gpu, ...]) -> Finding:
    bindings = "tensorrt_rtx_bindings.tensorrt_rtx"
    version = _deps.version_of(bindings)
    install = _deps.install_line(bindings)
    if version is None:
        return Finding("TensorRT-RTX", "missing", "", "It is not installed.", install)
    if trouble := _trouble_importing("tensorrt_rtx_libs", bindings):
        return Finding("TensorRT-RTX", "missing", version, trouble, install)
    if reason := why_not_here(gpus):
        return Finding("TensorRT-RTX", "limited", version, f"It builds dense engines here. {reason}")
    return Finding("TensorRT-RTX", "ok", version, "It builds dense engines here, and they run here.")


def _plugin() -> Finding:
    name = "2:4 plugin"
    version = _deps.version_of("tensorrt")
    if version is None:
        says = "It is for TensorRT, which is not installed."
        return Finding(name, "missing", "", says, _deps.install_line("tensorrt"))
    try:
        library = find_plugin(version)
    except NotInstalledError as error:
        return Finding(name, "missing", "", error.message, error.hint)
    if trouble := _trouble(_TRY_PLUGIN.format(library=str(library))):
        return Finding(name, "limited", "", trouble, "sparseflow-trt plugin build --tensorrt-include DIR")
    return Finding(name, "ok", "", f"TensorRT {version} loads it from {library}.")


_TRY_PLUGIN = """
from pathlib import Path
from sparseflow_trt.engines.plugin.loading import check_plugin
check_plugin(Path({library!r}))
"""


def _trouble_importing(*modules: str) -> str:
    return _trouble("\n".join(f"import {module}" for module in modules))


def _trouble(code: str) -> str:
    """What goes wrong where this code is run in a process of its own; "" if nothing does."""
    try:
        tried = subprocess.run(
            (sys.executable, "-c", code),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"It is installed and did not load within {_TRY_SECONDS} s."
    if tried.returncode == 0:
        return ""
    if tried.returncode < 0:
        return f"It is installed and crashes when it is loaded (signal {-tried.returncode})."
    last = (tried.stderr.strip().splitlines() or ["it does not say why"])[-1]
    return f"It is installed and does not load: {last.rstrip('.')}."


def _onnxruntime() -> Finding:
    try:
        ort = _deps.require("onnxruntime", "validating outputs")
    except NotInstalledError as error:
        return Finding("ONNX Runtime", "missing", "", error.message, error.hint)
    # What it lists as available is what it was compiled with; a session tells what works here.
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(_tiny_model(), options, providers=ort.get_available_providers())
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in session.get_providers())
    return Finding("ONNX Runtime", "ok", ort.__version__, f"It runs models here with: {names}.")


def _tiny_model() -> bytes:
    from onnx import TensorProto, helper

    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "tiny", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _package(name: str, needed_for: str) -> Finding:
    version = _deps.version_of(name)
    if version is None:
        says = f"It is not installed: {needed_for} needs it."
        return Finding(name, "missing", "", says, _deps.install_line(name))
    return Finding(name, "ok", version, f"It is installed, for {needed_for}.")


def _cuda_library(library: CudaLibrary) -> Finding:
    if library.name == "cusparseLt" and library.file and _numbers(library.version) < _OLDEST_CUSPARSELT:
        oldest = ".".join(map(str, _OLDEST_CUSPARSELT))
        says = f"It loads from {library.file}; the 2:4 plugin needs {oldest} or later."
        return Finding(library.name, "limited", library.version, says, library.install)
    if library.file:
        return Finding(library.name, "ok", library.version, f"It loads from {library.file}.")
    says = f"It does not load: {library.needed_for} needs it."
    return Finding(library.name, "missing", "", says, library.install)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
