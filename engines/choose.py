"""Which backend builds here, and why."""

from __future__ import annotations

from typing import Literal

from sparseflow_trt.engines.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.protocol import Backend
from sparseflow_trt.engines.tensorrt_rtx import TensorRtRtxBackend
from sparseflow_trt.errors import NotInstalledError

BackendName = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]

NO_TENSORRT_YET = "this version of sparseflow-trt has no backend for TensorRT itself yet"


def backend_for(name: BackendName) -> tuple[Backend, str]:
    """The backend that a name stands for on this machine, and in one sentence why it is that one.

    Raises:
        NotInstalledError: That backend cannot build here, or none can; the hint installs one.
    """
    rtx, ort = TensorRtRtxBackend(), OnnxRuntimeBackend()
    if name == "tensorrt":
        raise NotInstalledError(
            f"T{NO_TENSORRT_YET[1:]}.", "Use --backend tensorrt-rtx, onnxruntime or auto."
        )
    if name != "auto":
        chosen: Backend = rtx if name == "tensorrt-rtx" else ort
        return _checked(chosen), f"The backend is {name}: it was asked for."
    if not rtx.unavailable():
        return rtx, "The backend is tensorrt-rtx: it is installed, and it builds with or without a GPU."
    if not ort.unavailable():
        return ort, "The backend is onnxruntime: no TensorRT that can build here is installed."
    raise NotInstalledError("No backend is installed.", f"{rtx.unavailable()}; or {ort.unavailable()}")


def _checked(backend: Backend) -> Backend:
    if reason := backend.unavailable():
        raise NotInstalledError(reason, "Or build with another: --backend auto.")
    return backend
