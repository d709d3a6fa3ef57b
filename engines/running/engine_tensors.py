"""An engine's inputs and outputs: what it takes, and which of its profiles takes given shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow_trt.engines.running.device_tensor import DeviceTensor, is_on_device
from sparseflow_trt.errors import InputError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Range = tuple[Shape, Shape]  # the least and the greatest shape

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
    shape: Shape

    def __str__(self) -> str:
        return f"{'input' if self.is_input else 'output'} '{self.name}'"


def read_tensors(engine: Any) -> tuple[EngineTensor, ...]:
    """The inputs and outputs of a TensorRT ICudaEngine.

    Raises:
        InputError: One has a type that NumPy and ml_dtypes lack, or is read on the host.
    """
    return tuple(_read_tensor(engine, engine.get_tensor_name(i)) for i in range(engine.num_io_tensors))


def read_ranges(engine: Any, tensors: Sequence[EngineTensor]) -> tuple[dict[str, Range], ...]:
    """Which shapes of its inputs each optimization profile of an ICudaEngine takes."""
    inputs = [t for t in tensors if t.is_input]
    return tuple(
        {t.name: _read_range(engine, t, profile) for t in inputs}
        for profile in range(engine.num_optimization_profiles)
    )


def check_names(tensors: Sequence[EngineTensor], feeds: Mapping[str, Any]) -> tuple[EngineTensor, ...]:
    """The inputs among an engine's tensors, once `feeds` has a value for each and for nothing else.

    Raises:
        InputError: One is missing or unknown.
    """
    inputs = {t.name: t for t in tensors if t.is_input}
    if differ := sorted(set(inputs) ^ set(feeds)):
        what = "is missing" if differ[0] in inputs else "is not one of the engine's"
        raise InputError(f"input '{differ[0]}' {what}.", f"The engine takes: {', '.join(inputs)}.")
    return tuple(inputs.values())


def check_shape(tensor: EngineTensor, shape: Shape) -> None:
    """Checks what does not depend on profiles.

    Raises:
        InputError: The rank is another, or a dimension is 0.
    """
    if len(shape) != len(tensor.shape):
        raise InputError(
            f"{tensor} has {len(shape)} dimensions; the engine takes {len(tensor.shape)}.",
            "Give the shape that the model takes.",
        )
    if math.prod(shape) == 0:
        raise InputError(f"{tensor} is empty.", "Give at least one element.")


def array_of(tensor: EngineTensor, value: Any) -> Array:
    """A host value as the contiguous array that an input takes; integers are converted where they fit.

    Raises:
        InputError: It is no array, or one of another dtype or rank.
    """
    if is_on_device(value):
        raise InputError(f"{tensor} is in GPU memory.", "Run the engine with run_device(), or give arrays.")
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{tensor} is not an array: {' '.join(str(error).split())}", "Give a NumPy array."
        ) from error
    check_shape(tensor, array.shape)
    if array.dtype == tensor.dtype:
        return np.ascontiguousarray(array)
    # TensorRT 8.6 has no INT64: an int64 input of the model is an int32 input of the engine.
    if array.dtype.kind in "iu" and tensor.dtype.kind in "iu":
        limits = np.iinfo(tensor.dtype)
        if limits.min <= array.min() and array.max() <= limits.max:
            return np.ascontiguousarray(array.astype(tensor.dtype))
    raise InputError(f"{tensor} is {array.dtype}; the engine takes {tensor.dtype}.", "Convert it first.")


def fitting_profile(ranges: Sequence[Mapping[str, Range]], shapes: Mapping[str, Shape]) -> int:
    """The first profile that takes these shapes.

    Raises:
        InputError: None does; it names what they take.
    """
    for index, ranged in enumerate(ranges):
        if all(_holds(ranged[name], shape) for name, shape in shapes.items()):
            return index
    said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    taken = "; ".join(
        ", ".join(f"{name} {list(low)} to {list(high)}" for name, (low, high) in ranged.items())
        for ranged in ranges
    )
    raise InputError(
        f"the shapes {said} fit no profile of the engine.",
        f"Its profiles take: {taken}. Plan a profile that holds these shapes.",
    )


def shapes_of(feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, Shape]:
    """The shape of each input."""
    return {name: tuple(value.shape) for name, value in feeds.items()}


def _read_tensor(engine: Any, name: str) -> EngineTensor:
    dtype = engine.get_tensor_dtype(name).name
    numpy_name = _NUMPY_NAMES.get(dtype)
    if numpy_name is None:
        raise InputError(
            f"tensor '{name}' is {dtype}, which has no NumPy type here.", "Cast it in the model."
        )
    if engine.get_tensor_location(name).name == "HOST":
        raise InputError(
            f"tensor '{name}' is read or written on the host, like an input that holds a shape.",
            "Make the shape a constant of the model, or let it follow from the inputs' shapes.",
        )
    is_input = engine.get_tensor_mode(name).name == "INPUT"
    return EngineTensor(name, is_input, _numpy_dtype(numpy_name), tuple(engine.get_tensor_shape(name)))


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if hasattr(np, name):
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def _read_range(engine: Any, tensor: EngineTensor, profile: int) -> Range:
    if -1 not in tensor.shape:
        return tensor.shape, tensor.shape
    low, _, high = engine.get_tensor_profile_shape(tensor.name, profile)
    return tuple(low), tuple(high)


def _holds(ranged: Range, shape: Shape) -> bool:
    low, high = ranged
    return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
