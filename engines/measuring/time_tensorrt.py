"""Measures products as TensorRT engines of one layer each: built dense, and built with sparse weights.

A 'sparse' point is the time of the engine that TensorRT builds when sparse weights are allowed: what one
gets by asking for them. TensorRT takes the tactic that it finds fastest then, which may be a dense one; the
point's tactic says so, with the builder's own times of the best of both sorts. The dense engine is not
built again in that case: with the same weights and one sort of tactic it would be the same engine, but for
the noise of tactic timing. The one engine is loaded and timed twice, and both times count as one
(`Measured.counted`).

A 'plugin' point is the time of an engine of one node of the 2:4 plugin, beside the same dense engine.

Each engine is loaded several times, so that the copies' weights together exceed the L2 cache, and one CUDA
graph runs them one after the other. The two graphs are replayed in turn. A product of one M takes most of a
minute: give a short grid, and let several threads measure, each with a builder of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow_trt._deps import require
from sparseflow_trt._files import sha256_of
from sparseflow_trt.engines.backends.child import builders_stopped
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.evidence.outcomes import LayerOutcome
from sparseflow_trt.engines.machine.gpu_state import ClockState, clock_reader, l2_bytes
from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request, pair_of
from sparseflow_trt.engines.measuring.medians import Effort, sample_until_narrow
from sparseflow_trt.engines.measuring.single_products import (
    PRECISIONS,
    numpy_type,
    plan_product,
    write_plugin_product,
    write_product,
)
from sparseflow_trt.engines.measuring.turn import Turn
from sparseflow_trt.engines.plugin.library import load_library
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine
from sparseflow_trt.engines.running.cuda import Cuda
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import Flavour, graph_needs_of, load_flavour
from sparseflow_trt.engines.timing.input_sets import calls_needed, sets_needed
from sparseflow_trt.engines.timing.turns import Work, times_in_turn
from sparseflow_trt.errors import NotInstalledError, PolicyError
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.policies.policy import Dtype, Kernel, Library, Pair
from sparseflow_trt.policies.tactics import TOOK_DENSE, told_best

MOST_ERROR = 1e-2  # of the sparse engine against FP32, relative, in the 2-norm

_MOST_COPIES = 128  # of an engine: each takes a while to load
_CHECKED_ROWS = 32
_SPARSE_K = 4

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Side:
    """One of the two engines: its file, and what the builder says of its layer."""

    file: Path
    outcome: LayerOutcome


class TensorRtMeasurer:
    """Measures on the first visible GPU. It keeps the last weights, and dense engines for the plugin."""

    library: Library = "tensorrt"

    def __init__(
        self, effort: Effort | None = None, plugin: Path | None = None, turn: Turn | None = None
    ) -> None:
        """Finds TensorRT and the GPU.

        Args:
            effort: How long to time each product.
            plugin: The library of the plugin, where that is measured.
            turn: What its threads share with those of other measurers; by default nobody's.

        Raises:
            NotInstalledError: TensorRT, cuda-bindings, a GPU or the plugin's library is missing.
        """
        self._backend = TensorRtBackend()
        if reason := self._backend.unavailable():
            raise NotInstalledError(reason, "Or measure PyTorch's kernels: --library torch.")
        self._flavour: Flavour = load_flavour("tensorrt")
        require("cuda.bindings.runtime", "timing engines")
        self._effort = effort or Effort()
        self._turn = turn or Turn()
        self._l2 = l2_bytes()
        self._read_clock = clock_reader()
        self._weights: tuple[Curve, Array] | None = None
        self._plugin = plugin
        if plugin:
            load_library(self._flavour, plugin)
        self._kept = tempfile.TemporaryDirectory(prefix="sparseflow-trt-autotune-")
        self._dense: dict[tuple[int, int, Dtype, int], _Side] = {}  # the plugin is held against them, too

    def versions(self) -> dict[str, str]:
        """The version of TensorRT, and what tells the plugin's library from another."""
        plugin = {"plugin": sha256_of(self._plugin)[:12]} if self._plugin else {}
        return {**self._backend.versions(), **plugin}

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        """Why a product cannot be measured, "" where it can."""
        if dtype not in PRECISIONS:
            return f"{dtype} is not measured through TensorRT"
        needs = graph_needs_of(self._flavour.key, self._flavour.version)
        if dtype == "BF16" and not needs.takes_bf16:
            return f"TensorRT {self._flavour.version} has no BF16"
        return f"K={k} is no multiple of {_SPARSE_K}" if k % _SPARSE_K else ""

    def measure(self, request: Request) -> Measured:
        """Builds one product dense and with its curve's kernel, and times the two engines in turn.

        Several threads may do so: they build at once and time one after the other, with all builders
        stopped.

        Raises:
            BuildError: An engine cannot be built or run.
            EvidenceError: The engine runs in another precision.
            PolicyError: The sparse engine's output is wrong.
        """
        begun = time.perf_counter()
        with self._turn.taken(), tempfile.TemporaryDirectory(prefix="sparseflow-trt-autotune-") as name:
            folder = Path(name)
            weight = self._weight_of(request.curve)
            write_product(folder / "model.onnx", request, weight)
            if request.curve.kernel == "plugin":
                write_plugin_product(folder / "plugin.onnx", request, weight)
                sparse = self._build(folder / "plugin.onnx", request, "plugin")
                dense = self._dense_side(folder, request)
            else:
                sparse = self._build(folder / "model.onnx", request, "sparse")
                if not sparse.outcome.sparse:
                    self._keep(request, sparse)
                dense = self._dense_side(folder, request) if sparse.outcome.sparse else sparse
            pair, clock = self._time(request, weight, dense, sparse)
        return Measured(request, pair, time.perf_counter() - begun, "CUDA graphs", clock)

    def _weight_of(self, curve: Curve) -> Array:
        if self._weights is None or self._weights[0] != curve:
            rng = np.random.default_rng(0)
            drawn = rng.standard_normal((curve.k, curve.n), dtype=np.float32) * np.float32(curve.k**-0.5)
            self._weights = (curve, prune_2to4(drawn.astype(numpy_type(curve.dtype)), 0))
        return self._weights[1]

    def _dense_side(self, folder: Path, request: Request) -> _Side:
        """The dense engine, that of an earlier request for the same product where there was one."""
        kept = self._dense.get(_product(request))
        return kept or self._keep(request, self._build(folder / "model.onnx", request, "dense"))

    def _keep(self, request: Request, side: _Side) -> _Side:
        """Keeps a dense engine where the plugin is held against it, too: one may have half a gigabyte."""
        if self._plugin:
            file = Path(self._kept.name) / f"{len(self._dense)}.engine"
            shutil.copyfile(side.file, file)
            side = self._dense[_product(request)] = _Side(file, side.outcome)
        return side

    def _build(self, model: Path, request: Request, kernel: Kernel) -> _Side:
        place = model.parent / kernel
        place.mkdir()
        plan, plugin = plan_product(request, kernel), self._plugin if kernel == "plugin" else None
        asked = BuildRequest(model, plan, place, kernel == "sparse", plugin=plugin)
        with self._turn.given_up():
            built: BuiltEngine = self._backend.build(asked, lambda progress: None)
        return _Side(built.file, built.outcomes[0])

    def _time(
        self, request: Request, weight: Array, dense: _Side, sparse: _Side
    ) -> tuple[Pair, ClockState | None]:
        curve = request.curve
        x = np.random.default_rng(request.m).standard_normal((request.m, curve.k)).astype(weight.dtype)
        copies = min(_MOST_COPIES, sets_needed(request.m, curve.n, curve.k, self._l2))
        clocks: list[ClockState | None] = []
        with contextlib.ExitStack() as stack:
            rings = [
                [stack.enter_context(Engine(self._flavour, side.file)) for _ in range(copies)]
                for side in (dense, sparse)
            ]
            _check(request, x, weight, rings[1][0].run({"x": x})["y"])
            cuda = rings[0][0].cuda
            stream = cuda.new_stream()
            stack.callback(cuda.call, "cudaStreamDestroy", stream)
            calls = calls_needed(
                copies, _guess_us(dense.outcome if sparse.outcome.plugin else sparse.outcome)
            )
            works = [stack.enter_context(recorded(cuda, stream, ring, {"x": x}, calls)) for ring in rings]
            event = event_maker(cuda, stream, stack)

            def sample(samples: int) -> list[list[float]]:
                taken = times_in_turn(
                    event, works, samples, works[0], lambda: clocks.append(self._read_clock())
                )
                return [[ms * 1000 / calls for ms in one] for one in taken.ms]

            with builders_stopped():
                medians = sample_until_narrow(sample, self._effort, time.perf_counter)
        tactics = (dense.outcome.tactic, told_tactic(sparse.outcome))
        return pair_of(request, medians, tactics), clocks[-1]


