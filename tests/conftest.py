"""What the tests share: small ONNX models made on the spot, and slow but obvious 2:4 arithmetic."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from sparseflow_trt.building.loading import EngineFile
    from sparseflow_trt.validation.feeds import InputSet

settings.register_profile("here", deadline=None)  # the first example pays for imports
settings.load_profile("here")
gc.set_threshold(20_000)  # the libraries hold a million objects: looking through them took 5 % of the time

Array = npt.NDArray[Any]
Weights = Mapping[str, Any]  # NumPy arrays of any type

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32, "int64": TensorProto.INT64, "bool": TensorProto.BOOL,
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Has the processes of `pytest -n` share the cores: NumPy and PyTorch would take them all in each one.

    Threads without a core of their own make those that wait for them spin: small products take several
    times as long.
    """
    workers = config.getoption("numprocesses", None)
    if workers:  # not in the workers, which inherit what is set here before they start
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))


@pytest.fixture(scope="session", autouse=True)
def versions_once() -> Iterator[None]:
    """Reads each package's metadata once: builds ask for versions again and again.

    Once for each import path, since a test may put a package of its own there.
    """
    read = importlib.metadata.version
    known = functools.cache(lambda name, path: read(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: known(name, tuple(sys.path)))
        yield


@pytest.fixture(autouse=True)
def operators_once() -> None:
    """Has torch's exporter list the operators that it knows once, and not in each export for a second.

    Nothing imports the exporter for that: where a test has imported it, those after it are the faster.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry: Any = getattr(exporter, "ONNXRegistry", None)
    if registry and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@pytest.fixture(scope="module")
def one_builder() -> Iterator[None]:
    """Has the builds of a file share one builder's process: each would start TensorRT anew, half a second.

    For files that ask what is built. That each build starts and ends a process is tests/engines/backends'.
    """
    from sparseflow_trt.engines.backends.child import shared_child

    with shared_child():
        yield


class Models:
    """Makes model files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tensor(self, name: str, values: Array) -> onnx.TensorProto:
        """A tensor with raw data, of any type that is tested here."""
        data = np.ascontiguousarray(values).tobytes()
        return helper.make_tensor(name, _ONNX_TYPES[values.dtype.name], values.shape, data, raw=True)

    def model(
        self,
        nodes: Sequence[onnx.NodeProto],
        weights: Weights | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = ("y",),
        opset: int = 21,
        functions: Sequence[onnx.FunctionProto] = (),
        dtype: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        """A model whose outputs are of unknown shape. `inputs` maps a name to its dimensions, or None."""
        graph = helper.make_graph(
            nodes,
            "main",
            [
                helper.make_tensor_value_info(name, dtype, dims)
                for name, dims in (inputs or {"x": ("batch", 64)}).items()
            ],
            [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
            [self.tensor(name, values) for name, values in (weights or {}).items()],
        )
        domains = {function.domain for function in functions}
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)

    def save(self, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        """Writes a model as it is."""
        path = self.folder / name
        path.write_bytes(model.SerializeToString())
        return path

    def matmul(self, weight: Array, name: str = "model.onnx") -> Path:
        """A model of one MatMul with `weight` on the right."""
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
        inputs = {"x": ("batch", weight.shape[-2])}
        return self.save(self.model([node], {"w": weight}, inputs), name)

    def externalize(
        self, model: onnx.ModelProto, files: Mapping[str, str], padding: int = 0, length: bool = True
    ) -> None:
        """Moves initializers into data files, each behind `padding` bytes; `files` maps name to file."""
        for tensor in model.graph.initializer:
            if tensor.name not in files:
                continue
            file = self.folder / files[tensor.name]
            file.parent.mkdir(parents=True, exist_ok=True)
            data = tensor.raw_data
            with file.open("ab") as stream:
                stream.write(b"\xa5" * padding)
                offset = stream.tell()
                stream.write(data)
            set_external(tensor, files[tensor.name], offset, len(data) if length else None)


def set_external(tensor: onnx.TensorProto, location: str, offset: int = 0, length: int | None = None) -> None:
    """Makes a tensor say that its data lies in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries: dict[str, Any] = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


class Naive:
    """2:4 arithmetic one group at a time, on float64."""

    def groups(self, values: Array, axis: int, zero: Array | int = 0) -> Array:
        """The elements as (groups, 4) magnitudes, in C order of (outer, K/4, inner)."""
        wide = np.abs(values.astype(np.float64) - np.asarray(zero, np.float64))
        shape = values.shape
        outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        grouped: Array = wide.reshape(outer, shape[axis] // 4, 4, inner).transpose(0, 1, 3, 2).reshape(-1, 4)
        return grouped

    def violating(self, values: Array, axis: int, zero: Array | int = 0) -> list[bool]:
        """For each group whether it holds more than two non-zeros."""
        return [sum(v != 0 for v in group) > 2 for group in self.groups(values, axis, zero)]

    def prune(self, values: Array, axis: int, zero: Array | int = 0) -> Array:
        """A copy that keeps the two largest of each group; the first win a tie."""
        result = np.moveaxis(values.copy(), axis, -1)
        zeros = np.moveaxis(np.broadcast_to(np.asarray(zero), values.shape), axis, -1)
        for index in np.ndindex(result.shape[:-1]):
            row, zero_row = result[index], zeros[index]
            for begin in range(0, len(row), 4):
                magnitudes = [abs(float(row[begin + i]) - float(zero_row[begin + i])) for i in range(4)]
                order = sorted(range(4), key=lambda i: -magnitudes[i])
                for i in order[2:]:
                    if magnitudes[i]:
                        row[begin + i] = zero_row[begin + i]
        return np.moveaxis(result, -1, axis)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Builds models in a fresh folder."""
    return Models(tmp_path)


@pytest.fixture(scope="session")
def naive() -> Naive:
    """Slow, obvious 2:4 arithmetic."""
    return Naive()


class Duels:
    """Duels on a machine with no GPU: ONNX Runtime builds both engines, and their times are given.

    Attributes:
        speedups: How many times as fast as the dense engine the sparse one shall be, by input set; 1 where
            it is not said.
        timed: What was timed: the engines' files and the inputs.
        plans: What was built, in order.
    """

    def __init__(self) -> None:
        self.speedups: dict[str, float] = {}
        self.timed: list[tuple[Sequence[EngineFile], Sequence[InputSet]]] = []
        self.plans: list[Any] = []

    name = "onnxruntime"

    def versions(self) -> dict[str, str]:
        """Of the stand-in."""
        return {"stand-in": "1"}

    def device(self) -> str:
        """Of the stand-in."""
        return "any CPU"

    def graph_needs(self) -> Any:
        """As TensorRT's: one switch for all layers, so that dense ones have to be opted out."""
        from sparseflow_trt.model.target import GraphNeeds

        return GraphNeeds(opts_out_dense=True)

    def build(self, request: Any, on_progress: Callable[..., None]) -> Any:
        """Builds with ONNX Runtime and says of each layer that its plan was followed."""
        from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
        from sparseflow_trt.engines.evidence.outcomes import LayerOutcome

        self.plans.append(request.plan)
        told = tuple(
            LayerOutcome(p.name, 0, sparse=p.sparsity == "sparse", best_sparse_ms=0.5, best_dense_ms=0.25)
            for p in request.plan.layers
        )
        return replace(OnnxRuntimeBackend().build(request, on_progress), outcomes=told)

    def time(
        self,
        files: Sequence[EngineFile],
        inputs: Sequence[InputSet],
        rounds: int,
        launches: int,
        progress: Any,
    ) -> list[Any]:
        """In the place of `timing.time_engines`: the dense engine, the second, takes 2 ms."""
        from sparseflow_trt.engines.running.benchmark import Timing

        assert all(file.path.is_file() for file in files)
        self.timed.append((files, inputs))
        found = []
        for number, given in enumerate(inputs):
            progress(f"Timing {given.name}", number, len(inputs))
            took = (2.0 / self.speedups.get(given.name, 1.0), 2.0)
            found.append(tuple(Timing((ms,) * rounds, ms, ms, ms, rounds * launches) for ms in took))
        return found


@pytest.fixture
def duels(monkeypatch: pytest.MonkeyPatch) -> Duels:
    """Stands in for TensorRT and the GPU wherever sparse is built against dense."""
    made = Duels()
    monkeypatch.setattr("sparseflow_trt.pipeline.check_duel", lambda *_: None)
    monkeypatch.setattr("sparseflow_trt.pipeline.backend_for", lambda _: (made, "It stands in."))
    monkeypatch.setattr("sparseflow_trt.building.duel.time_engines", made.time)
    return made


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A shell starts its background jobs with SIGINT ignored, and tests may run in one: here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
