"""Tensors in GPU memory: ours for others to read, others' for us to run on, with no copy either way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow_trt.engines.running import dlpack
from sparseflow_trt.engines.running.cuda import Cuda, DeviceMemory, Marker
from sparseflow_trt.errors import InputError

# What TensorRT's setTensorAddress asks for. PyTorch and CuPy allocate so; a slice may begin anywhere.
_ALIGNMENT = 256
# What libraries raise where they do not export: sparse tensors, ones with a gradient, ones of no device.
_NOT_EXPORTED = (BufferError, RuntimeError, TypeError, ValueError)


class DeviceTensor:
    """A contiguous tensor in GPU memory, which whatever reads DLPack takes with no copy.

    `torch.from_dlpack(tensor)` is one way. The memory lives as long as the tensor or something made of it.

    Attributes:
        pointer: The address of its first element.
        shape: Its shape.
        dtype: Its type; ml_dtypes' where NumPy has none.
        device: The number of the GPU.
    """

    def __init__(
        self,
        cuda: Cuda,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: int,
        owner: object,
    ) -> None:
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._cuda = cuda
        self._owner = owner
        self._busy: Marker | None = None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def busy_until(self, marker: Marker | None) -> None:
        """Says what has to be waited for before it is read or written, None where nothing is."""
        self._busy = marker

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Exports it. `stream`, by DLPack's numbers the one that will use it, waits until it is not busy.

        Raises:
            BufferError: A copy is asked for, or another device.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("it is exported where it lies, with no copy")
        if self._busy is not None and stream != -1:
            with self._cuda.on(self.device):
                self._cuda.wait(1 if stream is None else stream, self._busy)
        return dlpack.write_tensor(self.pointer, self.shape, self.dtype.name, self.__dlpack_device__(), self)

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in host memory, once no run is using the tensor."""
        array = np.empty(self.shape, self.dtype)
        with self._own_stream() as stream:
            self._cuda.copy_to_host(array, self.pointer, stream)
        return array

    def copy_from(self, array: npt.NDArray[Any]) -> None:
        """Overwrites it with a host array, once no run is using it.

        Raises:
            InputError: The array has another shape or dtype.
        """
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise InputError(
                f"an array {list(array.shape)} of {array.dtype} does not fit a tensor {list(self.shape)} "
                f"of {self.dtype}.",
                "Give one of the same shape and dtype.",
            )
        array = np.ascontiguousarray(array)
        with self._own_stream() as stream:
            self._cuda.copy_to_device(self.pointer, array, stream)

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[int]:
        if self._busy is not None:
            self._busy.synchronize()
        with self._cuda.on(self.device):
            yield (stream := 0)  # the default stream
            self._cuda.synchronize(stream)


def new_tensor(cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
    """Takes memory of this thread's GPU for a tensor; what is in it is anything.

    Raises:
        BuildError: There is not enough.
    """
    memory = DeviceMemory(cuda, math.prod(shape) * dtype.itemsize)
    return DeviceTensor(cuda, memory.pointer, shape, dtype, cuda.device(), memory)


def is_on_device(value: Any) -> bool:
    """Whether a value says, by DLPack, that it lies in GPU memory."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return False
    try:
        return int(value.__dlpack_device__()[0]) in (dlpack.CUDA, dlpack.CUDA_MANAGED)
    except _NOT_EXPORTED:
        return False


def take_tensor(
    cuda: Cuda, what: str, given: Any, dtype: np.dtype[Any], device: int, stream: int, written: bool = False
) -> DeviceTensor:
    """Views a tensor of any library that exports DLPack, where it lies.

    Args:
        cuda: CUDA's runtime.
        what: What it is for, such as "input 'x'", for errors.
        given: The tensor.
        dtype: What it has to be.
        device: The number of the GPU it has to be on.
        stream: The CUDA stream that will use it; it waits until the tensor's library has written it.
        written: Whether it will be written to.

    Raises:
        InputError: It is no such tensor.
    """
    if not hasattr(given, "__dlpack__") or not hasattr(given, "__dlpack_device__"):
        raise InputError(
            f"{what} is a {type(given).__name__}, which does not export DLPack.",
            "Give a tensor in GPU memory, such as PyTorch's or CuPy's, or NumPy arrays to run().",
        )
    if not is_on_device(given):
        raise InputError(
            f"{what} is not in GPU memory.",
            "Move it there, for example with .cuda(), or give NumPy arrays to run().",
        )
    if (index := int(given.__dlpack_device__()[1])) != device:
        raise InputError(
            f"{what} is on GPU {index}; the engine is on GPU {device}.", "Move one to the other's."
        )
    try:
        foreign = dlpack.read_tensor(given, stream or 1)  # CUDA's 0 is DLPack's 1: the default stream
    except _NOT_EXPORTED as error:
        raise InputError(
            f"{what} is not exported: {' '.join(str(error).split())}",
            "Give a plain dense tensor; PyTorch's .detach() makes one of a parameter.",
        ) from error
    if foreign.dtype != dtype.name:
        raise InputError(
            f"{what} is {foreign.dtype}; the engine takes {dtype.name}.",
            f"Convert it first, in PyTorch with .to(torch.{dtype.name}).",
        )
    if not foreign.is_contiguous:
        raise InputError(
            f"{what} is not contiguous: its strides are {list(foreign.strides or ())}.",
            "Make it contiguous, for example with .contiguous().",
        )
    if foreign.pointer % _ALIGNMENT and 0 not in foreign.shape:
        raise InputError(
            f"{what} begins at an address that is not a multiple of {_ALIGNMENT} bytes, which TensorRT "
            "requires.",
            "It is part of another tensor: copy it, for example with .clone().",
        )
    if written and foreign.read_only:
        raise InputError(f"{what} is read-only, and the engine writes to it.", "Give a writable tensor.")
    return DeviceTensor(cuda, foreign.pointer, foreign.shape, dtype, device, foreign.owner)
