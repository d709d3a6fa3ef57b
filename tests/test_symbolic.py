"""M as a product of integers and named dimensions."""

from __future__ import annotations

from sparseflow_trt.symbolic import SymbolicM


def test_m() -> None:
    m = SymbolicM((2, "batch", 3, "seq + 1"))
    assert str(m) == "6*batch*seq + 1"
    assert m.evaluate({"batch": 4, "seq": 9}) == 240
    assert m.evaluate({"batch": 4}) is None
    assert SymbolicM(("batch-size",)).evaluate({"batch-size": 8}) == 8
    assert SymbolicM(("input.1_dim 0",)).evaluate({"input.1_dim 0": 8}) == 8
    assert SymbolicM(("((",)).evaluate({}) is None
    assert SymbolicM((None, 3)).evaluate({}) is None
    assert (str(SymbolicM((None, 3))), str(SymbolicM(()))) == ("3*?", "1")
