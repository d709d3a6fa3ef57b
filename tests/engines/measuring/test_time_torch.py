"""The parts of timing through PyTorch that need no GPU."""

from __future__ import annotations

from typing import Any

import pytest

from sparseflow_trt.engines.measuring.curves import Curve, Request, pair_of
from sparseflow_trt.engines.measuring.medians import Median
from sparseflow_trt.engines.measuring.time_torch import relative_error, tactic_of
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm

torch: Any = pytest.importorskip("torch")


def test_points_carry_the_median_its_interval_and_the_algorithm() -> None:
    request = Request(Curve("torch", "BF16", 64, 32, "qkv"), 13)
    medians = (Median(2.0, 1.9, 2.2, 20), Median(1.00049, 0.9, 1.1, 30))
    pair = pair_of(request, medians, ("F.linear", tactic_of(request.m, Algorithm(7))))
    assert (pair.dense.kernel, pair.dense.us, pair.dense.low_us, pair.dense.high_us) == (
        "dense",
        2.0,
        1.9,
        2.2,
    )
    assert (pair.sparse.kernel, pair.sparse.us, pair.sparse.runs) == ("sparse", 1.0, 30)
    assert pair.sparse.tactic == "algorithm 7, rows padded from 13 to 16"
    assert tactic_of(16, Algorithm(7)) == "algorithm 7"
    assert (pair.sparse.kind, pair.sparse.n, pair.sparse.k, pair.sparse.m) == ("qkv", 64, 32, 13)
    assert (pair.sparse.dtype, pair.sparse.library) == ("BF16", "torch")


def test_an_error_is_seen_in_any_of_few_rows_and_a_nan_is_no_number() -> None:
    x, weight = torch.randn(20, 32), torch.randn(16, 32)
    right = torch.nn.functional.linear(x, weight)
    assert relative_error(torch, x, weight, right) < 1e-6
    padded = torch.cat([right, torch.zeros(4, 16)])
    assert relative_error(torch, x, weight, padded) < 1e-6
    for row in range(20):
        wrong = right.clone()
        wrong[row] *= 2
        assert relative_error(torch, x, weight, wrong) > 0.05
    right[3, 3] = float("nan")
    assert not relative_error(torch, x, weight, right) < 1e-2
