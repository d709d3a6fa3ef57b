"""BF16 and FP8 at a session's ends: NumPy lacks these types, and ONNX Runtime and Polygraphy go by it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from sparseflow_trt._deps import require
from sparseflow_trt.validation.feeds import Array

_TYPES: dict[str, tuple[str, Any]] = {
    "tensor(bfloat16)": ("BFLOAT16", ml_dtypes.bfloat16),
    "tensor(float8e4m3fn)": ("FLOAT8E4M3FN", ml_dtypes.float8_e4m3fn),
    "tensor(float8e4m3fnuz)": ("FLOAT8E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
    "tensor(float8e5m2)": ("FLOAT8E5M2", ml_dtypes.float8_e5m2),
    "tensor(float8e5m2fnuz)": ("FLOAT8E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
}


@dataclass(frozen=True)
class _End:
    name: str
    type: str
    shape: list[int | str | None]


def is_narrow(ort_type: str) -> bool:
    """Whether ONNX Runtime's name for a type is one that NumPy lacks."""
    return ort_type in _TYPES


def widen(array: Array) -> Array:
    """The array in FP32 where its type is one that NumPy lacks (nothing is lost), else as it is."""
    narrow = any(array.dtype == dtype for _, dtype in _TYPES.values())
    return array.astype(np.float32) if narrow else array


class WidenedSession:
    """An inference session whose BF16 and FP8 inputs and outputs look like FP32 ones.

    Every value of the narrow types is one of FP32, so nothing is lost; an FP32 value that is not is
    rounded to nearest. It has of an onnxruntime.InferenceSession what Polygraphy's runner uses.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def get_inputs(self) -> list[_End]:
        """The inputs' names, types and shapes."""
        return [_widened(end) for end in self._session.get_inputs()]

    def get_outputs(self) -> list[_End]:
        """The outputs' names, types and shapes."""
        return [_widened(end) for end in self._session.get_outputs()]

    def run(self, names: list[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Runs the model; names=None gives every output."""
        types = {end.name: end.type for end in self._session.get_inputs()}
        values = {name: _value(array, types[name]) for name, array in feeds.items()}
        wanted = names or [end.name for end in self._session.get_outputs()]
        return [_array(value) for value in self._session.run_with_ort_values(wanted, values)]


def _widened(end: Any) -> _End:
    return _End(end.name, "tensor(float)" if is_narrow(end.type) else end.type, end.shape)


def _value(array: Array, ort_type: str) -> Any:
    import onnx

    ort_value = require("onnxruntime", "running the reference").OrtValue
    if not is_narrow(ort_type):
        return ort_value.ortvalue_from_numpy(np.ascontiguousarray(array))
    name, dtype = _TYPES[ort_type]
    narrow = np.array(array, dtype, order="C")
    bits = narrow.view(np.dtype(f"u{narrow.dtype.itemsize}"))
    return ort_value.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.DataType.Value(name))


def _array(value: Any) -> Array:
    if not is_narrow(value.data_type()):
        return np.asarray(value.numpy())
    dtype = np.dtype(_TYPES[value.data_type()][1])
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
