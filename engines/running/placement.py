"""Where the inputs and outputs of an engine's run lie: in buffers of its own, or in others' tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparseflow_trt.engines.running.cuda import Cuda, DeviceMemory
from sparseflow_trt.engines.running.device_tensor import DeviceTensor, new_tensor, take_tensor
from sparseflow_trt.engines.running.engine_tensors import (
    Array,
    EngineTensor,
    Shape,
    array_of,
    check_names,
    check_shape,
)
from sparseflow_trt.errors import InputError

MemoryFor = Callable[[EngineTensor, Shape], DeviceTensor]


class Placement:
    """Finds a place on the thread's GPU, which is the engine's, for each input and output."""

    def __init__(self, cuda: Cuda, tensors: Sequence[EngineTensor], device: int) -> None:
        self._cuda = cuda
        self._device = device
        self._inputs = tuple(t for t in tensors if t.is_input)
        self._outputs = tuple(t for t in tensors if not t.is_input)
        self._buffers: dict[str, DeviceMemory] = {}

    def clear(self) -> None:
        """Gives the engine's buffers back, but for what somebody still holds."""
        self._buffers.clear()

    def check(self, feeds: Mapping[str, Any], stream: int) -> Mapping[str, Array | DeviceTensor]:
        """The feeds as inputs: all of them NumPy arrays, or all of them tensors in GPU memory.

        Raises:
            InputError: As `check_arrays` or `check_tensors`.
        """
        if all(isinstance(value, np.ndarray) for value in feeds.values()):
            return self.check_arrays(feeds)
        return self.check_tensors(feeds, stream)

    def check_arrays(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Host arrays as the engine's inputs take them.

        Raises:
            InputError: An input is missing, unknown, or of another dtype or rank.
        """
        return {t.name: array_of(t, feeds[t.name]) for t in check_names(self._inputs, feeds)}

    def check_tensors(self, feeds: Mapping[str, Any], stream: int) -> dict[str, DeviceTensor]:
        """Tensors in GPU memory, where they lie; `stream` waits until they are written.

        Raises:
            InputError: An input is missing, unknown, of another dtype, rank or device, or not contiguous.
        """
        taken = {t.name: self._take(t, feeds[t.name], stream) for t in check_names(self._inputs, feeds)}
        for tensor in self._inputs:
            check_shape(tensor, taken[tensor.name].shape)
        return taken

    def place_inputs(
        self, given: Mapping[str, Array | DeviceTensor], stream: int, memory_for: MemoryFor
    ) -> dict[str, DeviceTensor]:
        """Each input on the GPU: an array is copied, on `stream`, into what `memory_for` takes."""
        placed = {}
        for tensor in self._inputs:
            value = given[tensor.name]
            if isinstance(value, DeviceTensor):
                placed[tensor.name] = value
            else:
                placed[tensor.name] = memory_for(tensor, value.shape)
                self._cuda.copy_to_device(placed[tensor.name].pointer, value, stream)
        return placed

    def place_outputs(
        self,
        given: Mapping[str, Any],
        shape_of: Callable[[EngineTensor], Shape],
        stream: int,
        memory_for: MemoryFor,
    ) -> dict[str, DeviceTensor]:
        """Each output on the GPU: in the tensor that is given for it, else in what `memory_for` takes.

        Raises:
            InputError: A name is unknown, or a tensor is no place for its output.
        """
        names = [t.name for t in self._outputs]
        if unknown := sorted(set(given) - set(names)):
            raise InputError(
                f"output '{unknown[0]}' is not one of the engine's.", f"It has: {', '.join(names)}."
            )
        placed = {}
        for tensor in self._outputs:
            shape = shape_of(tensor)
            if tensor.name not in given:
                placed[tensor.name] = memory_for(tensor, shape)
                continue
            taken = placed[tensor.name] = self._take(tensor, given[tensor.name], stream)
            if taken.shape != shape:
                raise InputError(
                    f"{tensor} is given as {list(taken.shape)}; for these inputs it is {list(shape)}.",
                    "Give a tensor of that shape.",
                )
        return placed

    def own(self, tensor: EngineTensor, shape: Shape) -> DeviceTensor:
        """The engine's own buffer for a tensor; it is replaced by a larger one where it has to be."""
        size = math.prod(shape) * tensor.dtype.itemsize
        held = self._buffers.get(tensor.name)
        if held is None or held.size < size:
            held = self._buffers[tensor.name] = DeviceMemory(self._cuda, size)
        return DeviceTensor(self._cuda, held.pointer, shape, tensor.dtype, self._device, held)

    def new(self, tensor: EngineTensor, shape: Shape) -> DeviceTensor:
        """Memory of its own for a tensor."""
        return new_tensor(self._cuda, shape, tensor.dtype)

    def none(self, tensor: EngineTensor, shape: Shape) -> DeviceTensor:
        """No memory, since a stream that is being captured can take none.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{tensor} was given no tensor, and no memory can be allocated while a stream is being captured.",
            f"Give one {list(shape)} of {tensor.dtype.name}.",
        )

    def _take(self, tensor: EngineTensor, given: Any, stream: int) -> DeviceTensor:
        written = not tensor.is_input
        return take_tensor(self._cuda, str(tensor), given, tensor.dtype, self._device, stream, written)
