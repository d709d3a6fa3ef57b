"""cuSPARSELt's products through ctypes: what the plugin is held against, and a trial of what a GPU survives.

    python benchmarks/cusparselt_alone.py LIBRARY        the trial, in this process: it may not survive it
    python benchmarks/cusparselt_alone.py LIBRARY MOST [K N M]
                        of numbers below MOST alone: no split K, no search; at that shape

It shares no code with the plugin, so that the two can be compared. Layouts and constants are cusparseLt.h's,
0.8 to 0.10.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sparseflow_trt.engines.running.cuda import Cuda, DeviceMemory, Graph

_FP16, _FP32_SUMS, _COLUMNS, _ROWS = 2, 2, 1, 2  # CUDA_R_16F, CUSPARSE_COMPUTE_32F, CUSPARSE_ORDER_COL, _ROW
_ID, _MAX_ID, _SPLIT_K, _SPLIT_K_MODE = 0, 1, 3, 4  # cusparseLtMatmulAlgAttribute_t
_MOST_WORKSPACE = 32 << 20  # the plugin's own limit
_MOST_SPLIT_M = 512
_SHORT = 2  # launches of a graph that decide who is timed at length
_FINALISTS, _ROUNDS = 8, 15  # in turn: one that runs alone may meet a GPU that is slowed down
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)

Algorithm = tuple[int, int, int]  # number, parts of K, how K is split


class RefusedError(RuntimeError):
    """The library does not take it."""


class Library:
    """cuSPARSELt on this thread's GPU."""

    def __init__(self, file: str) -> None:
        self._library = ctypes.CDLL(file)
        self.handle = _opaque()
        self.call("Init", self.handle)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls cusparseLtNAME.

        Raises:
            RefusedError: Its status is no success.
        """
        if status := getattr(self._library, f"cusparseLt{name}")(*arguments):
            raise RefusedError(f"cusparseLt{name}: status {status}")

    def version(self) -> str:
        """Such as "0.9.1"."""
        value = ctypes.c_int()
        parts = []
        for part in range(3):
            self.call("GetProperty", part, ctypes.byref(value))
            parts.append(str(value.value))
        return ".".join(parts)

    def weight_matrix(self, k: int, n: int) -> Any:
        """The descriptor of W[N, K]."""
        w = _opaque()
        sizes = ctypes.c_int64(n), ctypes.c_int64(k), ctypes.c_int64(k)
        self.call("StructuredDescriptorInit", self.handle, w, *sizes, ctypes.c_uint32(16), _FP16, _ROWS, 0)
        return w

    def compress(self, cuda: Cuda, dense: DeviceMemory, k: int, n: int, stream: int) -> DeviceMemory:
        """W[N, K] as products read it."""
        w, size, buffer_size = self.weight_matrix(k, n), ctypes.c_size_t(), ctypes.c_size_t()
        self.call("SpMMACompressedSize2", self.handle, w, ctypes.byref(size), ctypes.byref(buffer_size))
        packed, buffer = DeviceMemory(cuda, size.value), DeviceMemory(cuda, buffer_size.value)
        pointers = (ctypes.c_void_p(memory.pointer) for memory in (dense, packed, buffer))
        self.call("SpMMACompress2", self.handle, w, 1, 0, *pointers, ctypes.c_void_p(stream))
        cuda.synchronize(stream)
        return packed


class Product:
    """y[M, N] = x[M, K] · Wᵀ, planned."""

    def __init__(self, library: Library, k: int, n: int, m: int, algorithm: Algorithm) -> None:
        """Plans it.

        Raises:
            RefusedError: The library does not take it.
        """
        self._library = library
        call, handle = library.call, library.handle
        self._kept = w, x, y = library.weight_matrix(k, n), _opaque(), _opaque()
        for matrix, rows in ((x, k), (y, n)):
            sizes = ctypes.c_int64(rows), ctypes.c_int64(m), ctypes.c_int64(rows)
            call("DenseDescriptorInit", handle, matrix, *sizes, ctypes.c_uint32(16), _FP16, _COLUMNS)
        self._matmul, self._selection, self.plan = _opaque(), _opaque(), _opaque()
        call("MatmulDescriptorInit", handle, self._matmul, 0, 0, w, x, y, y, _FP32_SUMS)
        call("MatmulAlgSelectionInit", handle, self._selection, self._matmul, 0)
        number, parts, mode = algorithm
        self._set(_ID, number)
        if parts != 1:
            self._set(_SPLIT_K, parts)
            self._set(_SPLIT_K_MODE, mode)
        call("MatmulPlanInit", handle, self.plan, self._matmul, self._selection)
        size = ctypes.c_size_t()
        call("MatmulGetWorkspace", handle, self.plan, ctypes.byref(size))
        self.workspace = size.value

    def algorithms(self) -> int:
        """How many the library has for it."""
        return self._get(_MAX_ID)

    def run(self, weight: int, x: int, y: int, workspace: int, stream: int, name: str = "Matmul") -> None:
        """Puts it on a stream; with "MatmulSearch" the library searches instead, and waits."""
        a, b, d, space = (ctypes.c_void_p(pointer) for pointer in (weight, x, y, workspace))
        streams = ctypes.byref(ctypes.c_void_p(stream))
        one, zero = ctypes.byref(_ONE), ctypes.byref(_ZERO)
        self._library.call(name, self._library.handle, self.plan, one, a, b, zero, d, d, space, streams, 1)

    def close(self) -> None:
        """Gives it back to the library."""
        self._library.call("MatmulPlanDestroy", self.plan)
        self._library.call("MatmulAlgSelectionDestroy", self._selection)

    def _set(self, which: int, number: int) -> None:
        value = ctypes.c_int32(number)
        self._library.call(
            "MatmulAlgSetAttribute", self._library.handle, self._selection, which, ctypes.byref(value), 4
        )

    def _get(self, which: int) -> int:
        value = ctypes.c_int32()
        self._library.call(
            "MatmulAlgGetAttribute", self._library.handle, self._selection, which, ctypes.byref(value), 4
        )
        return value.value


class Alone:
    """As many products as the engines have, each with a weight and an input of its own, as one CUDA graph."""

    def __init__(self, cuda: Cuda, library: Library, weights: Sequence[Any]) -> None:
        """Uploads and compresses.

        Args:
            cuda: CUDA's runtime.
            library: cuSPARSELt.
            weights: [K, N] each, FP16, 2:4 along K.
        """
        self._cuda, self._library = cuda, library
        self._k, self._n = weights[0].shape
        self.stream = cuda.new_stream()
        self._weights = []
        for weight in weights:
            dense = DeviceMemory(cuda, weight.nbytes)
            cuda.copy_to_device(dense.pointer, np.ascontiguousarray(weight.T), self.stream)
            cuda.synchronize(self.stream)
            self._weights.append(library.compress(cuda, dense, self._k, self._n, self.stream))
        self._workspace = DeviceMemory(cuda, _MOST_WORKSPACE)

    def prepare(self, block: Any, m: int, limit: int) -> tuple[Graph, Algorithm]:
        """The fastest algorithm for m rows, and the graph of its products.

        Args:
            block: Rows of x, repeated.
            m: A multiple of 8.
            limit: How many of the library's algorithms are tried at most; 0 for all, and K split.

        Raises:
            RefusedError: There is none.
        """
        rows = np.resize(block, (m, self._k))
        self._x, self._y = [], []
        for _ in self._weights:
            self._x.append(DeviceMemory(self._cuda, rows.nbytes))
            self._y.append(DeviceMemory(self._cuda, m * self._n * 2))
            self._cuda.copy_to_device(self._x[-1].pointer, rows, self.stream)
        self._cuda.synchronize(self.stream)
        first = Product(self._library, self._k, self._n, m, (0, 1, 0))
        count = min(first.algorithms(), limit or first.algorithms())
        ranked = self._ranked(m, [(number, 1, 0) for number in range(count)], _SHORT)
        if m <= _MOST_SPLIT_M and not limit:
            split = [
                (number, parts, mode) for number, _, _ in ranked[:3] for parts in (2, 4) for mode in (1, 2)
            ]
            ranked = self._ranked(m, ranked[:4] + split, _SHORT)
        ranked = self._ranked(m, ranked[:_FINALISTS], 1, _ROUNDS)
        if not ranked:
            raise RefusedError(f"cuSPARSELt has no algorithm for {m} rows")
        return self._graph(Product(self._library, self._k, self._n, m, ranked[0])), ranked[0]

    def time(self, graph: Graph, launches: int) -> list[float]:
        """Milliseconds of each launch."""
        launch = self._cuda.call
        return self._cuda.time(
            self.stream, lambda: launch("cudaGraphLaunch", graph.executable, self.stream), launches
        )

    def free(self, graph: Graph) -> None:
        """Gives a graph back."""
        self._cuda.call("cudaGraphExecDestroy", graph.executable)
        self._cuda.call("cudaGraphDestroy", graph.graph)

    def _ranked(
        self, m: int, candidates: Sequence[Algorithm], launches: int, rounds: int = 1
    ) -> list[Algorithm]:
        graphs: dict[Algorithm, Graph] = {}
        times: dict[Algorithm, list[float]] = {}

        def plan(algorithm: Algorithm) -> Product | None:
            with contextlib.suppress(RefusedError):
                return Product(self._library, self._k, self._n, m, algorithm)
            return None

        # For FP16 the library compiles each plan's kernel: side by side, on as many cores as there are.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            products = list(pool.map(plan, candidates))
        for algorithm, product in zip(candidates, products, strict=True):
            if product is not None and product.workspace <= _MOST_WORKSPACE:
                with contextlib.suppress(RefusedError):
                    graphs[algorithm] = self._graph(product)
        for _ in range(rounds):
            for algorithm, graph in graphs.items():
                times.setdefault(algorithm, []).append(min(self.time(graph, launches)))
        for graph in graphs.values():
            self.free(graph)
        for product in products:
            if product is not None:
                product.close()
        return sorted(times, key=lambda algorithm: statistics.median(times[algorithm]))

    def _graph(self, product: Product) -> Graph:
        def run() -> None:
            for weight, x, y in zip(self._weights, self._x, self._y, strict=True):
                product.run(weight.pointer, x.pointer, y.pointer, self._workspace.pointer, self.stream)

        run()
        self._cuda.synchronize(self.stream)
        return self._cuda.capture(self.stream, run)


def try_algorithms(file: str) -> dict[str, Any]:
    """Runs every algorithm of a library for FP16, and its own search, in a process that may die of it.

    Returns:
        The library's version; how many algorithms it claims; the numbers of those that were right, that were
        wrong, and that it refused; `died_of`, what ended the process, "" where nothing did.
    """
    done = subprocess.run([sys.executable, __file__, file], capture_output=True, text=True, check=False)
    said: dict[str, Any] = {"version": "", "claimed": 0, "right": [], "wrong": [], "refused": []}
    last = "loading it"
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("version", "claimed"):
            said[word] = int(rest) if word == "claimed" else rest
        elif word == "try":
            last = rest
        else:
            said[word].append(rest)
    said["died_of"] = last if done.returncode else ""
    said["error"] = (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""
    return said


def _trial(file: str, most: int, k: int = 256, n: int = 512, m: int = 64) -> None:
    cuda = Cuda()
    cuda.call("cudaFree", 0)
    library = Library(file)
    print("version", library.version(), flush=True)
    weight = np.zeros((k, n), np.float16)
    weight[::4] = weight[1::4] = 1
    alone = Alone(cuda, library, [weight])
    x, y = DeviceMemory(cuda, m * k * 2), DeviceMemory(cuda, m * n * 2)
    cuda.copy_to_device(x.pointer, np.ones((m, k), np.float16), alone.stream)
    count = Product(library, k, n, m, (0, 1, 0)).algorithms()
    print("claimed", count, flush=True)
    split = [(number, parts, mode) for number in (0, 1) for parts in (2, 4) for mode in (1, 2)]
    unsplit = [(number, 1, 0) for number in range(min(count, most or count))]
    for algorithm in unsplit if most else unsplit + split:
        name = str(algorithm[0]) if algorithm[1] == 1 else str(algorithm)
        print("try algorithm", name, flush=True)
        got = np.zeros((m, n), np.float16)
        try:
            product = Product(library, k, n, m, algorithm)
            workspace = DeviceMemory(cuda, product.workspace)
            product.run(alone._weights[0].pointer, x.pointer, y.pointer, workspace.pointer, alone.stream)
        except RefusedError:
            print("refused", name, flush=True)
            continue
        cuda.copy_to_host(got, y.pointer, alone.stream)
        cuda.synchronize(alone.stream)
        print("right" if bool((got == k // 2).all()) else "wrong", name, flush=True)
    if most:
        return
    print("try its own search", flush=True)
    product, workspace = Product(library, k, n, m, (0, 1, 0)), DeviceMemory(cuda, _MOST_WORKSPACE)
    pointers = alone._weights[0].pointer, x.pointer, y.pointer, workspace.pointer
    product.run(*pointers, alone.stream, "MatmulSearch")
    cuda.synchronize(alone.stream)


def _opaque() -> Any:
    return ctypes.create_string_buffer(2048)


if __name__ == "__main__":
    _trial(sys.argv[1], *(int(number) for number in sys.argv[2:] or ["0"]))
