"""GPUs and money: whole GPUs, nothing from nothing, and a loss said as a loss."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.gains.roi import HOURS_A_MONTH, realised_speedup, return_on_sparsity

_loads = st.floats(1e-3, 1e5)
_speedups = st.floats(0.2, 10)
_shares = st.floats(0.05, 1)


@given(_loads, _speedups, st.floats(0.01, 100), _shares)
def test_as_many_whole_gpus_as_the_load_takes(load: float, speedup: float, cost: float, busy: float) -> None:
    result = return_on_sparsity(load, speedup, cost, busy)
    for fleet, work in ((result.dense, load), (result.sparse, load / speedup)):
        assert work <= fleet.gpus * busy * (1 + 1e-9)
        assert fleet.gpus == 1 or work > (fleet.gpus - 1) * busy * (1 - 1e-9)
        assert fleet.utilisation == pytest.approx(work / fleet.gpus)
        assert fleet.cost_per_month == pytest.approx(fleet.gpus * cost * HOURS_A_MONTH)
    assert result.saved_per_month == result.dense.cost_per_month - result.sparse.cost_per_month


@given(_loads, st.floats(0.01, 100), _shares, st.floats(0, 1e6))
def test_no_speedup_saves_nothing(load: float, cost: float, busy: float, one_off: float) -> None:
    result = return_on_sparsity(load, 1.0, cost, busy, one_off)
    assert result.saved_per_month == 0
    assert result.dense == result.sparse
    assert result.break_even_months is None


@given(_loads, _speedups, _speedups)
def test_more_speedup_never_saves_less(load: float, one: float, other: float) -> None:
    low, high = (return_on_sparsity(load, s, 2.5).saved_per_month for s in sorted((one, other)))
    assert low <= high
    assert low <= 0 or min(one, other) > 1


def test_a_slowdown_costs() -> None:
    result = return_on_sparsity(7.0, 0.7, 1.0, one_off=100)
    assert (result.dense.gpus, result.sparse.gpus) == (10, 15)
    assert result.saved_per_month == -5 * HOURS_A_MONTH
    assert result.break_even_months is None


def test_rounding_adds_no_gpu() -> None:
    assert return_on_sparsity(7.0, 1.25, 1.0, 0.7).dense.gpus == 10  # 7 / 0.7 is a little more than 10
    assert return_on_sparsity(10 * 0.7, 10 / 9, 1.0, 0.7).sparse.gpus == 9
    assert return_on_sparsity(1e-9, 2.0, 1.0).sparse.gpus == 1


@given(_loads, _speedups, st.floats(1e-3, 1e12))
def test_requests_share_what_the_gpus_cost(load: float, speedup: float, requests: float) -> None:
    result = return_on_sparsity(load, speedup, 2.5, requests_per_month=requests)
    assert result.requests_per_month == requests
    for fleet in (result.dense, result.sparse):
        assert fleet.cost_per_million_requests is not None
        assert fleet.cost_per_million_requests * requests / 1e6 == pytest.approx(fleet.cost_per_month)
    unknown = return_on_sparsity(load, speedup, 2.5)
    assert (unknown.requests_per_month, unknown.dense.cost_per_million_requests) == (None, None)


def test_break_even() -> None:
    result = return_on_sparsity(10.0, 2.0, 1.0, 1.0, one_off=7300)
    assert result.saved_per_month == 5 * HOURS_A_MONTH
    assert result.break_even_months == 2.0


@given(st.floats(1, 10), _shares)
def test_what_is_realised_lies_between_nothing_and_the_ceiling(ceiling: float, share: float) -> None:
    speedup = realised_speedup(ceiling, share)
    assert 1 <= speedup <= ceiling * (1 + 1e-9)
    assert 1 - 1 / speedup == pytest.approx(share * (1 - 1 / ceiling), abs=1e-9)
    assert math.isclose(realised_speedup(ceiling, 1.0), ceiling)
