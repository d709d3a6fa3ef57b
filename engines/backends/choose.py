"""Which backend builds here, and why."""

from __future__ import annotations

from typing import Literal

from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.backends.tensorrt_rtx import TensorRtRtxBackend
from sparseflow_trt.engines.protocol import Backend
from sparseflow_trt.errors import NotInstalledError

BackendName = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]

_BECAUSE = {
    "tensorrt": "it is installed, and there is a GPU to build on",
    "tensorrt-rtx": "it is installed, and it builds with or without a GPU",
    "onnxruntime": "no TensorRT that can build here is installed",
}


def backend_for(name: BackendName) -> tuple[Backend, str]:
    """The backend that a name stands for on this machine, and in one sentence why it is that one.

    "auto" takes the first that can build here of TensorRT, TensorRT-RTX and ONNX Runtime.

    Raises:
        NotInstalledError: That backend cannot build here, or none can; the hint installs one.
    """
    backends: tuple[Backend, ...] = (TensorRtBackend(), TensorRtRtxBackend(), OnnxRuntimeBackend())
    if name != "auto":
        chosen = next(backend for backend in backends if backend.name == name)
        if reason := chosen.unavailable():
            raise NotInstalledError(reason, "Or build with another: --backend auto.")
        return chosen, f"The backend is {name}: it was asked for."
    for backend in backends:
        if not backend.unavailable():
            return backend, f"The backend is {backend.name}: {_BECAUSE[backend.name]}."
    raise NotInstalledError("No backend can build here.", "; or ".join(b.unavailable() for b in backends[1:]))
