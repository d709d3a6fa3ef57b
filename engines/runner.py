"""Runs a TensorRT engine: host arrays or device pointers in, outputs out, timed as a CUDA graph.

One path serves TensorRT 8.6, 10, 11 and RTX: named tensors and execute_async_v3.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparseflow_trt._deps import require
from sparseflow_trt.engines.tensorrt_api import Flavour
from sparseflow_trt.engines.tensorrt_log import BuildLog, make_logger
from sparseflow_trt.errors import BuildError, InputError

if TYPE_CHECKING:
    from types import TracebackType

Array = npt.NDArray[Any]

_NUMPY_NAMES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "BOOL": "bool", "FP8": "float8_e4m3fn",
}  # fmt: skip


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine; -1 stands for a dynamic dimension."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Engine:
    """A loaded engine with a context, a stream and device buffers. Use as a context manager.

    Not for several threads at once: load one for each.
    """

    def __init__(self, flavour: Flavour, path: Path, host_code: bool = False) -> None:
        """Loads an engine file.

        Args:
            flavour: The TensorRT to run it with.
            path: The engine's file.
            host_code: Whether the engine may bring code for the CPU, as a version-compatible one does.

        Raises:
            BuildError: This TensorRT or this GPU does not take it.
            NotInstalledError: cuda-bindings is missing.
        """
        self._cuda = Cuda()
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - until close; only errors are kept
        self._log = BuildLog(self._nowhere)
        self._runtime = flavour.module.Runtime(make_logger(flavour.module, self._log))
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BuildError(
                f"{flavour.title} {flavour.version} does not load {path}: {self._log.take_errors()}",
                "Run it with the TensorRT release and on the kind of GPU that it was built for.",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BuildError(
                f"there is no memory for a context of {path}: {self._log.take_errors()}",
                "Free some of the GPU's.",
            )
        self._stream = self._cuda.call("cudaStreamCreate")
        self._buffers: dict[str, tuple[int, int]] = {}
        self.profile = 0
        self.tensors = tuple(self._tensor(i) for i in range(self._engine.num_io_tensors))

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the device memory back."""
        for pointer, _ in self._buffers.values():
            self._cuda.call("cudaFree", pointer)
        self._buffers.clear()
        self._cuda.call("cudaStreamDestroy", self._stream)
        del self._context, self._engine, self._runtime
        self._nowhere.close()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Computes the outputs of host arrays. Integers are converted to the engine's type where they fit.

        Raises:
            InputError: An input is missing, unknown, of another dtype or rank, or fits no profile.
            BuildError: The engine fails to run.
        """
        given = self._checked(feeds)
        self._choose_profile({name: array.shape for name, array in given.items()})
        for name, array in given.items():
            self._context.set_input_shape(name, array.shape)
            self._cuda.copy_to_device(self._buffer(name, array.nbytes), array, self._stream)
        outputs = {
            t.name: np.empty(tuple(self._context.get_tensor_shape(t.name)), t.dtype)
            for t in self.tensors
            if not t.is_input
        }
        for name, array in outputs.items():
            self._buffer(name, max(array.nbytes, 1))
        self._bind()
        self._enqueue()
        for name, array in outputs.items():
            self._cuda.copy_to_host(array, self._buffers[name][0], self._stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return outputs

    def time(self, feeds: Mapping[str, Array], launches: int) -> list[float]:
        """Milliseconds of GPU time of each of `launches` replays of one run, captured as a CUDA graph.

        Raises:
            InputError: As `run`.
            BuildError: As `run`.
        """
        self.run(feeds)  # sets shapes and addresses, and warms up what is made lazily
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
        finally:
            graph = self._cuda.call("cudaStreamEndCapture", self._stream)
        executable = self._cuda.call("cudaGraphInstantiate", graph, 0)
        start, stop = self._cuda.call("cudaEventCreate"), self._cuda.call("cudaEventCreate")
        times = []
        for _ in range(launches):
            self._cuda.call("cudaEventRecord", start, self._stream)
            self._cuda.call("cudaGraphLaunch", executable, self._stream)
            self._cuda.call("cudaEventRecord", stop, self._stream)
            self._cuda.call("cudaEventSynchronize", stop)
            times.append(float(self._cuda.call("cudaEventElapsedTime", start, stop)))
        for event in (start, stop):
            self._cuda.call("cudaEventDestroy", event)
        self._cuda.call("cudaGraphExecDestroy", executable)
        self._cuda.call("cudaGraphDestroy", graph)
        return times

    @property
    def device_memory_bytes(self) -> int:
        """What a context of this engine needs besides its weights."""
        name = (
            "device_memory_size_v2"
            if hasattr(self._engine, "device_memory_size_v2")
            else "device_memory_size"
        )
        return int(getattr(self._engine, name))

    def _tensor(self, index: int) -> EngineTensor:
        name = self._engine.get_tensor_name(index)
        dtype = self._engine.get_tensor_dtype(name).name
        numpy_name = _NUMPY_NAMES.get(dtype)
        if numpy_name is None:
            raise InputError(
                f"tensor '{name}' is {dtype}, which has no NumPy type here.", "Cast it in the model."
            )
        return EngineTensor(
            name,
            self._engine.get_tensor_mode(name).name == "INPUT",
            _numpy_dtype(numpy_name),
            tuple(self._engine.get_tensor_shape(name)),
        )

    def _checked(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        inputs = {t.name: t for t in self.tensors if t.is_input}
        if differ := sorted(set(inputs) ^ set(feeds)):
            what = "is missing" if differ[0] in inputs else "is not one of the engine's"
            raise InputError(f"input '{differ[0]}' {what}.", f"The engine takes: {', '.join(inputs)}.")
        return {name: _as_engine_takes(tensor, np.asarray(feeds[name])) for name, tensor in inputs.items()}

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for index in range(self._engine.num_optimization_profiles):
            if all(self._fits(name, index, shape) for name, shape in shapes.items()):
                if index != self.profile:
                    self._context.set_optimization_profile_async(index, int(self._stream))
                    self._cuda.call("cudaStreamSynchronize", self._stream)
                    self.profile = index
                return
        said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise InputError(
            f"the shapes {said} fit no profile of the engine.", "Plan a profile that holds them."
        )

    def _fits(self, name: str, profile: int, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return all(a <= size <= b for a, size, b in zip(tuple(low), shape, tuple(high), strict=True))

    def _buffer(self, name: str, size: int) -> int:
        pointer, held = self._buffers.get(name, (0, 0))
        if held < size:
            if pointer:
                self._cuda.call("cudaFree", pointer)
            pointer = int(self._cuda.call("cudaMalloc", size))
            self._buffers[name] = (pointer, size)
        return pointer

    def _bind(self) -> None:
        for name, (pointer, _) in self._buffers.items():
            self._context.set_tensor_address(name, pointer)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise BuildError(f"the engine failed to run: {self._log.take_errors()}", "Build it again.")


class Cuda:
    """CUDA's runtime through cuda-bindings; a call that fails is an error, not a code."""

    def __init__(self) -> None:
        self._api: ModuleType = require("cuda.bindings.runtime", "running engines")

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a runtime function and gives its result.

        Raises:
            BuildError: It fails.
        """
        code, *result = getattr(self._api, name)(*arguments)
        if int(code):
            _, text = self._api.cudaGetErrorString(code)
            raise BuildError(f"CUDA's {name} failed: {text.decode()}.", "Look at `sparseflow-trt doctor`.")
        return result[0] if result else None

    def copy_to_device(self, pointer: int, array: Array, stream: Any) -> None:
        """Copies a contiguous host array to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to_host(self, array: Array, pointer: int, stream: Any) -> None:
        """Copies device memory into a contiguous host array."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, stream)

    def begin_capture(self, stream: Any) -> None:
        """Begins to record what is put on `stream`."""
        self.call(
            "cudaStreamBeginCapture", stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        )


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if hasattr(np, name):
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def _as_engine_takes(tensor: EngineTensor, array: Array) -> Array:
    if array.ndim != len(tensor.shape):
        raise InputError(
            f"input '{tensor.name}' has {array.ndim} dimensions; the engine takes {len(tensor.shape)}.",
            "Give the shape that the model takes.",
        )
    if math.prod(array.shape) == 0:
        raise InputError(f"input '{tensor.name}' is empty.", "Give at least one element.")
    if array.dtype == tensor.dtype:
        return np.ascontiguousarray(array)
    # TensorRT 8.6 has no INT64: an int64 input of the model is an int32 input of the engine.
    if array.dtype.kind in "iu" and tensor.dtype.kind in "iu":
        limits = np.iinfo(tensor.dtype)
        if limits.min <= array.min() and array.max() <= limits.max:
            return np.ascontiguousarray(array.astype(tensor.dtype))
    raise InputError(
        f"input '{tensor.name}' is {array.dtype}; the engine takes {tensor.dtype}.", "Convert it before."
    )
