"""Measures products through PyTorch: dense by cuBLAS, sparse by cuSPARSELt, on the same 2:4 weights.

What is timed is kernels. Both are recorded as CUDA graphs of several calls, each call on buffers of its own,
which together exceed the L2 cache: weights come from memory, as they do in a network whose other layers
have passed since. The two graphs are replayed in turn, so that a drift of the machine's speed meets both.
Where calls cannot be recorded, they are queued while the GPU sleeps, and timed back to back.

cuSPARSELt's algorithm is searched for each product and M: all that it has are timed, and of the three fastest
the best over more buffers is taken. The fastest at one M say little of another: of the eight fastest at M=64
the best took 58 us at M=256, and the best of all 36 (4096→14336 in FP16 on an H200). cuBLAS is called as
PyTorch calls it. Where M is not a multiple of 8 the sparse kernel's rows are padded to one, as PyTorch does;
it is the product of the padded rows that is timed, without the copy that pads them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sparseflow_trt.engines.backends.child import builders_stopped
from sparseflow_trt.engines.machine.gpu_state import ClockState, clock_reader, l2_bytes
from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request, pair_of
from sparseflow_trt.engines.measuring.medians import Effort, sample_until_narrow
from sparseflow_trt.engines.measuring.turn import Turn
from sparseflow_trt.engines.timing.input_sets import calls_needed, sets_needed
from sparseflow_trt.engines.timing.turns import Work, times_in_turn
from sparseflow_trt.engines.torch_kernels import cusparselt
from sparseflow_trt.engines.torch_kernels.cusparselt import Tensor
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm, Shape, library_version
from sparseflow_trt.engines.torch_kernels.torch_timing import Queue, capture, new_event
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.policy import Dtype, Library, Pair
from sparseflow_trt.pytorch.torch_pattern import prune_rows

GRAPHS = "CUDA graphs"
QUEUED = "queued calls"  # behind a sleeping kernel, where they cannot be recorded

DTYPES: dict[Dtype, str] = {"FP16": "float16", "BF16": "bfloat16"}
MOST_ERROR = 1e-2  # of the sparse product against FP32, relative, in the 2-norm

_DENSE = "F.linear"
_FINALISTS = 3
_CHECKED_ROWS = 256
_MOST_RESERVED = 0.5  # of the GPU's memory


@dataclass(frozen=True)
class _Weights:
    """One product's 2:4 weights: W[N, K], and the same packed."""

    curve: Curve
    dense: Tensor
    packed: Tensor


@dataclass(frozen=True)
class _Kernels:
    """Two kernels ready to be timed: what queues each, over how many calls, and the sparse one's output."""

    works: tuple[Work, Work]
    calls: int
    output: Tensor
    in_graphs: bool


