"""Ranges of nodes, and what adding up in FP16 costs."""

from __future__ import annotations

import math

import numpy as np

from sparseflow_trt.model.node_range import COLUMNS, fp16_sum_error, joined, range_from_row


def _row(**values: float) -> list[float]:
    return [values.get(name, 0.0) for name in COLUMNS]


def test_a_row_is_read() -> None:
    found = range_from_row(
        _row(size=8, beyond=1, largest=7e4, above=2, tiny=4, squares=4, fp16_squares=1, bf16_squares=math.nan,
             k=16, sum_bound=9e4), True,
    )  # fmt: skip
    assert (found.size, found.fills, found.overflows, found.tiny, found.k) == (8, 1, True, 0.5, 16)
    assert (found.fp16_error, found.bf16_error) == (0.5, math.inf)
    assert found.work == 8 * 16


def test_no_product_has_one_term() -> None:
    found = range_from_row(_row(size=8), False)
    assert (found.k, found.work, found.fp16_error, found.overflows) == (1, 8.0, None, False)


def test_several_runs_count_by_their_worst() -> None:
    runs = [range_from_row(_row(size=n, largest=n, squares=1, fp16_squares=n, k=1), True) for n in (1, 4)]
    both = joined(runs)
    assert (both.size, both.largest, both.fp16_error) == (4, 4.0, 2.0)


def test_adding_up_in_fp16_loses_what_is_said() -> None:
    """Against sums that are rounded to FP16 term by term."""
    k, rng = 1024, np.random.default_rng(0)
    terms = rng.standard_normal((2000, k)).astype(np.float16)
    total = np.zeros(2000, np.float16)
    for i in range(k):
        total = total + terms[:, i]
    exact = terms.astype(np.float64).sum(1)
    lost = np.sqrt(np.square(total - exact).mean() / np.square(exact).mean())
    assert 0.3 < lost / fp16_sum_error(k) < 1.1
