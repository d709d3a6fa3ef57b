from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparseflow_trt.artifacts.verdict import OutputVerdict, Tolerance
from sparseflow_trt.validation.measure import judge_output
from sparseflow_trt.validation.messages import quiet_polygraphy

STRICT = Tolerance(max_abs=1e-3, max_rel=1e-2, min_cosine=0.999)


def judge(expected: Any, got: Any, tolerance: Tolerance = STRICT, dtype: Any = np.float32) -> OutputVerdict:
    with quiet_polygraphy():
        return judge_output("y", "set", np.asarray(expected, dtype), np.asarray(got, dtype), tolerance)


def test_the_figures_are_those_of_the_arrays() -> None:
    verdict = judge([1.0, -2.0, 0.0], [1.5, -2.0, 0.0])
    assert not verdict.passed
    assert verdict.max_abs == 0.5
    assert verdict.mean_abs == pytest.approx(0.5 / 3)
    assert (verdict.max_rel, verdict.mean_rel) == (0.5, 0.25)  # over the two that are larger than the bound
    assert verdict.cosine == pytest.approx(5.5 / math.sqrt(5 * 6.25))
    assert verdict.psnr == pytest.approx(10 * math.log10(1 / (0.25 / 3)))
    assert "output 'y' on input set 'set': 1 of 3 elements" in verdict.reason
    assert "worst at [0]: expected 1, got 1.5 (off by 0.5, relative 0.5)" in verdict.reason


def test_either_bound_is_enough_for_an_element() -> None:
    assert judge([100.0, 1e-5], [100.9, 9e-4]).passed  # within 1 %; within 0.001
    assert not judge([100.0, 1e-5], [101.1, 1e-5]).passed


def test_the_reason_counts_what_neither_bound_allows_and_names_the_worst_of_that() -> None:
    loose = Tolerance(max_abs=0.1, max_rel=0.02, min_cosine=-1.0)
    assert judge([1.0, 4.0, 100.0], [1.0, 5.0, 101.5], loose).reason == (
        "output 'y' on input set 'set': 1 of 3 elements are outside the absolute bound 0.1 and the relative "
        "bound 0.02; worst at [1]: expected 4, got 5 (off by 1, relative 0.25)."
    )
    assert "relative undefined" in judge([0.0, 4.0], [1.0, 4.0], loose).reason


def test_zeros_in_the_reference_do_not_spoil_the_ratios() -> None:
    verdict = judge([0.0, 1.0], [1e-8, 1.0])
    assert verdict.passed
    assert verdict.max_rel == 0.0
    assert judge([0.0, 0.0], [1e-8, 0.0]).max_rel is None


def test_the_scaled_bound_follows_the_output() -> None:
    scaled = Tolerance(max_abs=0.0, max_abs_rms=0.1, max_rel=0.0, min_cosine=-1.0)
    verdict = judge([3e4, 4e4], [3.3e4, 4e4], scaled)
    assert verdict.passed
    assert verdict.abs_bound == pytest.approx(0.1 * math.sqrt(12.5) * 1e4)
    assert not judge([3.0, 4.0], [3.5, 4.0], scaled).passed


def test_the_cosine_can_fail_alone() -> None:
    loose = Tolerance(max_abs=10, max_rel=0, min_cosine=0.99)
    verdict = judge([11.0, 0.0], [11.0, 9.0], loose)
    assert not verdict.passed
    assert "the cosine to the reference is 0.77" in verdict.reason
    assert "at least 0.99" in verdict.reason


def test_the_direction_of_zero_is_not_asked() -> None:
    assert judge([0.0, 0.0], [1e-4, 0.0]).passed
    assert not judge([0.0, 0.0], [1e-2, 0.0]).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails_whatever_the_tolerance(bad: float) -> None:
    verdict = judge([1.0, 2.0], [1.0, bad], Tolerance(max_abs=1e300, max_rel=1e300, min_cosine=-1))
    assert not verdict.passed
    assert (verdict.candidate_nan, verdict.candidate_inf) == ((1, 0) if math.isnan(bad) else (0, 1))
    assert "1 of 2 elements are NaN or infinite where the reference is finite; first at [1]" in verdict.reason


def test_the_same_infinity_is_equal_and_others_are_not() -> None:
    assert judge([1.0, -math.inf], [1.0, -math.inf]).passed
    assert not judge([1.0, math.inf], [1.0, -math.inf]).passed
    finite = judge([1.0, math.inf], [1.0, 5.0], Tolerance(max_abs=1e300, max_rel=1e300, min_cosine=-1))
    assert not finite.passed
    assert "expected inf, got 5" in finite.reason


