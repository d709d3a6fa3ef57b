"""CUDA's runtime through cuda-bindings: the calls that running an engine takes, each of them checked."""

from __future__ import annotations

import abc
import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sparseflow_trt._deps import require
from sparseflow_trt.errors import BuildError, InputError

_NO_TIMING = 2  # cudaEventDisableTiming

_C = TypeVar("_C", bound="ClosedAtEnd")


class ClosedAtEnd(abc.ABC):
    """A context manager that closes itself. After an error of CUDA's nothing goes on: the first is told."""

    def __enter__(self: _C) -> _C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BuildError) if error else contextlib.nullcontext():
            self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Gives back what it holds.

        Raises:
            BuildError: CUDA refuses.
        """


class Cuda:
    """CUDA's runtime. Streams, events and graphs are plain integers; a call that fails is an error."""

    def __init__(self) -> None:
        self._api: ModuleType = require("cuda.bindings.runtime", "running engines")

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a runtime function and gives its first result.

        Raises:
            BuildError: It fails.
        """
        code, *result = getattr(self._api, name)(*arguments)
        if int(code):
            _, text = self._api.cudaGetErrorString(code)
            raise BuildError(f"CUDA's {name} failed: {text.decode()}.", "Look at `sparseflow-trt doctor`.")
        return result[0] if result else None

    def device(self) -> int:
        """The number of this thread's GPU."""
        return int(self.call("cudaGetDevice"))

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Makes `device` this thread's GPU for a while."""
        before = self.device()
        if before == device:
            yield
            return
        self.call("cudaSetDevice", device)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)

    def free_memory(self) -> int:
        """The bytes that are free on this thread's GPU, whoever holds the others."""
        return int(self.call("cudaMemGetInfo"))

    def copy_to_device(self, pointer: int, array: npt.NDArray[Any], stream: int) -> None:
        """Queues a copy of a contiguous host array to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to_host(self, array: npt.NDArray[Any], pointer: int, stream: int) -> None:
        """Queues a copy of device memory into a contiguous host array."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, stream)

    def new_stream(self) -> int:
        """Makes a stream on this thread's GPU."""
        return int(self.call("cudaStreamCreate"))

    def synchronize(self, stream: int) -> None:
        """Waits until all that was put on a stream is done."""
        self.call("cudaStreamSynchronize", stream)

    def is_capturing(self, stream: int) -> bool:
        """Whether what is put on a stream is recorded into a graph instead of run."""
        return int(self.call("cudaStreamIsCapturing", stream)) != 0

    def mark(self, stream: int) -> Marker:
        """Marks what has been put on a stream so far."""
        return Marker(self, stream)

    def wait(self, stream: int, marker: Marker) -> None:
        """Makes what is put on `stream` from now on wait for what was marked, on the GPU."""
        self.call("cudaStreamWaitEvent", stream, marker.event, 0)

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """Records what `work` puts on `stream`, for graphs to be launched later.

        Raises:
            BuildError: The work cannot be recorded.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(BuildError):  # it says again that the capture went wrong
                self.call("cudaGraphDestroy", int(self.call("cudaStreamEndCapture", stream)))
            raise
        graph = int(self.call("cudaStreamEndCapture", stream))
        return Graph(graph, int(self.call("cudaGraphInstantiate", graph, 0)))

    def time(self, stream: int, work: Callable[[], None], times: int) -> list[float]:
        """Milliseconds of GPU time between the beginning and the end of each of `times` calls of `work`."""
        start, stop = int(self.call("cudaEventCreate")), int(self.call("cudaEventCreate"))
        took = []
        try:
            for _ in range(times):
                self.call("cudaEventRecord", start, stream)
                work()
                self.call("cudaEventRecord", stop, stream)
                self.call("cudaEventSynchronize", stop)
                took.append(float(self.call("cudaEventElapsedTime", start, stop)))
        finally:
            for event in (start, stop):
                self.call("cudaEventDestroy", event)
        return took


@dataclass(frozen=True)
class Graph:
    """A CUDA graph, and what is launched of it."""

    graph: int
    executable: int


class Marker:
    """A point in a stream's work, for others to wait for."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda = cuda
        self.event = int(cuda.call("cudaEventCreateWithFlags", _NO_TIMING))
        weakref.finalize(self, _quietly, cuda, "cudaEventDestroy", self.event).atexit = False
        cuda.call("cudaEventRecord", self.event, stream)

    def synchronize(self) -> None:
        """Waits, here, until what was marked is done."""
        self._cuda.call("cudaEventSynchronize", self.event)


class DeviceMemory:
    """Memory of this thread's GPU, given back when nobody refers to it any more."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = max(size, 1)
        self.pointer = int(cuda.call("cudaMalloc", self.size))
        # cudaFree waits for the GPU, so that no stream still works on what is given back.
        weakref.finalize(self, _quietly, cuda, "cudaFree", self.pointer).atexit = False


def _quietly(cuda: Cuda, name: str, handle: int) -> None:
    with contextlib.suppress(BuildError):  # after an error CUDA gives nothing back, and nobody listens
        cuda.call(name, handle)


def stream_handle(stream: Any) -> int:
    """The address of a CUDA stream: an integer, or an object of PyTorch, CuPy or cuda.core.

    Raises:
        InputError: It is none.
    """
    if isinstance(stream, (int, np.integer)) and not isinstance(stream, bool) and stream >= 0:
        return int(stream)
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):  # PyTorch's, CuPy's
        if isinstance(handle := getattr(stream, attribute, None), int):
            return handle
    raise InputError(
        f"a {type(stream).__name__} is not a CUDA stream.",
        "Give its address as an integer, or an object with __cuda_stream__.",
    )
