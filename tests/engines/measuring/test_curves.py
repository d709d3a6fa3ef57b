"""What is asked of those that measure, and how an answer counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.engines.measuring.curves import (
    Curve,
    Measured,
    Request,
    curves_of,
    pair_of,
)
from sparseflow_trt.engines.measuring.medians import Median
from sparseflow_trt.policies.presets import Product
from sparseflow_trt.policies.tactics import TOOK_DENSE

CURVE = Curve("torch", "FP16", 14336, 4096, "gate_up")


def test_one_shape_of_two_kinds_is_measured_once() -> None:
    products = [Product("qkv", 4096, 4096), Product("o", 4096, 4096), Product("down", 4096, 14336)]
    curves = curves_of(products, ["FP16", "BF16"], ["torch"])
    assert [(c.dtype, c.n, c.k, c.kind) for c in curves] == [
        ("FP16", 4096, 4096, "qkv"),
        ("FP16", 4096, 14336, "down"),
        ("BF16", 4096, 4096, "qkv"),
        ("BF16", 4096, 14336, "down"),
    ]


@given(st.floats(0.5, 2), st.floats(1, 1000))
def test_what_one_engine_differs_by_from_itself_is_no_gain(speedup: float, us: float) -> None:
    """Seen on an H200: one engine timed twice, 1.05 and 0.95 times as fast as itself."""
    request = Request(CURVE, 64)
    medians = [Median(time, 0.9 * time, 1.1 * time, 10) for time in (us, us / speedup)]
    raw = pair_of(request, medians, ("gemm", "sparse gemm"))
    timed = pair_of(request, medians, ("gemm", f"gemm {TOOK_DENSE})"))
    counted = Measured(request, timed, 0.0).counted
    assert counted.speedup == 1
    low, high = min(round(m.low, 3) for m in medians), max(round(m.high, 3) for m in medians)
    for point in (counted.dense, counted.sparse):
        assert (point.low_us, point.high_us) == (low, high)
    assert Measured(request, raw, 0.0).counted == raw
    assert Measured(request, counted, 0.0).counted == counted
