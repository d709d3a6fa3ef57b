"""How many buffers a product is timed on, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.engines.timing.input_sets import calls_needed, sets_needed

L2 = 60 << 20


@given(st.integers(1, 16384), st.integers(16, 60000), st.integers(16, 30000))
def test_input_sets_exceed_the_cache_and_are_never_one(m: int, n: int, k: int) -> None:
    sets = sets_needed(m, n, k, L2)
    one = 2 * (m * k + n * k * 9 / 16 + m * n)
    assert 2 <= sets <= 256
    assert sets * one > L2 or sets == 256
    assert sets == 2 or (sets - 1) * one < 1.5 * L2


@pytest.mark.parametrize(
    ("sets", "us", "calls"), [(2, 15000.0, 2), (2, 250.0, 4), (3, 1.0, 32), (135, 3.0, 135), (2, 30.0, 32)]
)
def test_a_graph_holds_every_set_and_enough_work(sets: int, us: float, calls: int) -> None:
    assert calls_needed(sets, us) == calls