class TorchMeasurer:
    """Measures on the first visible GPU. It keeps the weights of the last product.

    Attributes:
        how: How kernels are timed: GRAPHS, which becomes QUEUED where calls cannot be recorded.
    """

    library: Library = "torch"

    def __init__(self, effort: Effort | None = None, turn: Turn | None = None, how: str = GRAPHS) -> None:
        """Finds PyTorch and the GPU.

        Args:
            effort: How long to time each product.
            turn: What its threads share with those of other measurers; by default nobody's.
            how: GRAPHS or QUEUED.

        Raises:
            NotInstalledError: PyTorch, its cuSPARSELt or a GPU is missing.
        """
        self._torch = cusparselt.load_torch()
        self._effort = effort or Effort()
        self._turn = turn or Turn()
        self._l2 = l2_bytes()
        self._read_clock = clock_reader()
        self._stream = self._torch.cuda.Stream()  # graphs are not recorded on the default one
        self._queue = Queue(self._torch)
        self._queues = True
        self._weights: _Weights | None = None
        self.how = how

    def versions(self) -> dict[str, str]:
        """The libraries whose kernels run."""
        torch = self._torch
        found = {
            "torch": str(torch.__version__),
            "cuda": str(torch.version.cuda),
            "cusparselt": library_version(),
        }
        for package in (f"nvidia-cublas-cu{str(torch.version.cuda).partition('.')[0]}", "nvidia-cublas"):
            try:
                found["cublas"] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        """Why a product cannot be measured, "" where it can."""
        if dtype not in DTYPES:
            return f"{dtype} is not measured through PyTorch"
        return cusparselt.why_not(n, k)

    def measure(self, request: Request) -> Measured:
        """Times one product dense and sparse, in turn; other threads' builders of engines are stopped.

        Raises:
            PolicyError: The sparse product is wrong, or cannot be computed or timed.
        """
        with self._turn.taken(), builders_stopped():
            return self._measure(request)

    def _measure(self, request: Request) -> Measured:
        begun = time.perf_counter()
        torch = self._torch
        with torch.cuda.stream(self._stream), torch.no_grad(), cusparselt.passing_plans():
            try:
                pair, clock = self._time(request, self._weights_of(request.curve))
            finally:
                self._stream.synchronize()  # before the plans go
        if torch.cuda.memory_reserved() > _MOST_RESERVED * torch.cuda.get_device_properties(0).total_memory:
            torch.cuda.empty_cache()  # what graphs had is kept for them, and nobody else can use it
        return Measured(request, pair, time.perf_counter() - begun, self.how, clock)

    def _time(self, request: Request, weights: _Weights) -> tuple[Pair, ClockState | None]:
        curve = request.curve
        x = self._random(request.m, curve.k, curve.dtype, seed=request.m)
        count = sets_needed(request.m, curve.n, curve.k, self._l2)
        dense_sets = _copies((x, weights.dense), count)
        sparse_sets = _copies((cusparselt.pad_rows(x), weights.packed), count)
        algorithm, sparse_us = self._best_algorithm(request, sparse_sets)
        kernels = self._prepare(dense_sets, sparse_sets, algorithm, sparse_us)
        clocks: list[ClockState | None] = []

        def sample(samples: int) -> list[list[float]]:
            return self._sample(kernels, samples, lambda: clocks.append(self._read_clock()))

        sample(1)
        self._check(request, x, weights.dense, kernels.output)
        medians = sample_until_narrow(sample, self._effort, time.perf_counter)
        tactics = (_DENSE, tactic_of(request.m, algorithm))
        return pair_of(request, medians, tactics), clocks[-1]

    def _weights_of(self, curve: Curve) -> _Weights:
        if self._weights is None or self._weights.curve != curve:
            self._weights = None  # before the next ones are made: they may be large
            scaled = self._random(curve.n, curve.k, curve.dtype, seed=0) * curve.k**-0.5
            dense = prune_rows(scaled)
            self._weights = _Weights(curve, dense, cusparselt.pack(dense))
        return self._weights

    def _random(self, rows: int, columns: int, dtype: Dtype, seed: int) -> Tensor:
        torch = self._torch
        source = torch.Generator(device="cuda").manual_seed(seed)
        kind = getattr(torch, DTYPES[dtype])
        return torch.randn(rows, columns, generator=source, device="cuda", dtype=kind)

    def _best_algorithm(
        self, request: Request, sets: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Algorithm, float]:
        """The fastest algorithm, and microseconds that it takes."""
        x, packed = sets[0]
        dtype = DTYPES[request.curve.dtype]
        candidates = cusparselt.find_algorithms(dtype)
        cusparselt.make_plans(Shape(len(x), request.curve.n, request.curve.k, dtype), candidates)

        def quickly(algorithm: Algorithm) -> float:
            cusparselt.sparse_linear(x, packed, algorithm)  # loads its kernel
            return self._call_us(algorithm, sets[:3])

        ranked = cusparselt.rank_algorithms(candidates, quickly)
        times: dict[Algorithm, float] = {}

        def carefully(algorithm: Algorithm) -> float:
            times[algorithm] = min(self._call_us(algorithm, sets[:8]) for _ in range(2))
            return times[algorithm]

        best = cusparselt.rank_algorithms(ranked[:_FINALISTS], carefully)[0]
        return best, times[best]

    def _call_us(self, algorithm: Algorithm, sets: Iterable[tuple[Tensor, Tensor]]) -> float:
        used = list(sets)

        def work() -> None:
            for x, packed in used:
                cusparselt.sparse_linear(x, packed, algorithm)

        if self._queues:
            try:
                return self._queue.times([work], len(used))[0][0] * 1000 / len(used)
            except PolicyError:
                self._queues = False  # calls wait for the GPU: as graphs then, or not at all
        graph, _ = capture(self._torch, work)
        event = functools.partial(new_event, self._torch)
        return times_in_turn(event, [graph.replay], 1, graph.replay).ms[0][0] * 1000 / len(used)

    def _prepare(
        self,
        dense_sets: Sequence[tuple[Tensor, Tensor]],
        sparse_sets: Sequence[tuple[Tensor, Tensor]],
        algorithm: Algorithm,
        sparse_us: float,
    ) -> _Kernels:
        linear = self._torch.nn.functional.linear
        calls = calls_needed(len(dense_sets), sparse_us)
        linear(*dense_sets[0])  # loads its kernel

        def dense() -> list[Tensor]:
            return [linear(*dense_sets[i % len(dense_sets)]) for i in range(calls)]

        def sparse() -> list[Tensor]:
            chosen = (sparse_sets[i % len(sparse_sets)] for i in range(calls))
            return [cusparselt.sparse_linear(*given, algorithm) for given in chosen]

        if self.how == GRAPHS:
            try:
                dense_graph, _ = capture(self._torch, dense)
                sparse_graph, outputs = capture(self._torch, sparse)
                return _Kernels((dense_graph.replay, sparse_graph.replay), calls, outputs[0], True)
            except RuntimeError:
                self.how = QUEUED
                self._stream.synchronize()
        return _Kernels((dense, sparse), calls, sparse()[0], False)

    def _sample(self, kernels: _Kernels, samples: int, meanwhile: Work) -> list[list[float]]:
        """Microseconds of one product, of each kernel."""
        if kernels.in_graphs:
            event = functools.partial(new_event, self._torch)
            times = times_in_turn(event, kernels.works, samples, kernels.works[0], meanwhile).ms
        else:
            times = self._queue.times(kernels.works, kernels.calls, samples, meanwhile)
        return [[ms * 1000 / kernels.calls for ms in taken] for taken in times]

    def _check(self, request: Request, x: Tensor, weight: Tensor, output: Tensor) -> None:
        error = relative_error(self._torch, x, weight, output)
        if not error < MOST_ERROR:  # a NaN is no pass
            raise PolicyError(
                f"cuSPARSELt's product is wrong at {request}: it is {error:.2e} off FP32, relative.",
                "Its times would be meaningless: use another release of cuSPARSELt or PyTorch.",
            )


def relative_error(torch: Any, x: Tensor, weight: Tensor, output: Tensor) -> float:
    """How far rows of `output` are from x · Wᵀ in FP32: the 2-norm of the difference over FP32's.

    Args:
        torch: PyTorch.
        x: [M, K].
        weight: [N, K].
        output: [M, N], or with more rows, which are not looked at.
    """
    rows = torch.linspace(0, len(x) - 1, min(len(x), _CHECKED_ROWS), device=x.device).long()
    exact = x[rows].float() @ weight.float().t()
    return float(torch.linalg.vector_norm(output[rows].float() - exact) / torch.linalg.vector_norm(exact))


def tactic_of(m: int, algorithm: Algorithm) -> str:
    """What a sparse point says of its kernel."""
    padding = -m % cusparselt.ROWS
    return f"{algorithm}, rows padded from {m} to {m + padding}" if padding else str(algorithm)


def _copies(tensors: tuple[Tensor, Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    """The tensors and copies of them, `count` sets in all: buffers of their own with the same values."""
    x, weight = tensors
    return [tensors, *((x.clone(), weight.clone()) for _ in range(count - 1))]
