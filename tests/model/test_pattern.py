"""2:4 arithmetic against one group at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.model import pattern

if TYPE_CHECKING:
    from tests.conftest import Array, Naive

FLOATS = [
    np.float32, np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
]  # fmt: skip
INTEGERS = [np.int8, np.uint8]


def _bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


@st.composite
def weights(draw: st.DrawFn, dtypes: list[Any] = FLOATS + INTEGERS) -> tuple[Array, int]:
    """Any bit pattern that is no NaN, with many zeros and ties, and an axis to prune along."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] = 4 * draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = np.where(np.isnan(values.astype(np.float64)), np.ones_like(values), values)
    few = random.integers(-2, 3, shape).astype(np.int8).astype(dtype)
    return np.where(random.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0])), few, values), axis


@given(case=weights())
def test_prune_keeps_the_two_largest_of_each_group(case: tuple[Array, int], naive: Naive) -> None:
    values, axis = case
    pruned = pattern.prune_2to4(values, axis)
    assert pruned.dtype == values.dtype
    assert pruned.shape == values.shape
    assert pattern.is_2to4(pruned, axis)
    assert np.all((_bits(pruned) == _bits(values)) | (_bits(pruned) == 0))
    np.testing.assert_array_equal(_bits(pruned), _bits(naive.prune(values, axis)))


@given(weights())
def test_prune_is_idempotent(case: tuple[Array, int]) -> None:
    values, axis = case
    once = pattern.prune_2to4(values, axis)
    np.testing.assert_array_equal(_bits(pattern.prune_2to4(once, axis)), _bits(once))


@given(case=weights(), zero=st.integers(-128, 255))
def test_a_count_is_what_counting_one_by_one_gives(case: tuple[Array, int], zero: int, naive: Naive) -> None:
    values, axis = case
    zero = zero if values.dtype == np.uint8 and zero >= 0 else 0
    mask = pattern.nonzero(values, zero)
    shape = values.shape
    folded = mask.reshape(int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :])))
    counted = pattern.count_groups(folded)
    violating = naive.violating(values, axis, zero)
    assert (counted.groups, counted.violating) == (len(violating), sum(violating))
    if counted.first is None:
        assert not any(violating)
        return
    inner = folded.shape[2]
    group, at = divmod(violating.index(True), inner)
    assert counted.first == group * 4 * inner + at


def test_the_first_violation_is_found_wherever_it_lies() -> None:
    mask = np.zeros((3, 16, 5), np.bool_)
    mask[2, 8:11, 3] = mask[2, 12:15, 1] = True  # the later group stands at an earlier place inside
    counted = pattern.count_groups(mask)
    assert (counted.groups, counted.violating) == (60, 2)
    assert counted.first == np.ravel_multi_index((2, 8, 3), mask.shape)


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_of_all_that_fp8_has_a_zero_alone_is_one(kind: str) -> None:
    values = np.arange(256, dtype=np.uint8).view(np.dtype(getattr(ml_dtypes, f"float8_{kind}")))
    np.testing.assert_array_equal(pattern.nonzero(values), values.astype(np.float32) != 0)


@pytest.mark.parametrize(
    "dtype", [np.float16, *(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"))]
)
def test_nan_is_counted_and_infinity_is_none(dtype: Any) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype) if isinstance(dtype, str) else dtype)
    values = np.arange(256**kind.itemsize, dtype=f"u{kind.itemsize}").view(kind)
    assert pattern.nonzero_and_nan(values)[1] == np.count_nonzero(np.isnan(values.astype(np.float32)))
    finite = values[np.isfinite(values)]
    assert pattern.nonzero_and_nan(finite)[1] == 0
    assert pattern.nonzero_and_nan(finite[:0])[1] == 0


@given(dtype=st.sampled_from(INTEGERS), zero=st.integers(0, 255), seed=st.integers(0, 2**32))
def test_integers_are_pruned_to_their_zero_point(dtype: Any, zero: int, seed: int, naive: Naive) -> None:
    zero = int(np.uint8(zero).view(dtype))
    values = np.random.default_rng(seed).integers(0, 256, (3, 8), np.uint8).view(dtype)
    pruned = pattern.prune_2to4(values, 1, zero)
    assert pattern.is_2to4(pruned, 1, zero)
    np.testing.assert_array_equal(pruned, naive.prune(values, 1, zero))


@given(dtype=st.sampled_from(INTEGERS), seed=st.integers(0, 2**32))
def test_a_zero_point_may_differ_by_channel(dtype: Any, seed: int, naive: Naive) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, (8, 5), np.uint8).view(dtype)
    zeros = random.integers(0, 256, (1, 5), np.uint8).view(dtype)
    pruned = pattern.prune_2to4(values, 0, zeros)
    np.testing.assert_array_equal(pruned, naive.prune(values, 0, zeros))
    assert pattern.is_2to4(pruned, 0, zeros)


