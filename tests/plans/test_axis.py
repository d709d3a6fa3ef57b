"""An axis of a profile: M along it, a traffic on it, and the opt of its parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import ShapeError
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.axis import Axis, axis_of, main_m, median_size, opt_size, place_traffic
from sparseflow_trt.plans.shapes import Dims, Profile, ShapeRange
from sparseflow_trt.plans.traffic import Traffic

DIMS: dict[str, Dims] = {"ids": ("batch", "seq"), "image": ("batch", 3, 8)}
PROFILE = Profile(
    name="default",
    inputs={
        "ids": ShapeRange(min=(1, 16), opt=(8, 128), max=(64, 512)),
        "image": ShapeRange(min=(1, 3, 8), opt=(8, 3, 8), max=(64, 3, 8)),
    },
)
BATCH = axis_of(PROFILE, "batch", DIMS)
TOKENS = SymbolicM(("batch", "seq"))


def test_an_axis_has_the_profile_s_range_and_the_others_opt() -> None:
    assert Axis("batch", 1, 8, 64, {"batch": 8, "seq": 128}) == BATCH
    assert [BATCH.m(TOKENS, size) for size in (1, 64)] == [128, 8192]
    assert BATCH.m(SymbolicM((None, "batch")), 1) is None
    assert BATCH.m(SymbolicM(("batch-1",)), 1) == 1  # an M of 0 is a run with nothing to do


def test_an_axis_that_the_model_has_not() -> None:
    with pytest.raises(
        ShapeError, match="axis 'length' is not in the model, which has: batch, seq"
    ) as caught:
        axis_of(PROFILE, "length", DIMS)
    assert caught.value.hint


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 20), st.integers(1, 5000))
def test_the_first_size_with_an_m(low: int, more: int, rows: int, m: int) -> None:
    axis = Axis("batch", low, low, low + more, {"batch": low})
    expected = next((s for s in range(low, low + more + 1) if s * rows >= m), low + more + 1)
    assert axis.first_size(SymbolicM((rows, "batch")), m) == expected


def test_the_m_with_most_work_that_depends_on_the_axis_counts() -> None:
    pooled, fixed, unknown = SymbolicM(("batch",)), SymbolicM((512,)), SymbolicM((None, "batch"))
    assert main_m(BATCH, {pooled: 1.0, TOKENS: 2.0, fixed: 9.0, unknown: 9.0}) == TOKENS
    with pytest.raises(ShapeError, match="no layer's M is known to depend on axis 'batch'") as caught:
        main_m(BATCH, {fixed: 1.0, unknown: 1.0})
    assert caught.value.hint.endswith("which are: 512, ?*batch.")


def test_traffic_lies_where_m_is_as_large() -> None:
    # at seq=128 each batch has 128 rows; down to 16 and up to 512 the profile holds them all the same
    traffic = Traffic(
        ((15, 1.0), (16, 1.0), (128, 2.0), (129, 4.0), (8192, 8.0), (32768, 16.0), (32769, 32.0))
    )
    placed, outside = place_traffic(BATCH, TOKENS, traffic, PROFILE, DIMS)
    assert placed == [(1, 3.0), (2, 4.0), (64, 24.0)]
    assert outside == pytest.approx(33 / 64)


def test_traffic_that_no_shape_holds() -> None:
    with pytest.raises(ShapeError, match="lies between 16 and 32768") as caught:
        place_traffic(BATCH, TOKENS, Traffic(((1, 1.0), (40_000, 1.0))), PROFILE, DIMS)
    assert caught.value.hint


def test_the_opt_of_a_part() -> None:
    traffic = [(10, 1.0), (12, 5.0), (60, 1.0)]
    assert opt_size(BATCH, 9, 64, traffic) == 12
    assert opt_size(BATCH, 1, 9, traffic) == 8
    assert opt_size(BATCH, 13, 59, traffic) == round((13 * 59) ** 0.5)
    assert opt_size(BATCH, 1, 64, ()) == 8


@given(st.lists(st.tuples(st.integers(1, 99), st.floats(0.1, 9)), min_size=1, unique_by=lambda pair: pair[0]))
def test_the_median_has_half_of_the_weight_on_each_side(weighted: list[tuple[int, float]]) -> None:
    median = median_size(sorted(weighted))
    half = sum(weight for _, weight in weighted) / 2
    assert sum(weight for size, weight in weighted if size < median) <= half + 1e-9
    assert sum(weight for size, weight in weighted if size > median) <= half + 1e-9