def test_a_reference_with_nan_is_no_measure() -> None:
    verdict = judge([math.nan, 1.0], [math.nan, 1.0])
    assert not verdict.passed
    assert "the reference itself holds 1 NaN" in verdict.reason


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_booleans_are_compared_for_equality(dtype: Any) -> None:
    assert judge([1, 0, 1, 1], [1, 0, 1, 1], dtype=dtype).equal == 1.0
    verdict = judge([1, 0, 1, 1], [1, 1, 1, 1], dtype=dtype)
    assert not verdict.passed
    assert verdict.equal == 0.75
    assert "1 of 4 elements differ" in verdict.reason
    assert "first at [1]" in verdict.reason
    assert judge([1, 0, 1, 1], [1, 1, 1, 1], STRICT.model_copy(update={"min_equal": 0.75}), dtype).passed


def test_integers_beyond_a_doubles_precision_differ() -> None:
    assert not judge([2**53], [2**53 + 1], dtype=np.int64).passed


def test_another_type_is_no_fault_and_another_shape_is() -> None:
    with quiet_polygraphy():
        narrow = judge_output("y", "s", np.ones(3, np.float32), np.ones(3, np.float16), STRICT)
        wide = judge_output("y", "s", np.ones(3, np.int32), np.ones(3, np.int64), STRICT)
    assert narrow.passed
    assert wide.passed
    assert (narrow.reference_dtype, narrow.candidate_dtype) == ("float32", "float16")
    verdict = judge(np.ones((2, 3)), np.ones((3, 2)))
    assert not verdict.passed
    assert verdict.reason == "output 'y' on input set 'set': expected shape (2, 3), got (3, 2)."


@pytest.mark.parametrize(
    ("expected", "got"), [(np.int64, np.float32), (np.float32, np.int32), (np.bool_, np.int64)]
)
def test_another_kind_of_type_is_a_fault_though_numbers_are_equal(expected: Any, got: Any) -> None:
    with quiet_polygraphy():
        verdict = judge_output("y", "s", np.ones(3, expected), np.ones(3, got), STRICT)
    assert not verdict.passed
    said = f"output 'y' on input set 's': expected {np.dtype(expected)}, got {np.dtype(got)}."
    assert verdict.reason == said


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_empty_outputs_and_scalars(shape: tuple[int, ...]) -> None:
    assert judge(np.zeros(shape), np.zeros(shape)).passed
    assert judge(np.zeros(shape), np.zeros(shape), dtype=np.int64).passed


def test_a_scalar_can_fail() -> None:
    assert "worst at []" in judge(1.0, 2.0).reason


FLOATS = hnp.arrays(
    np.float32, 6, elements=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
)


@given(FLOATS, FLOATS)
def test_a_verdict_is_json_and_agrees_with_the_rule(expected: Any, got: Any) -> None:
    verdict = judge(expected, got, Tolerance(max_abs=1.0, max_rel=0.1, min_cosine=-1))
    json.loads(verdict.model_dump_json(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    json.dumps(verdict.model_dump(mode="json"), allow_nan=False)
    with np.errstate(all="ignore"):
        wide, true = got.astype(np.float64), expected.astype(np.float64)
        off = np.abs(wide - true)
        near = np.isfinite(wide) & np.isfinite(true) & ((off <= 1.0) | (off <= 0.1 * np.abs(true)))
    assert verdict.passed == bool((near | (np.isinf(true) & (wide == true))).all())
    assert verdict.passed == (verdict.reason == "")


@settings(max_examples=25)
@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(-4, 4, width=32)), st.floats(-1, 1))
def test_the_figures_are_those_of_polygraphys_comparator(expected: Any, off: float) -> None:
    from polygraphy import comparator

    wide = expected.astype(np.float64)
    other = wide + off * np.arange(6).reshape(2, 3)
    verdict = judge(expected, other, dtype=np.float64)
    bound = verdict.abs_bound
    assert bound is not None

    def compared(first: Any, second: Any, function: Any) -> Any:
        results = comparator.RunResults()
        for name, array in (("first", first), ("second", second)):
            results.append((name, [comparator.IterationResult({"y": array}, runner_name=name)]))
        found = comparator.Comparator.compare_accuracy(results, comparisons=[(0, 1)], compare_func=function)
        return found[0]["first", "second"][0]["y"]

    simple = comparator.SimpleCompareFunc(atol=bound, rtol=STRICT.max_rel)
    above = np.abs(wide) > bound
    with quiet_polygraphy(), np.errstate(all="ignore"):
        close = compared(other, wide, simple)
        cosine = compared(other, wide, comparator.CosineSimilarityCompareFunc()).cosine_similarity
        psnr = compared(wide, other, comparator.PsnrCompareFunc()).psnr
        ratio = compared(other[above], wide[above], simple).max_reldiff if above.any() else None
    assert (verdict.max_abs, verdict.mean_abs, verdict.max_rel) == (
        close.max_absdiff,
        close.mean_absdiff,
        ratio,
    )
    assert (verdict.cosine, verdict.psnr) == (cosine, psnr if math.isfinite(psnr) else None)
    assert bool(close) == ("outside" not in verdict.reason)
