"""DLPack, both ways: reads other libraries' tensors where they lie, and lets other libraries read ours.

The structures are those of dlpack.h. They are read and written here because cuda.core, which could do it
too, imports only beside certain releases of cuda-bindings and exports nothing on a machine with no driver.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

# DLDeviceType
CPU = 1
CUDA = 2
CUDA_MANAGED = 13

_FAMILIES = {0: "int", 1: "uint", 2: "float", 5: "complex"}  # DLDataTypeCode; the name ends in the bits
_NAMED = {(4, 16): "bfloat16", (6, 8): "bool", (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2"}
_CODES = {name: code for code, name in _NAMED.items()} | {
    f"{_FAMILIES[code]}{bits}": (code, bits) for code in (0, 1, 2) for bits in (8, 16, 32, 64)
}

_VERSION = (1, 0)  # the newest that is read here
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_python = ctypes.PyDLL(None)  # not ctypes.pythonapi, whose functions everybody shares
_is_valid = _python.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_pointer_of = _python.PyCapsule_GetPointer
_pointer_of.argtypes, _pointer_of.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p


@dataclass(frozen=True)
class ForeignTensor:
    """A tensor of another library, where it lies.

    Attributes:
        pointer: The address of its first element.
        shape: Its shape.
        strides: From one element to the next along each dimension, in elements; None where it is contiguous.
        dtype: Named as NumPy and ml_dtypes do, such as "float16" and "bfloat16".
        read_only: Whether its library forbids to write to it.
        owner: Keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    read_only: bool
    owner: object

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one behind the other, the last dimension the fastest."""
        if self.strides is None or 0 in self.shape:
            return True
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


def read_tensor(exporter: Any, stream: int | None) -> ForeignTensor:
    """Reads what an object exports; nothing is copied.

    Args:
        exporter: An object with `__dlpack__`.
        stream: The CUDA stream that will use the tensor, by DLPack's numbers (1 is the default stream): its
            library makes that wait until the tensor is written. None for tensors in host memory.

    Raises:
        BufferError: It exports something else than DLPack 0 or 1. What its library raises comes through.
    """
    try:
        capsule = exporter.__dlpack__(stream=stream, max_version=_VERSION)
    except TypeError:  # libraries from before DLPack 1 do not know the argument
        capsule = exporter.__dlpack__(stream=stream)
    tensor, read_only = _tensor_in(capsule)
    ndim = tensor.ndim
    return ForeignTensor(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[:ndim]),
        strides=tuple(tensor.strides[:ndim]) if tensor.strides else None,
        dtype=_dtype_name(tensor.dtype),
        read_only=read_only,
        # A capsule that nobody has taken over frees its tensor when it dies, so it is kept as it is.
        owner=(exporter, capsule),
    )


def write_tensor(
    pointer: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int], owner: object
) -> object:
    """A DLPack capsule of contiguous memory, for `__dlpack__` to return.

    Args:
        pointer: The address of the first element.
        shape: Its shape.
        dtype: Such as "float16".
        device: DLPack's device type and the device's number.
        owner: Lives as long as somebody uses the capsule or the tensor made of it.

    Raises:
        BufferError: DLPack has no such type.
    """
    if dtype not in _CODES:
        raise BufferError(f"DLPack has no type for {dtype}.")
    code, bits = _CODES[dtype]
    # NumPy writes the capsule, and frees it whenever and wherever its user is done with it. Of the memory
    # NumPy knows only the address, which it does not touch; of the type it knows the size. What it cannot
    # know is filled in: where the memory lies, and the type.
    array = np.asarray(_Interface(pointer, shape, np.dtype(f"u{bits // 8}"), owner))
    capsule: object = array.__dlpack__()
    tensor, _ = _tensor_in(capsule)
    tensor.device.type, tensor.device.index = device
    tensor.dtype.code, tensor.dtype.bits = code, bits
    return capsule


class _Interface:
    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> None:
        data = (pointer, False)
        self.__array_interface__ = {"data": data, "shape": shape, "typestr": dtype.str, "version": 3}
        self.owner = owner


def _tensor_in(capsule: object) -> tuple[_Tensor, bool]:
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer_of(capsule, b"dltensor_versioned"))
        if versioned.major != _VERSION[0]:
            raise BufferError(f"it is of DLPack {versioned.major}.{versioned.minor}, which is not known here")
        return versioned.tensor, bool(versioned.flags & _READ_ONLY)
    if _is_valid(capsule, b"dltensor"):
        return _Tensor.from_address(_pointer_of(capsule, b"dltensor")), False
    raise BufferError("its __dlpack__ returns no unused DLPack capsule")


def _dtype_name(dtype: _Type) -> str:
    code, bits, lanes = dtype.code, dtype.bits, dtype.lanes
    family = _FAMILIES.get(code)
    name = _NAMED.get((code, bits)) or (
        f"{family}{bits}" if family else f"DLPack's type {code} of {bits} bits"
    )
    return name if lanes == 1 else f"{name}×{lanes}"
