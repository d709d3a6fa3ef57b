"""A GPU and a TensorRT small enough to read, for what the runner does between their calls.

Work that is put on a stream is done when somebody waits for it and not before, so that a missing wait gives a
wrong result here too. Device memory is host memory at 256-byte addresses. An engine is a JSON text; it
computes y = 2x + 1, with the shapes and at the addresses that are set when it is enqueued.
"""

from __future__ import annotations

import ctypes
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparseflow_trt.engines.running import cuda as cuda_module
from sparseflow_trt.engines.running import dlpack
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import Flavour

Work = Callable[[], object]
ALIGNMENT = 256
OK, INVALID, NO_MEMORY, CAPTURING = 0, 1, 2, 900


@dataclass
class Event:
    """Done when its stream has got to it; then it has the clock's time."""

    stream: int = 0
    done: bool = True
    at: float = 0.0


@dataclass
class SimulatedCuda:
    """As much of cuda.bindings.runtime as is used."""

    memory: int = 1 << 30
    clock: float = 0.0
    device: int = 0
    allocated: dict[int, Any] = field(default_factory=dict)
    queues: dict[int, deque[Work]] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    recording: dict[int, list[Work]] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    draining: set[int] = field(default_factory=set)
    handles: int = 100

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)  # noqa: N815

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        call = getattr(self, "_" + name.removeprefix("cuda"))

        def checked(*arguments: Any) -> tuple[Any, ...]:
            result = call(*arguments)
            if isinstance(result, tuple):
                return result
            return (OK,) if result is None else (OK, result)

        return checked

    def new(self) -> int:
        """A fresh handle."""
        self.handles += 1
        return self.handles

    def put(self, stream: int, work: Work) -> None:
        """Queues work, or records it."""
        queue: Any = self.recording.get(stream)
        (self.queues.setdefault(stream, deque()) if queue is None else queue).append(work)

    def drain(self, stream: int, until: Event | None = None) -> None:
        """Does a stream's work; the default stream's comes after that of the streams made here.

        Streams of other libraries, as numbers that were not handed out, are like PyTorch's: it does not wait
        for them.
        """
        if stream in self.draining:
            return
        self.draining.add(stream)
        if stream in (0, 1):
            for other in [s for s in self.queues if s in self.made]:
                self.drain(other)
        queue = self.queues.setdefault(stream, deque())
        while queue and not (until and until.done):
            queue.popleft()()
        self.draining.discard(stream)

    def _GetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return OK, {NO_MEMORY: b"out of memory", CAPTURING: b"stream is capturing"}.get(
            code, b"invalid value"
        )

    def _GetDevice(self) -> int:  # noqa: N802
        return self.device

    def _SetDevice(self, device: int) -> None:  # noqa: N802
        self.device = device

    def _MemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return OK, self.memory - sum(map(len, self.allocated.values())), self.memory

    def _Malloc(self, size: int) -> Any:  # noqa: N802
        if self.recording:
            return (CAPTURING, None)
        if size > self.memory:
            return (NO_MEMORY, None)
        block = (ctypes.c_byte * (size + ALIGNMENT))()
        pointer = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self.allocated[pointer] = block
        return pointer

    def _Free(self, pointer: int) -> Any:  # noqa: N802
        for stream in list(self.queues):  # CUDA waits for the GPU
            self.drain(stream)
        if pointer and self.allocated.pop(pointer, None) is None:
            return (INVALID,)
        return None

    def _MemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        if kind == 1:  # from pageable memory: what is there now is copied
            data = ctypes.string_at(source, size)
            self.put(stream, lambda: ctypes.memmove(to, data, size))
        else:
            self.put(stream, lambda: ctypes.memmove(to, source, size))

    def _StreamCreate(self) -> int:  # noqa: N802
        self.made.add(stream := self.new())
        return stream

    def _StreamDestroy(self, stream: int) -> None:  # noqa: N802
        self.drain(stream)

    def _StreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        if stream in self.recording:
            return (CAPTURING,)
        self.drain(stream)
        return None

    def _StreamIsCapturing(self, stream: int) -> int:  # noqa: N802
        return int(stream in self.recording)

    def _StreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        self.recording[stream] = []

    def _StreamEndCapture(self, stream: int) -> int:  # noqa: N802
        graph = self.new()
        self.graphs[graph] = self.recording.pop(stream)
        return graph

    def _GraphInstantiate(self, graph: int, flags: int) -> int:  # noqa: N802
        executable = self.new()
        self.graphs[executable] = list(self.graphs[graph])
        return executable

    def _GraphLaunch(self, executable: int, stream: int) -> None:  # noqa: N802
        for work in self.graphs[executable]:
            self.put(stream, work)

    def _GraphDestroy(self, graph: int) -> None:  # noqa: N802
        del self.graphs[graph]

    _GraphExecDestroy = _GraphDestroy

    def _EventCreate(self) -> int:  # noqa: N802
        handle = self.new()
        self.events[handle] = Event()
        return handle

    def _EventCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        return self._EventCreate()

    def _EventDestroy(self, event: int) -> None:  # noqa: N802
        del self.events[event]

    def _EventRecord(self, handle: int, stream: int) -> None:  # noqa: N802
        event = self.events[handle]
        event.stream, event.done = stream, False

        def happen() -> None:
            event.done, event.at = True, self.clock

        self.put(stream, happen)

    def _StreamWaitEvent(self, stream: int, handle: int, flags: int) -> Any:  # noqa: N802
        if stream in self.recording:
            return (CAPTURING,)
        event = self.events[handle]
        self.put(stream, lambda: self.drain(event.stream, event))
        return None

    def _EventSynchronize(self, handle: int) -> None:  # noqa: N802
        event = self.events[handle]
        self.drain(event.stream, event)

    def _EventElapsedTime(self, start: int, stop: int) -> float:  # noqa: N802
        return self.events[stop].at - self.events[start].at


