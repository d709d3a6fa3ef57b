"""cuSPARSELt's plans, made once and run often, in the library that PyTorch has loaded.

PyTorch makes a plan in each call and drops it again. For FP16 the library compiles the plan's kernel with
NVRTC: a fifth of a second on an H200, where a BF16 plan takes a millisecond. A plan that is kept costs a
call some microseconds, and may be recorded in a CUDA graph. Declared is what cusparseLt.h, 0.8 to 0.9, has.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

from sparseflow_trt.engines.machine.cuda_libraries import version_of
from sparseflow_trt.errors import NotInstalledError

SONAME = "libcusparseLt.so.0"

_OPAQUE = 2048  # bytes; the library's objects take 512 of them
_ALIGNMENT = 64
_TENSOR_ALIGNMENT = 16  # bytes; what the library is told of its operands
_TYPES = {"float16": 2, "bfloat16": 14}  # cudaDataType: CUDA_R_16F, CUDA_R_16BF
_COLUMNS, _ROWS, _NON_TRANSPOSE, _HALF, _FLOAT32 = 1, 2, 0, 0, 2
_BIAS_POINTER = 8  # of cusparseLtMatmulDescAttribute_t
_ID = 0  # of cusparseLtMatmulAlgAttribute_t
_NO_ALGORITHM = "cuSPARSELt does not take this product"


@dataclass(frozen=True, order=True)
class Algorithm:
    """How cuSPARSELt computes a product: by which of its algorithms, K not split."""

    number: int

    def __str__(self) -> str:
        return f"algorithm {self.number}"


@dataclass(frozen=True)
class Shape:
    """A product y[M, N] = x[M, K] · W[N, K]ᵀ.

    Attributes:
        dtype: Of all three, as PyTorch calls it: "float16" or "bfloat16".
    """

    m: int
    n: int
    k: int
    dtype: str


class Plan:
    """One product by one algorithm, ready to be run as often as one likes, also while a graph is recorded.

    A CUDA graph that holds its kernel needs the plan alive.
    """

    def __init__(self, shape: Shape, algorithm: Algorithm, bias: int = 0, device: int = 0) -> None:
        """Makes the plan.

        Args:
            shape: The product.
            algorithm: How to compute it.
            bias: The address of [N] in GPU memory; 0 for none.
            device: The GPU, which is the current one.

        Raises:
            RuntimeError: The library does not take the product, in its words.
            NotInstalledError: The library is missing, or lacks a function.
        """
        self.shape, self.algorithm = shape, algorithm
        self._library, self._handle = _library(), _handle(device)
        self._matrices = [_Opaque() for _ in range(3)]
        self._matmul, self._selection, self._plan = _Opaque(), _Opaque(), _Opaque()
        self._describe(shape, bias)
        self._select(algorithm)
        self._call("cusparseLtMatmulPlanInit", self._plan, self._matmul, self._selection)
        size = ctypes.c_size_t()
        self._call("cusparseLtMatmulGetWorkspace", self._plan, ctypes.byref(size))
        self.workspace_bytes = size.value

    def run(self, packed: int, x: int, y: int, workspace: int, stream: int) -> None:
        """Queues the product on a stream; all but the stream are addresses in GPU memory.

        Raises:
            RuntimeError: The library refuses, in its words.
        """
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        queue = ctypes.c_void_p(stream)
        self._call(
            "cusparseLtMatmul", self._plan, ctypes.byref(one), ctypes.c_void_p(packed), ctypes.c_void_p(x),
            ctypes.byref(zero), ctypes.c_void_p(y), ctypes.c_void_p(y), ctypes.c_void_p(workspace),
            ctypes.byref(queue), 1,
        )  # fmt: skip

    def close(self) -> None:
        """Gives the plan back, and the kernel that was compiled for it."""
        self._library.cusparseLtMatmulPlanDestroy(self._plan.at)
        self._library.cusparseLtMatmulAlgSelectionDestroy(self._selection.at)
        for matrix in self._matrices:
            self._library.cusparseLtMatDescriptorDestroy(matrix.at)

    def _describe(self, shape: Shape, bias: int) -> None:
        # D = A · B with a sparse A: yᵀ = W · xᵀ, where transposes are rows read as columns.
        kind = _TYPES[shape.dtype]
        weight, x, y = self._matrices
        n, k, m = (ctypes.c_int64(size) for size in (shape.n, shape.k, shape.m))
        self._call(
            "cusparseLtStructuredDescriptorInit", weight, n, k, k, _TENSOR_ALIGNMENT, kind, _ROWS, _HALF
        )
        self._call("cusparseLtDenseDescriptorInit", x, k, m, k, _TENSOR_ALIGNMENT, kind, _COLUMNS)
        self._call("cusparseLtDenseDescriptorInit", y, n, m, n, _TENSOR_ALIGNMENT, kind, _COLUMNS)
        self._call(
            "cusparseLtMatmulDescriptorInit", self._matmul, _NON_TRANSPOSE, _NON_TRANSPOSE, weight, x, y, y,
            _FLOAT32,
        )  # fmt: skip
        if bias:
            at = ctypes.c_void_p(bias)
            self._call(
                "cusparseLtMatmulDescSetAttribute", self._matmul, _BIAS_POINTER, ctypes.byref(at), _size(at)
            )

    def _select(self, algorithm: Algorithm) -> None:
        self._call("cusparseLtMatmulAlgSelectionInit", self._selection, self._matmul, 0)
        number = ctypes.c_int32(algorithm.number)
        self._call(
            "cusparseLtMatmulAlgSetAttribute", self._selection, _ID, ctypes.byref(number), _size(number)
        )

    def _call(self, function: str, *arguments: Any) -> None:
        given = [argument.at if isinstance(argument, _Opaque) else argument for argument in arguments]
        status = getattr(self._library, function)(self._handle.at, *given)
        if status:
            raise RuntimeError(f"{_NO_ALGORITHM}: {function}: {_words(self._library, status)}")


class _Opaque:
    """Memory for one of the library's objects."""

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(_OPAQUE + _ALIGNMENT)
        self.at = ctypes.c_void_p(-(-ctypes.addressof(self._bytes) // _ALIGNMENT) * _ALIGNMENT)


def library_version(library: Any = None) -> str:
    """The version of the cuSPARSELt that runs, such as "0.8.1".

    The library itself is asked, since PyTorch tells which one it was built with, and another may be loaded.

    Args:
        library: The library, opened by ctypes; None for the one that PyTorch has loaded.

    Raises:
        NotInstalledError: It cannot be asked.
    """
    try:
        return version_of("cusparseLt", library or _library())
    except AttributeError as error:
        raise _missing(error) from error


@functools.cache
def _library() -> Any:
    """The library; PyTorch has to be imported before, which loads it."""
    try:
        library = ctypes.CDLL(SONAME)
        library.cusparseLtGetErrorString.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise _missing(error) from error
    return library


@functools.cache
def _handle(device: int) -> _Opaque:  # the library's handle is of the GPU that is current
    handle, library = _Opaque(), _library()
    if status := library.cusparseLtInit(handle.at):
        raise RuntimeError(f"cusparseLtInit: {_words(library, status)}")
    return handle


def _words(library: Any, status: int) -> str:
    return str(library.cusparseLtGetErrorString(status).decode())


def _size(value: Any) -> ctypes.c_size_t:
    return ctypes.c_size_t(ctypes.sizeof(value))


def _missing(error: Exception) -> NotInstalledError:
    return NotInstalledError(
        f"cuSPARSELt ({SONAME}) cannot be used: {error}.",
        "Install PyTorch from its own package index; those builds bring cuSPARSELt.",
    )