@contextlib.contextmanager
def recorded(
    cuda: Cuda, stream: int, engines: Sequence[Engine], feeds: dict[str, Array], calls: int
) -> Iterator[Work]:
    """Gives what launches a CUDA graph on `stream`: `calls` runs, each by the next of the engines."""
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(engine.capture(feeds)) for engine in engines]

        def work() -> None:
            for i in range(calls):
                engine, run = engines[i % len(engines)], runs[i % len(engines)]
                engine.run_device(run.inputs, run.outputs, stream)

        graph = cuda.capture(stream, work)
        stack.callback(cuda.call, "cudaGraphDestroy", graph.graph)
        stack.callback(cuda.call, "cudaGraphExecDestroy", graph.executable)
        yield lambda: cuda.call("cudaGraphLaunch", graph.executable, stream)


class _Event:
    """A CUDA event on one stream, with the methods that `times_in_turn` takes."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self.handle = int(cuda.call("cudaEventCreate"))

    def record(self) -> None:
        self._cuda.call("cudaEventRecord", self.handle, self._stream)

    def query(self) -> bool:
        return False  # asked only by who queues behind a sleeping kernel

    def synchronize(self) -> None:
        self._cuda.call("cudaEventSynchronize", self.handle)

    def elapsed_time(self, end_event: _Event) -> float:
        return float(self._cuda.call("cudaEventElapsedTime", self.handle, end_event.handle))


def event_maker(cuda: Cuda, stream: int, stack: contextlib.ExitStack) -> Callable[[], _Event]:
    """What makes events on a stream; they are given back when `stack` closes."""

    def make() -> _Event:
        event = _Event(cuda, stream)
        stack.callback(cuda.call, "cudaEventDestroy", event.handle)
        return event

    return make


def told_tactic(outcome: LayerOutcome) -> str:
    """The sparse engine's tactic; of a dense one also that it is, with what the builder timed."""
    if outcome.sparse:  # as the plugin's are
        return outcome.tactic
    best = (outcome.best_sparse_ms, outcome.best_dense_ms)
    told = told_best(*(None if ms is None else ms * 1000 for ms in best))
    return f"{outcome.tactic or 'not told'} {TOOK_DENSE}{told})"


def _guess_us(outcome: LayerOutcome) -> float:
    """About how long the engine takes, from what its builder timed."""
    ms = outcome.best_sparse_ms if outcome.sparse else outcome.best_dense_ms
    return max(1.0, (ms or 0.0) * 1000)


def _check(request: Request, x: Array, weight: Array, output: Array) -> None:
    rows = np.unique(np.linspace(0, len(x) - 1, _CHECKED_ROWS).astype(int))
    exact = x[rows].astype(np.float32) @ weight.astype(np.float32)
    error = float(np.linalg.norm(output[rows].astype(np.float32) - exact) / np.linalg.norm(exact))
    if not error < MOST_ERROR:  # a NaN is no pass
        raise PolicyError(
            f"TensorRT's {request.curve.kernel} engine is wrong at {request}: it is {error:.2e} off FP32.",
            "Its times would be meaningless: use another release of TensorRT.",
        )


def _product(request: Request) -> tuple[int, int, Dtype, int]:
    return request.curve.n, request.curve.k, request.curve.dtype, request.m
