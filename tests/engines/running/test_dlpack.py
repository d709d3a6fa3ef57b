"""DLPack against the libraries that speak it: NumPy and PyTorch, over host memory, since here is no GPU."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparseflow_trt.engines.running import dlpack
from sparseflow_trt.engines.running.dlpack import read_tensor, write_tensor

HOST = (dlpack.CPU, 0)
NUMPY_NAMES = ["int8", "uint8", "int32", "int64", "float16", "float32", "float64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5)


class Exporter:
    """Exports what one function makes."""

    def __init__(self, make: Any, device: tuple[int, int] = HOST) -> None:
        self.make = make
        self.device = device

    def __dlpack__(self, **_: Any) -> Any:
        return self.make()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def exporter_of(array: Any, dtype: str | None = None, owner: object = None) -> Exporter:
    """Exports a contiguous host array by write_tensor."""
    shape, name = array.shape, dtype or array.dtype.name
    pointer, owner = array.ctypes.data, array if owner is None else owner
    return Exporter(lambda: write_tensor(pointer, shape, name, HOST, owner))


@given(hnp.arrays(st.sampled_from(NUMPY_NAMES), SHAPES))
def test_numpy_reads_what_is_written(array: Any) -> None:
    read = np.from_dlpack(exporter_of(array))
    assert read.ctypes.data == array.ctypes.data
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@given(st.sampled_from([*NUMPY_NAMES, "bool", "bfloat16", "float8_e4m3fn", "float8_e5m2"]), SHAPES)
def test_what_is_written_reads_back_the_same(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, getattr(ml_dtypes, dtype, dtype))
    read = read_tensor(exporter_of(array, dtype), None)
    assert (read.pointer, read.shape, read.dtype) == (array.ctypes.data, shape, dtype)
    assert read.is_contiguous
    assert not read.read_only


@given(st.data())
def test_numpy_views_are_read_where_they_lie(data: st.DataObject) -> None:
    array = data.draw(hnp.arrays("int32", hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)))
    view = data.draw(st.sampled_from([array, array.T])).copy(order="K")
    view = view[data.draw(hnp.basic_indices(view.shape, allow_ellipsis=False))]
    if not isinstance(view, np.ndarray):
        return
    read = read_tensor(view, None)
    assert read.shape == view.shape
    if view.size:
        assert read.pointer == view.ctypes.data
    if read.strides is not None and view.size > 1:
        sized = [i for i, size in enumerate(view.shape) if size > 1]
        assert [read.strides[i] * 4 for i in sized] == [view.strides[i] for i in sized]
    assert read.is_contiguous == view.flags.c_contiguous


def test_read_only_arrays_say_so() -> None:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    try:
        read = read_tensor(array, None)
    except BufferError:  # NumPy 1 exports none
        return
    assert read.read_only


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "int8", "int64", "bool", "float8_e4m3fn"])
def test_torch_both_ways(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, name))
    read = read_tensor(tensor, None)
    assert (read.pointer, read.shape, read.dtype) == (tensor.data_ptr(), (3, 4), name)
    assert not read_tensor(tensor.T, None).is_contiguous
    back = torch.from_dlpack(Exporter(lambda: write_tensor(read.pointer, (3, 4), name, HOST, tensor)))
    assert back.dtype == tensor.dtype
    assert back.data_ptr() == tensor.data_ptr()
    assert (back.float() == tensor.float()).all()


def test_a_slice_begins_where_it_begins() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12.0).reshape(3, 4)[1:, 1:]
    read = read_tensor(tensor, None)
    assert (read.pointer, read.strides) == (tensor.data_ptr(), (4, 1))


def test_what_torch_will_not_export_comes_through() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(BufferError, match="gradient"):
        read_tensor(torch.zeros(3, requires_grad=True), None)


def test_the_owner_lives_as_long_as_its_readers() -> None:
    class Owner:
        pass

    owner = Owner()
    gone = weakref.ref(owner)
    array = np.arange(6, dtype=np.float32)
    read = np.from_dlpack(exporter_of(array, owner=owner))
    viewed = read[2:]
    del owner, read
    gc.collect()
    assert gone() is not None
    del viewed
    gc.collect()
    assert gone() is None


def test_reading_keeps_the_tensor_and_frees_it_once() -> None:
    array = np.arange(6, dtype=np.float32)
    before = sys.getrefcount(array)
    read = read_tensor(array, None)
    assert sys.getrefcount(array) > before
    del read
    assert sys.getrefcount(array) == before


def test_a_capsule_that_nobody_takes_frees_its_owner() -> None:
    array = np.arange(6, dtype=np.float32)
    before = sys.getrefcount(array)
    capsule = write_tensor(array.ctypes.data, (6,), "float32", (dlpack.CUDA, 3), array)
    assert sys.getrefcount(array) > before
    del capsule
    assert sys.getrefcount(array) == before


def test_the_device_is_what_was_said() -> None:
    array = np.zeros(4, np.float32)
    capsule = write_tensor(array.ctypes.data, (4,), "float32", (dlpack.CUDA, 3), array)
    with pytest.raises((BufferError, RuntimeError)):  # NumPy reads host memory alone
        np.from_dlpack(Exporter(lambda: capsule))


def test_a_type_that_dlpack_lacks() -> None:
    with pytest.raises(BufferError, match="no type for float4"):
        write_tensor(0, (1,), "float4_e2m1fn", HOST, None)


def test_the_first_element_may_lie_behind_the_pointer() -> None:
    array = np.arange(6, dtype=np.float32)
    capsule = array.__dlpack__()
    tensor, _ = dlpack._tensor_in(capsule)
    tensor.data, tensor.byte_offset = array.ctypes.data - 64, 64
    assert read_tensor(Exporter(lambda: capsule), None).pointer == array.ctypes.data


def test_unusable_exports() -> None:
    array = np.zeros(3, np.float32)
    capsule = array.__dlpack__()
    np.from_dlpack(Exporter(lambda: capsule))  # takes it over
    for wrong in (capsule, "no capsule"):
        with pytest.raises(BufferError, match="no unused DLPack capsule"):
            read_tensor(Exporter(lambda wrong=wrong: wrong), None)


def test_a_type_without_a_name_is_described() -> None:
    array = np.zeros(3, np.uint8)
    capsule = array.__dlpack__()
    tensor, _ = dlpack._tensor_in(capsule)
    tensor.dtype.code, tensor.dtype.bits = 17, 4
    assert read_tensor(Exporter(lambda: capsule), None).dtype == "DLPack's type 17 of 4 bits"
    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = 2, 32, 4
    assert read_tensor(Exporter(lambda: capsule), None).dtype == "float32×4"


def test_a_newer_dlpack_is_refused() -> None:
    array = np.zeros(3, np.float32)
    try:
        capsule = array.__dlpack__(max_version=(1, 0))
    except TypeError:
        pytest.skip("this NumPy exports no versioned capsules")
    name = b"dltensor_versioned"
    versioned = dlpack._Versioned.from_address(dlpack._pointer_of(capsule, name))
    versioned.major = 2
    with pytest.raises(BufferError, match=r"of DLPack 2\.\d"):
        read_tensor(Exporter(lambda: capsule), None)
    versioned.major = 1