def host_view(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """What lies at an address."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory: Any = (ctypes.c_byte * size).from_address(pointer)
    return np.frombuffer(memory, dtype).reshape(shape)


class SimulatedContext:
    """An IExecutionContext."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.profile = None if engine.had_context else 0
        engine.had_context = True
        engine.contexts += 1

    def __del__(self) -> None:
        self.engine.contexts -= 1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            return False
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2) if self.engine.spec.get("by_values") else self.shapes[self.engine.partner(name)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % ALIGNMENT == 0

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self.engine, self.engine.cuda
        if engine.spec.get("fails"):
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def compute() -> None:
            cuda.clock += engine.spec["ms"]
            for name, kind in engine.spec["tensors"].items():
                if not kind["input"]:
                    partner = engine.partner(name)
                    dtype = np.dtype(engine.spec["dtype"])
                    x = host_view(addresses[partner], shapes[partner], dtype)
                    host_view(addresses[name], shapes[partner], dtype)[...] = 2 * x + 1

        cuda.put(stream, compute)
        if self.profiler:
            cuda.drain(stream)
            for layer, ms in engine.spec["layers"]:
                self.profiler.report_layer_time(layer, ms)
        return True


class SimulatedEngine:
    """An ICudaEngine of x → y, both of one dtype."""

    device_memory_size = 4096

    def __init__(self, cuda: SimulatedCuda, data: bytes) -> None:
        self.cuda = cuda
        self.spec = json.loads(data)
        self.contexts = 0
        self.had_context = False
        self.names = list(self.spec["tensors"])
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(self.spec["profiles"])

    def partner(self, output: str) -> str:
        return output.replace("y", "x")

    def get_tensor_name(self, index: int) -> str:
        return str(self.names[index])

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"float32": "FLOAT", "int32": "INT32", "float16": "HALF", "int4": "INT4"}
        return SimpleNamespace(name=names[self.spec["dtype"]])

    def get_tensor_location(self, name: str) -> Any:
        return SimpleNamespace(name=self.spec["tensors"][name].get("location", "DEVICE"))

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if self.spec["tensors"][name]["input"] else "OUTPUT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.spec["tensors"][name]["shape"])

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.spec["profiles"][index]

    def create_execution_context(self) -> SimulatedContext | None:
        # TensorRT 8.6: one profile, one context.
        return None if self.contexts or self.spec.get("no_context") else SimulatedContext(self)