@pytest.mark.parametrize("dtype", FLOATS)
def test_negative_zeros_stay_bit_for_bit(dtype: Any) -> None:
    values = np.array([-0.0, 1, -0.0, -2, 0, -0.0, 0, 3], dtype)
    np.testing.assert_array_equal(_bits(pattern.prune_2to4(values, 0)), _bits(values))
    assert pattern.is_2to4(values, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_nan_and_infinity_count_as_the_largest(dtype: Any) -> None:
    values = np.array([np.nan, 1, np.inf, 2], dtype)
    pruned = pattern.prune_2to4(values, 0).astype(np.float32)
    np.testing.assert_array_equal(pruned, np.array([np.nan, 0, np.inf, 0], np.float32))


def test_subnormals_are_no_zeros() -> None:
    values = np.array([1e-45, -1e-45, 1e-45, 0], np.float32)
    assert not pattern.is_2to4(values, 0)


def test_the_largest_of_int8_is_minus_128() -> None:
    values = np.array([-128, 127, 1, 127], np.int8)
    assert pattern.prune_2to4(values, 0).tolist() == [-128, 127, 0, 0]


def test_the_first_two_win_a_tie() -> None:
    assert pattern.prune_2to4(np.array([1, -1, 1, -1], np.float32), 0).tolist() == [1, -1, 0, 0]


def test_an_axis_counts_from_the_end_too() -> None:
    values = np.arange(1, 25, dtype=np.float32).reshape(3, 8)
    np.testing.assert_array_equal(pattern.prune_2to4(values, -1), pattern.prune_2to4(values, 1))
    assert pattern.is_2to4(pattern.prune_2to4(values, -1), -1)


def test_an_input_is_not_changed_and_need_not_be_contiguous() -> None:
    values = np.arange(1, 65, dtype=np.float32).reshape(8, 8)
    before = values.copy()
    pruned = pattern.prune_2to4(values.T, 0)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(pruned, pattern.prune_2to4(values, 1).T)


@given(case=weights(), strided=st.booleans(), held=st.booleans())
def test_in_place_is_the_same_and_counts(case: tuple[Array, int], strided: bool, held: bool) -> None:
    values, axis = case
    pruned = pattern.prune_2to4(values, axis)
    copy = values.copy(order="F" if strided else "C")
    scratch = np.full(pattern.scratch_bytes(values) + 3, 0xA5, np.uint8) if held else None
    zeros = pattern.prune_in_place(copy, axis, scratch=scratch)
    np.testing.assert_array_equal(_bits(copy), _bits(pruned))
    assert zeros.before == np.count_nonzero(~pattern.nonzero(values))
    assert zeros.added == np.count_nonzero(_bits(values) != _bits(pruned))


@given(case=weights(INTEGERS), seed=st.integers(0, 2**32))
def test_in_place_counts_what_is_not_at_its_zero_point(
    case: tuple[Array, int], seed: int, naive: Naive
) -> None:
    values, axis = case
    zeros = np.random.default_rng(seed).integers(0, 256, values.shape, np.uint8).view(values.dtype)
    expected = naive.prune(values, axis, zeros)
    before = values.copy()
    found = pattern.prune_in_place(values, axis, zeros)
    assert found.before == np.count_nonzero(before == zeros)
    assert found.added == np.count_nonzero(before != expected)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("shape", [(6, 256, 1), (2, 128, 300), (40, 64, 9)])
def test_long_arrays_are_pruned_as_short_ones_are(dtype: Any, shape: tuple[int, ...], naive: Naive) -> None:
    values = (np.random.default_rng(0).standard_normal(shape) * 40 + 60).clip(0, 120).astype(dtype)
    np.testing.assert_array_equal(_bits(pattern.prune_2to4(values, 1)), _bits(naive.prune(values, 1)))


def test_nothing_is_2to4() -> None:
    for shape in ((0, 8), (8, 0)):
        empty = np.empty(shape, np.float32)
        assert pattern.is_2to4(empty, 1)
        assert pattern.prune_2to4(empty, 1).shape == shape


def test_k_has_to_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="6 elements, not a multiple of 4"):
        pattern.prune_2to4(np.ones((6, 4), np.float32), 0)
    with pytest.raises(ValueError, match="K=6 is not a multiple of 4"):
        pattern.is_2to4(np.ones((6, 4), np.float32), 0)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64, ml_dtypes.float8_e8m0fnu])
def test_a_type_without_a_pattern_is_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="2:4 is not defined"):
        pattern.prune_2to4(np.ones(4, dtype), 0)
