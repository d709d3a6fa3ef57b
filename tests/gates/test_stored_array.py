"""Arrays in JSON: what goes in comes out, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparseflow_trt.errors import InputError
from sparseflow_trt.gates.stored_array import StoredArray, array_from, store_array

_TYPES = st.sampled_from(["float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool"])


@given(hnp.arrays(_TYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
def test_an_array_comes_back_bit_for_bit(array: npt.NDArray[Any]) -> None:
    stored = StoredArray.model_validate_json(store_array(array, "x").model_dump_json())
    back = array_from(stored, "x")
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_bf16_comes_back() -> None:
    array = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3)
    back = array_from(store_array(array, "x"), "x")
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_strings_are_not_stored() -> None:
    with pytest.raises(InputError, match="output 'names' holds strings"):
        store_array(np.array(["a"]), "output 'names'")


@pytest.mark.parametrize(
    "changed",
    [
        {"data": "no base64!"},
        {"data": base64.b64encode(b"no zlib").decode()},
        {"data": base64.b64encode(zlib.compress(b"\1" * 16)).decode()},
        {"data": base64.b64encode(zlib.compress(bytes(1 << 20))).decode()},  # more than its shape says
        {"dtype": "no_type"},
        {"dtype": "object"},
        {"shape": (1 << 40,)},
        {"shape": (3,)},
        {"sha256": hashlib.sha256(b"").hexdigest()},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_what_was_not_stored_is_refused(changed: dict[str, Any]) -> None:
    stored = store_array(np.zeros(4, np.float32), "x")
    with pytest.raises(InputError, match="output 'x'"):
        array_from(stored.model_copy(update=changed), "output 'x'")