def simulated_tensorrt(cuda: SimulatedCuda) -> ModuleType:
    """A tensorrt module for that GPU."""

    class ILogger:
        def log(self, severity: Any, text: str) -> None:
            raise NotImplementedError

    class IProfiler:
        pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> SimulatedEngine | None:
            if json.loads(data).get("corrupt"):
                self.logger.log(SimpleNamespace(name="ERROR"), "magicTag does not match")
                return None
            return SimulatedEngine(cuda, data)

    module = ModuleType("simulated_tensorrt")
    vars(module).update(ILogger=ILogger, IProfiler=IProfiler, Runtime=Runtime)
    return module


class OnGpu:
    """Another library's tensor in GPU memory: a NumPy array, to which `written` is written on `stream`."""

    def __init__(self, array: Any, gpu: SimulatedCuda, device: tuple[int, int] = (dlpack.CUDA, 0)) -> None:
        self.array = array
        self.gpu = gpu
        self.device = device
        self.stream = 77
        self.read_on: list[int] = []

    def write(self, values: Any) -> None:
        """Queues a write."""
        self.gpu.put(self.stream, lambda: np.copyto(self.array, values))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, **_: Any) -> object:
        self.read_on.append(stream)
        if stream not in (self.stream, -1):
            event = self.gpu._EventCreate()
            self.gpu._EventRecord(event, self.stream)
            self.gpu._StreamWaitEvent(stream, event, 0)
            self.gpu._EventDestroy(event)
        # NumPy exports an array that is not writeable only to those who know DLPack 1, which can say so.
        version: Any = {} if self.array.flags.writeable else {"max_version": (1, 0)}
        capsule = self.array.__dlpack__(**version)
        tensor = dlpack._tensor_in(capsule)[0]
        tensor.device.type, tensor.device.index = self.device
        return capsule


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    """The simulated GPU, in the place of cuda-bindings."""
    simulated = SimulatedCuda()
    monkeypatch.setattr(cuda_module, "require", lambda module, needed_for: simulated)
    return simulated


@pytest.fixture
def load(gpu: SimulatedCuda, tmp_path: Path) -> Callable[..., Engine]:
    """Loads an engine x[-1, 2] → y of the simulated TensorRT; two profiles, rows 1 to 4 and 5 to 8."""

    def load(**changes: Any) -> Engine:
        spec: dict[str, Any] = {
            "tensors": {"x": {"input": True, "shape": [-1, 2]}, "y": {"input": False, "shape": [-1, 2]}},
            "dtype": "float32",
            "profiles": [[[1, 2], [2, 2], [4, 2]], [[5, 2], [6, 2], [8, 2]]],
            "layers": [["first", 1.0], ["second", 3.0]],
            "ms": 2.0,
        }
        path = tmp_path / "model.engine"
        path.write_text(json.dumps(spec | changes))
        flavour = Flavour("tensorrt", "TensorRT", simulated_tensorrt(gpu), "8.6.0", False)
        return Engine(flavour, path)

    return load


@pytest.fixture
def on_gpu(gpu: SimulatedCuda) -> Callable[..., OnGpu]:
    """Makes another library's tensor in GPU memory, aligned as TensorRT asks."""

    def make(values: Any, device: tuple[int, int] = (dlpack.CUDA, 0), offset: int = 0) -> OnGpu:
        given = np.asarray(values)
        block = np.zeros(given.nbytes + 2 * ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT + offset
        array = block[start : start + given.nbytes].view(given.dtype).reshape(given.shape)
        array[...] = given
        return OnGpu(array, gpu, device)

    return make
