"""The packed form of 2:4 weights: one form for each weight, and the weight back from it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparseflow_trt.model.packing import Packed24, pack_2to4, round_up, unpack_2to4, why_not_in_plugin
from sparseflow_trt.model.pattern import prune_2to4

Array = npt.NDArray[Any]
_TYPES = [np.dtype(t) for t in (np.float16, np.float32, ml_dtypes.bfloat16, np.int8)]


@st.composite
def _weights(draw: st.DrawFn) -> Array:
    """2:4 weights of any bits, NaN and -0 among them."""
    dtype = draw(st.sampled_from(_TYPES))
    shape = draw(st.integers(1, 5)), 8 * draw(st.integers(1, 4))
    bits = draw(hnp.arrays(f"u{dtype.itemsize}", shape))
    some = draw(hnp.arrays(np.bool_, shape))
    return prune_2to4(np.where(some, bits, 0).astype(bits.dtype).view(dtype), 1)


def _bits(values: Array) -> Array:
    """As integers, with one zero."""
    bits = values.view(f"u{values.dtype.itemsize}")
    return np.where(values == 0, 0, bits)


@given(weight=_weights())
def test_what_is_packed_comes_back(weight: Array) -> None:
    packed = pack_2to4(weight)
    back = unpack_2to4(packed)
    assert back.dtype == weight.dtype
    assert np.array_equal(_bits(back), _bits(weight))
    assert (packed.n, packed.k) == weight.shape


@given(weight=_weights())
def test_a_weight_has_one_packed_form(weight: Array) -> None:
    packed = pack_2to4(weight)
    again = pack_2to4(unpack_2to4(packed))
    assert np.array_equal(packed.indices, again.indices)
    assert np.array_equal(_bits(packed.values), _bits(again.values))
    pairs = np.stack([packed.indices & 15, packed.indices >> 4])
    assert np.all((pairs & 3) < (pairs >> 2))


def test_the_layout_by_hand() -> None:
    row = np.array([[0, 5, 0, 7, 3, 0, 0, 0]], np.float16)
    packed = pack_2to4(row)
    assert packed.values.tolist() == [[5, 7, 3, 0]]
    # positions 1 and 3 in the low nibble; 0 and the first zero, 1, in the high one
    assert packed.indices.tolist() == [[(1 | 3 << 2) | (0 | 1 << 2) << 4]]


def test_sixteen_bits_take_nine_sixteenths() -> None:
    weight = np.zeros((32, 64), np.float16)
    assert pack_2to4(weight).nbytes * 16 == weight.nbytes * 9


def test_the_plugin_takes_n_and_k_that_are_multiples_of_16() -> None:
    assert why_not_in_plugin(16, 48) == ""
    for n, k in ((24, 32), (32, 24), (8, 8)):
        assert why_not_in_plugin(n, k) == f"N={n} and K={k} are not both multiples of 16"


def test_rows_are_padded_to_the_next_multiple_of_8() -> None:
    assert [round_up(m) for m in (1, 8, 9, 16, 1001)] == [8, 8, 16, 16, 1008]


def test_many_rows_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = prune_2to4(np.random.default_rng(0).standard_normal((7, 16)).astype(np.float16), 1)
    whole = pack_2to4(weight)
    monkeypatch.setattr("sparseflow_trt.model.packing._ELEMENTS_AT_ONCE", 32)
    pieces = pack_2to4(weight)
    assert np.array_equal(whole.indices, pieces.indices)
    assert np.array_equal(whole.values, pieces.values)
    assert np.array_equal(unpack_2to4(pieces), weight)


def test_a_group_of_three_is_named() -> None:
    weight = np.zeros((3, 16), np.float16)
    weight[1, 8:11] = 1
    with pytest.raises(ValueError, match="row 1 holds a group with more than 2 non-zeros"):
        pack_2to4(weight)


@pytest.mark.parametrize("shape", [(16,), (2, 12), (2, 2, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="K a multiple of 8"):
        pack_2to4(np.zeros(shape, np.float16))


@pytest.mark.parametrize(
    ("values", "indices", "message"),
    [
        ((2, 8), (2, 1), "do not fit"),
        ((2, 6), (2, 1), "do not fit"),
        ((2, 8), (1, 2), "do not fit"),
        ((2, 8), (2, 2), "not in rising order"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    values: tuple[int, int], indices: tuple[int, int], message: str
) -> None:
    parts = Packed24(np.zeros(values, np.float16), np.zeros(indices, np.uint8))
    with pytest.raises(ValueError, match=message):
        unpack_2to4(parts)
